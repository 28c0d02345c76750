"""Small files in memory: never another content than the file has, nor more than the limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsvc.http.connection import WholeAnswer
from netsvc.services.files import small
from netsvc.services.files.root import Root, openat2_supported
from netsvc.services.files.small import SentRecord, SmallFile, SmallFiles
from tests.builders.files_http import MODIFIED, FilesSite
from tests.builders.http import read_replies


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilesSite]:
    top = tmp_path / "public"
    top.mkdir()
    made = FilesSite(top)
    made.write("f", b"content")
    # The second answer comes from memory.
    assert [made.ask("/f").body for _ in range(2)] == [b"content"] * 2
    assert made.core.find_small(b"f") is not None
    yield made
    made.factory.close()
    made.core.stop()


def test_what_is_sent_from_memory_has_the_same_headers_and_record(site: FilesSite) -> None:
    first, second = site.ask("/f"), site.ask("/f")
    assert first == second
    assert len(set(site.results)) == 1
    assert site.ask("/f", Range="bytes=0-2").body == b"con"
    assert site.ask("/f", "HEAD").body == b""


def test_what_is_sent_from_memory_ends_the_connection_as_any_answer_does(site: FilesSite) -> None:
    for asked, expected in {
        "HTTP/1.1\r\nHost: a\r\nConnection: close": "close",
        "HTTP/1.0": "close",
        "HTTP/1.0\r\nConnection: keep-alive": "keep-alive",
        "HTTP/1.1\r\nHost: a": None,
    }.items():
        transport = site.send(f"GET /f {asked}\r\n\r\n".encode())
        [reply] = read_replies(transport.value())
        assert (reply.headers.get("connection"), reply.body, transport.ended) == (
            expected,
            b"content",
            expected == "close",
        )
        transport.end()


def test_a_changed_file_is_read_again(site: FilesSite) -> None:
    # The same size and time of change: only the time of the inode is another one.
    (site.root / "f").write_bytes(b"CONTENT")
    os.utime(site.root / "f", (MODIFIED, MODIFIED))
    assert site.ask("/f").body == b"CONTENT"


def test_a_file_that_has_gone_or_may_not_be_read_is_not_sent(site: FilesSite) -> None:
    (site.root / "f").rename(site.root / ".hidden")
    assert site.ask("/f").code == 404
    (site.root / "f").mkdir()
    assert site.ask("/f").code == 301


def test_a_name_that_leads_out_of_the_root_by_now_is_refused(site: FilesSite) -> None:
    outside = site.root.parent / "secret"
    outside.write_bytes(b"outside")
    os.utime(outside, (MODIFIED, MODIFIED))
    (site.root / "f").unlink()
    (site.root / "f").symlink_to(outside)
    assert site.ask("/f").code == 404


def test_a_directory_that_is_moved_out_of_the_root_and_linked_to_is_refused(site: FilesSite) -> None:
    # The file itself is unchanged.
    site.write("d/f", b"content")
    assert [site.ask("/d/f").code for _ in range(2)] == [200, 200]
    (site.root / "d").rename(site.root.parent / "d")
    (site.root / "d").symlink_to(site.root.parent / "d")
    assert site.ask("/d/f").code == 404


def test_a_file_in_a_directory_is_sent_from_memory(site: FilesSite) -> None:
    site.write("d/f", b"content")
    assert site.ask("/d/f").body == b"content"
    if openat2_supported(site.core._root.descriptor):  # type: ignore[union-attr]
        assert site.core.find_small(b"d/f") is not None


def test_a_file_that_has_just_changed_is_not_kept(site: FilesSite) -> None:
    (site.root / "new").write_bytes(b"1")
    assert site.ask("/new").code == 200
    assert site.core.find_small(b"new") is None


def test_nothing_is_sent_while_the_service_drains(site: FilesSite) -> None:
    site.core.draining = True
    assert site.ask("/f").code == 503
    site.core.draining = False


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(small, "MOST_BYTES", 10)
    monkeypatch.setattr(small, "MOST_FILES", 3)
    root = Root(str(tmp_path))
    try:
        kept = SmallFiles()
        for name, size in ((b"a", 4), (b"b", 4), (b"b", 5), (b"c", 1), (b"d", 1), (b"e", 9)):
            (tmp_path / os.fsdecode(name)).write_bytes(bytes(size))
            status = os.stat(tmp_path / os.fsdecode(name))
            kept.add(name, SmallFile(small.identity(status), WholeAnswer(0, b""), SentRecord(size, {}, "", "")))
        assert [name for name in (b"a", b"b", b"c", b"d", b"e") if kept.get(root, name)] == [b"d", b"e"]
    finally:
        root.close()
