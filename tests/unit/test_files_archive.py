"""A directory as a zip or tar archive over HTTP: whole or an error, and nothing that is not served."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.python.failure import Failure

from netsvc.services.files import archive as files_archive
from netsvc.services.files.archive import BLOCK, DEEPEST, KINDS, PIECE, ArchiveLimits, DirectoryArchive
from netsvc.services.files.file import CutError
from tests.builders.files import make_core, needs_openat2, open_below
from tests.builders.files_http import MODIFIED, FilesSite
from tests.builders.http import Transport, connect, request

NO_LIMITS = ArchiveLimits(1 << 50, 10**6)
BIG = os.urandom(3 * PIECE + 17)

#: What is in the archive of the root of `plant`, by name.
FILES = {
    "files/a.txt": b"some text, " * 1000,
    "files/big.bin": BIG,
    "files/papers/deep/f": b"f",
    "files/papers/run.sh": b"#!/bin/sh\n",
    "files/empty.txt": b"",
    "files/near": b"some text, " * 1000,
    "files/\u5b66\u4e60/\u4e00.txt": b"utf-8",
}
DIRECTORIES = {"files/", "files/papers/", "files/papers/deep/", "files/nothing/", "files/\u5b66\u4e60/"}


def plant(parent: Path) -> Path:
    (parent / "secret").write_bytes(b"outside")
    (parent / "beside").mkdir()
    (parent / "beside" / "secret").write_bytes(b"outside")
    top = parent / "public"
    for name, data in FILES.items():
        path = top / name.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (top / "papers" / "run.sh").chmod(0o755)
    (top / "nothing").mkdir()
    (top / ".hidden").write_bytes(b"hidden")
    (top / ".git").mkdir()
    (top / ".git" / "config").write_bytes(b"hidden")
    os.mkfifo(top / "fifo")
    (top / "near").unlink()
    (top / "near").symlink_to("a.txt")
    (top / "out").symlink_to("../secret")
    (top / "out-directory").symlink_to("../beside")
    (top / "gone").symlink_to("nowhere")
    (top / "papers" / "round").symlink_to("..")
    (top / "papers" / "self").symlink_to(".")
    for path in [top, *top.rglob("*")]:
        os.utime(path, (MODIFIED, MODIFIED), follow_symlinks=False)
    return top


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return plant(tmp_path)


@pytest.fixture
def site(top: Path) -> Iterator[FilesSite]:
    made = FilesSite(top)
    yield made
    made.core.stop()
    assert open_below(top.parent) == []


def unchunked(data: bytes) -> bytes:
    """Return the content of an answer in chunks, which must be complete."""
    head, _, rest = data.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    content = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        content += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
        if not length:
            assert not rest
            return content


def fetch(site: FilesSite, target: str) -> bytes:
    transport = site.send(request(target))
    data = transport.value()
    assert not transport.aborted
    transport.end()
    return unchunked(data)


def read_zip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {each.filename: archive.read(each) for each in archive.infolist()}


def read_tar(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            each.name + "/" * each.isdir(): b"" if each.isdir() else archive.extractfile(each).read()  # type: ignore[union-attr]
            for each in archive
        }


READERS: dict[str, Callable[[bytes], dict[str, bytes]]] = {"zip": read_zip, "tar": read_tar}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_has_what_is_listed_and_nothing_else(site: FilesSite, kind: str) -> None:
    assert READERS[kind](fetch(site, f"/?{kind}")) == FILES | dict.fromkeys(DIRECTORIES, b"")
    below = READERS[kind](fetch(site, f"/papers/?{kind}"))
    # The link to the directory above leads into the root, and not round again.
    expected = {name.replace("files/", "papers/round/") for name in {*FILES, *DIRECTORIES} if "/papers/" not in name}
    assert set(below) == {"papers/", "papers/deep/", "papers/deep/f", "papers/run.sh", *expected}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_directory_gives_the_same_archive(site: FilesSite, kind: str) -> None:
    assert fetch(site, f"/?{kind}") == fetch(site, f"/?{kind}")


def test_times_and_modes_are_kept(site: FilesSite) -> None:
    with zipfile.ZipFile(io.BytesIO(fetch(site, "/?zip"))) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1994, 11, 6, 8, 49, 36)
            assert int.from_bytes(entry.extra[5:9], "little") == MODIFIED
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes["files/papers/run.sh"] == stat.S_IFREG | 0o755
    assert modes["files/a.txt"] == stat.S_IFREG | 0o644
    assert stat.S_ISDIR(modes["files/papers/"])
    with tarfile.open(fileobj=io.BytesIO(fetch(site, "/?tar"))) as archive:
        assert {entry.mtime for entry in archive} == {MODIFIED}
        assert {(entry.uid, entry.gid, entry.uname) for entry in archive} == {(0, 0, "")}
        assert archive.getmember("files/papers/run.sh").mode == 0o755


def test_text_is_compressed_and_other_files_are_not(site: FilesSite) -> None:
    with zipfile.ZipFile(io.BytesIO(fetch(site, "/?zip"))) as archive:
        assert archive.getinfo("files/a.txt").compress_size < 1000
        assert archive.getinfo("files/big.bin").compress_size >= len(BIG)
        # Readers of streams take entries whose size comes behind them only if they are deflated.
        late = [entry for entry in archive.infolist() if entry.flag_bits & 8]
        assert late and {entry.compress_type for entry in late} == {zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize("moment", [-1.0, 0.0, 2.0**31 + 5, 2.0**33])
def test_any_time_can_be_written(site: FilesSite, top: Path, moment: float) -> None:
    os.utime(top / "a.txt", (moment, moment))
    assert read_zip(fetch(site, "/?zip"))["files/a.txt"] == FILES["files/a.txt"]
    assert read_tar(fetch(site, "/?tar"))["files/a.txt"] == FILES["files/a.txt"]


def test_names_that_are_not_utf_8_are_kept_in_tar_and_read_in_zip(site: FilesSite, top: Path) -> None:
    gbk = "\u4e2d\u6587.txt".encode("gbk")
    names = {gbk: "\u4e2d\u6587.txt", b"\xff\xff": "\ufffd\ufffd", b"\xff\xfe": "\ufffd\ufffd~", b"a\\b": "a_b"}
    place = top / "names"
    place.mkdir()
    for name in names:
        (place / os.fsdecode(name)).write_bytes(name)
    found = read_zip(fetch(site, "/names/?zip"))
    assert sorted(found) == ["names/", *sorted(f"names/{text}" for text in names.values())]
    assert found["names/\u4e2d\u6587.txt"] == gbk
    in_tar = read_tar(fetch(site, "/names/?tar"))
    assert {os.fsencode(name) for name in in_tar} == {b"names/", *(b"names/" + name for name in names)}


@pytest.mark.parametrize(
    ("links", "has"), [("inside", {"near"}), ("none", set()), ("follow", {"near", "out", "out-directory"})]
)
def test_links_are_in_it_as_they_are_listed(top: Path, links: str, has: set[str]) -> None:
    site = FilesSite(top, links=links)
    names = {name.split("/")[1] for name in read_tar(fetch(site, "/?tar"))}
    assert names & {"near", "out", "out-directory", "gone", "fifo"} == has
    site.core.stop()


def test_hidden_files_are_in_it_if_they_are_served(top: Path) -> None:
    site = FilesSite(top, hidden=True)
    found = read_zip(fetch(site, "/?zip"))
    assert {"files/.hidden", "files/.git/config"} <= set(found)
    site.core.stop()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_what_cannot_be_read_is_left_out_and_the_record_says_so(site: FilesSite, top: Path) -> None:
    (top / "a.txt").chmod(0)
    assert "files/a.txt" not in read_zip(fetch(site, "/?zip"))
    assert site.results[-1][2] == "sent, but not all could be read"


def test_the_answer_is_a_download_with_a_name(site: FilesSite, top: Path) -> None:
    for method in ("GET", "HEAD"):
        transport = site.send(request("/%E5%AD%A6%E4%B9%A0/?zip", method))
        head, _, body = transport.value().partition(b"\r\n\r\n")
        transport.end()
        assert b"Content-Type: application/zip" in head
        assert b"attachment; filename=\"files.zip\"; filename*=UTF-8''%E5%AD%A6%E4%B9%A0.zip" in head
        assert bool(body) == (method == "GET")
    assert [result[3:] for result in site.results] == [("GET", 200), ("HEAD", 200)]


def test_the_connection_can_be_used_again(site: FilesSite) -> None:
    transport = site.send(request("/papers/?zip") + request("/papers/run.sh"))
    assert transport.value().endswith(b"\r\n\r\n#!/bin/sh\n")
    transport.end()


def test_an_old_client_gets_it_until_the_end_of_the_connection(site: FilesSite) -> None:
    transport = site.send(b"GET /papers/?zip HTTP/1.0\r\n\r\n")
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert transport.ended and not transport.aborted
    assert "papers/run.sh" in read_zip(body)


@pytest.mark.parametrize("target", ["/none/?zip", "/.git/?zip", "/out-directory/?tar", "/../beside/?zip", "/fifo/?zip"])
def test_what_is_not_listed_is_no_archive(site: FilesSite, target: str) -> None:
    assert site.ask(target).code == 404


def test_a_file_and_a_directory_without_a_slash_are_as_without_the_query(site: FilesSite) -> None:
    assert site.ask("/papers/run.sh?zip").body == b"#!/bin/sh\n"
    assert site.ask("/papers?zip").headers["location"] == "/papers/?zip"


@pytest.mark.parametrize("options", [{"archives": 0}, {"no_listing": True}])
def test_a_setting_turns_it_off(top: Path, options: dict[str, object]) -> None:
    site = FilesSite(top, **options)
    assert site.ask("/?zip").code == 404
    if "archives" in options:
        assert b"?zip" not in site.ask("/").body
        assert site.ask("/?json").json["archives"] == {}
    site.core.stop()


def test_a_listing_links_to_it(site: FilesSite) -> None:
    assert site.ask("/?json").json["archives"] == {"zip": "?zip", "tar": "?tar"}
    assert b'<a rel="nofollow" href="?zip">zip</a>' in site.ask("/").body


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"archive_size": len(BIG)}, "no archive: too large"), ({"archive_entries": 5}, "no archive: too many files")],
)
def test_what_is_too_large_is_refused_before_anything_is_sent(
    top: Path, options: dict[str, object], reason: str
) -> None:
    site = FilesSite(top, **options)
    assert site.ask("/?zip").code == 403
    assert site.results[-1][2:] == (reason, "GET", 403)
    site.core.stop()
    assert open_below(top) == []


def test_what_is_too_deep_is_refused(site: FilesSite, top: Path) -> None:
    (top / ("d/" * (DEEPEST + 1))).mkdir(parents=True)
    assert site.ask("/?tar").code == 403


class Pool:
    """A pool whose threads run when the test says so."""

    def __init__(self, clock: Any) -> None:
        self.jobs: list[Callable[[], None]] = []
        clock.getThreadPool = lambda: self
        clock.callFromThread = lambda call, *arguments: call(*arguments)

    def callInThreadWithCallback(
        self, done: Callable[[bool, object], None], call: Callable[..., object], *arguments: object
    ) -> None:
        def run() -> None:
            try:
                result = call(*arguments)
            except Exception:  # noqa: BLE001  (the caller gets it)
                done(False, Failure())
            else:
                done(True, result)

        self.jobs.append(run)

    def work(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


def test_no_piece_is_made_while_the_client_does_not_read(site: FilesSite) -> None:
    pool = Pool(site.clock)
    transport = site.send(request("/?tar"))
    producer: Any = transport.producer
    while not transport.value():
        pool.jobs.pop(0)()
    producer.pauseProducing()
    pool.work()
    sent = len(transport.value())
    # The one that was being made.
    assert sent < 3 * (PIECE + BLOCK)
    pool.work()
    assert len(transport.value()) == sent
    producer.resumeProducing()
    pool.work()
    assert READERS["tar"](unchunked(transport.value())) == FILES | dict.fromkeys(DIRECTORIES, b"")
    transport.end()


@pytest.mark.parametrize("while_busy", [False, True])
def test_a_client_that_leaves_leaves_nothing_open(site: FilesSite, top: Path, while_busy: bool) -> None:
    pool = Pool(site.clock)
    before = open_below(top)
    transport = site.send(request("/?tar"))
    producer: Any = transport.producer
    while b"big.bin" not in transport.value():
        pool.jobs.pop(0)()
    if not while_busy:
        producer.pauseProducing()
        pool.work()
    assert open_below(top) == [*before, str(top / "big.bin")]
    transport.end()
    # A thread may still read.
    assert bool(pool.jobs) == while_busy
    pool.work()
    assert open_below(top) == before
    assert site.results[-1][2] == "client went away"


def test_a_stop_closes_the_root_when_the_last_archive_is_over(top: Path) -> None:
    site = FilesSite(top)
    pool = Pool(site.clock)
    transport = site.send(request("/?tar"))
    site.core.drain()
    site.core.stop()
    pool.work()
    assert READERS["tar"](unchunked(transport.value()))
    transport.end()
    assert open_below(top.parent) == []


def test_a_new_one_is_refused_while_a_drain_is_going_on(site: FilesSite) -> None:
    site.core.drain()
    assert site.ask("/?zip").code == 503


def test_a_few_are_sent_at_once_and_half_of_them_to_one_address(top: Path) -> None:
    site = FilesSite(top, archives=4, stall=30.0)
    pool = Pool(site.clock)
    hosts = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    opened = []
    for host in hosts:
        transport = Transport()
        transport.peerAddr = IPv4Address("TCP", host, 1)
        connect(site.factory, transport)
        transport.protocol.dataReceived(request("/?zip"))
        opened.append(transport)
    codes = [transport.value()[9:12] for transport in opened]
    assert codes == [b"", b"", b"503", b"", b"", b"503"]
    site.clock.advance(30)
    late = Transport()
    late.peerAddr = IPv4Address("TCP", "192.0.2.9", 1)
    connect(site.factory, late)
    late.protocol.dataReceived(request("/?zip"))
    # The first one has not moved for longest, and gives way.
    assert opened[0].aborted and not late.value()
    for transport in [*opened, late]:
        transport.end()
    pool.work()
    site.core.stop()
    assert open_below(top.parent) == []


def test_one_that_takes_too_long_is_cut(top: Path) -> None:
    site = FilesSite(top, archive_time=100)
    pool = Pool(site.clock)
    transport = site.send(request("/?tar"))
    while not transport.value():
        pool.jobs.pop(0)()
    site.clock.advance(100)
    assert transport.aborted
    pool.work()
    assert site.results[-1][2] == "took too long"
    site.core.stop()
    assert open_below(top.parent) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_shrinks_resets_the_connection(site: FilesSite, top: Path, kind: str) -> None:
    pool = Pool(site.clock)
    transport = site.send(request(f"/?{kind}"))
    while b"big.bin" not in transport.value():
        pool.jobs.pop(0)()
    os.truncate(top / "big.bin", 10)
    pool.work()
    assert transport.aborted
    assert b"\r\n0\r\n\r\n" not in transport.value()
    assert site.results[-1][2] == "file shrank"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_grows_is_sent_as_it_was(site: FilesSite, top: Path, kind: str) -> None:
    pool = Pool(site.clock)
    transport = site.send(request(f"/?{kind}"))
    while b"big.bin" not in transport.value():
        pool.jobs.pop(0)()
    with (top / "big.bin").open("ab") as file:
        file.write(b"more" * PIECE)
    pool.work()
    assert READERS[kind](unchunked(transport.value()))["files/big.bin"] == BIG
    transport.end()


def test_one_that_outgrows_the_limits_meanwhile_resets_the_connection(top: Path) -> None:
    site = FilesSite(top, archive_entries=20)
    pool = Pool(site.clock)
    transport = site.send(request("/?tar"))
    while not transport.value():
        pool.jobs.pop(0)()
    for number in range(20):
        (top / "papers" / f"{number}").touch()
    pool.work()
    assert transport.aborted
    site.core.stop()


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(site: FilesSite, top: Path) -> None:
    pool = Pool(site.clock)
    transport = site.send(request("/?tar"))
    while not transport.value():
        pool.jobs.pop(0)()
    (top / "papers").rename(top.parent / "moved")
    (top / "papers").symlink_to("../beside")
    pool.work()
    assert b"outside" not in transport.value()
    transport.end()


def test_large_files_and_many_are_zip64(site: FilesSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", PIECE)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    data = fetch(site, "/?zip")
    assert b"PK\x06\x06" in data
    assert read_zip(data) == FILES | dict.fromkeys(DIRECTORIES, b"")


def test_a_piece_is_small_however_well_it_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_archive, "_MOST_READ", 4 * BLOCK)
    (tmp_path / "zeros.txt").touch()
    os.truncate(tmp_path / "zeros.txt", 64 * BLOCK)
    core, _ = make_core(tmp_path)
    core.start()
    tree = core.tree()
    made = DirectoryArchive(tree, b"", "files", "zip", NO_LIMITS)
    pieces = []
    while (piece := made.next()) is not None:
        pieces.append(piece)
    assert len(pieces) > 16
    assert read_zip(b"".join(pieces))["files/zeros.txt"] == bytes(64 * BLOCK)
    tree.root.close()
    core.stop()


@needs_openat2
def test_a_read_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    core, _ = make_core(tmp_path)
    core.start()
    tree = core.tree()
    longer = tree._replace(open_file=lambda name: (os.open(tmp_path / "f", os.O_RDONLY), 101, 0))
    made = DirectoryArchive(longer, b"", "f", "tar", NO_LIMITS)
    with pytest.raises(CutError):
        list(iter(made.next, None))
    made.close()
    tree.root.close()
    core.stop()
    assert open_below(tmp_path) == []
