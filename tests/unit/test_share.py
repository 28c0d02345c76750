"""What `netsvc share` serves, and what it shows of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.cli.share import Downloads, lan_address, print_address
from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.services.files.download import BLOCK
from netsvc.services.files.share import MOST_PARTS, Sent, SharedTransfer, ShareObserver, share
from netsvc.testing import MemoryReactor
from tests.builders.files import open_below, pattern
from tests.builders.http import Reply, Transport, connect, read_replies, request


class Share:
    """A share in memory, and what its watch was told."""

    def __init__(self, *paths: Path, hidden: bool = False, token: str = "secret") -> None:
        self.began: list[SharedTransfer] = []
        self.ended: list[SharedTransfer] = []
        self.sent: list[Sent] = []
        watch = ShareObserver(self.began.append, self.ended.append, self.sent.append)
        service, settings, self.start = share([str(path) for path in paths], hidden=hidden, token=token, watch=watch)
        observer: Any = lambda event: None  # noqa: E731
        log = Logger("netsvc.share", observer=observer)
        self.clock = MemoryReactor()
        instance: Any = service.build(parse_settings(service.options, settings), Context(self.clock, log))
        instance.check()
        instance.start()
        self.instance = instance
        self.factory = instance.protocol("http")

    def ask(self, target: str, **headers: str) -> Reply:
        transport = connect(self.factory, Transport())
        transport.protocol.dataReceived(request(target, headers=headers))
        while transport.producer is not None and transport.producer is not transport.protocol:
            transport.producer.resumeProducing()
        [reply] = read_replies(transport.value())
        transport.end()
        return reply

    def code(self, target: str) -> int:
        return self.ask(target).code


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "a.txt").write_bytes(b"a")
    (tmp_path / "d" / ".hidden").write_bytes(b"hidden")
    (tmp_path / "d" / "out").symlink_to("../beside")
    (tmp_path / "d" / "in").symlink_to("a.txt")
    (tmp_path / "f.bin").write_bytes(pattern(3 * BLOCK))
    (tmp_path / "beside").write_bytes(b"beside")
    yield tmp_path
    assert open_below(tmp_path) == []


def test_one_directory_is_the_root_of_the_share(tree: Path) -> None:
    shared = Share(tree / "d")
    assert shared.start == "/secret/"
    assert shared.ask("/secret/a.txt").body == b"a"
    listing = json.loads(shared.ask("/secret/?json").body)
    assert [each["name"] for each in listing["entries"]] == ["sub", "a.txt", "in"]
    shared.instance.stop()


def test_one_file_is_the_only_one_of_its_directory(tree: Path) -> None:
    shared = Share(tree / "f.bin")
    assert shared.start == "/secret/f.bin"
    assert shared.ask(shared.start).body == pattern(3 * BLOCK)
    assert [shared.code(f"/secret/{name}") for name in ("beside", "d/", "f.bin/x", "../beside", "%2e%2e/beside")] == (
        [404] * 5
    )
    shared.instance.stop()


def test_several_paths_are_the_entries_of_one_directory(tree: Path) -> None:
    shared = Share(tree / "d", tree / "f.bin")
    listing = json.loads(shared.ask("/secret/?json").body)
    assert [(each["name"], each["type"], each.get("size")) for each in listing["entries"]] == [
        ("d", "directory", None),
        ("f.bin", "file", 3 * BLOCK),
    ]
    assert shared.ask("/secret/d/a.txt").body == shared.ask("/secret/d/in").body == b"a"
    assert shared.ask("/secret/f.bin").body == pattern(3 * BLOCK)
    assert shared.ask("/secret/d").headers["location"] == "/secret/d/"
    outside = ("beside", "d/out", "d/../beside", "d/../../beside", "d/.hidden", "netsvc", ".")
    assert [shared.code(f"/secret/{name}") for name in outside] == [404, 404, 404, 404, 404, 404, 301]
    shared.instance.stop()


def test_a_small_file_that_is_kept_in_memory_is_looked_at_again(tree: Path) -> None:
    file = tree / "d" / "a.txt"
    os.utime(file, (0, 0))
    shared = Share(tree / "d", tree / "f.bin")
    assert [shared.ask("/secret/d/a.txt").body for _ in range(3)] == [b"a"] * 3
    assert shared.instance.core.find_small(b"d/a.txt").answer.rest.endswith(b"\r\n\r\na")
    file.write_bytes(b"new")
    assert shared.ask("/secret/d/a.txt").body == b"new"
    file.unlink()
    file.symlink_to(tree / "beside")
    assert shared.code("/secret/d/a.txt") == 404
    shared.instance.stop()


def test_hidden_files_are_shared_on_request(tree: Path) -> None:
    shared = Share(tree / "d", tree / "f.bin", hidden=True)
    assert shared.ask("/secret/d/.hidden").body == b"hidden"
    shared.instance.stop()


def test_nothing_is_found_without_the_token(tree: Path) -> None:
    shared = Share(tree / "d")
    for target in ("/", "/a.txt", "/secre/a.txt", "/secretx/a.txt", "//secret/a.txt", "/?json", "/secret"):
        assert shared.code(target) == 404
    assert shared.sent == []
    shared.instance.stop()
    public = Share(tree / "d", token="")
    assert (public.start, public.ask("/a.txt").body) == ("/", b"a")
    public.instance.stop()


def test_a_directory_is_an_archive_too(tree: Path) -> None:
    for shared, target, names in (
        (Share(tree / "d"), "/secret/", ["files/", "files/a.txt", "files/in", "files/sub/"]),
        (Share(tree / "d", tree / "f.bin"), "/secret/d/", ["d/", "d/a.txt", "d/in", "d/sub/"]),
        (
            Share(tree / "d", tree / "f.bin"),
            "/secret/",
            ["files/", "files/d/", "files/d/a.txt", "files/d/in", "files/d/sub/", "files/f.bin"],
        ),
    ):
        assert b'href="?zip"' in shared.ask(target).body
        transport = connect(shared.factory, Transport())
        transport.protocol.dataReceived(b"GET %b?zip HTTP/1.0\r\n\r\n" % target.encode())
        with ZipFile(BytesIO(transport.value().partition(b"\r\n\r\n")[2])) as archive:
            assert archive.namelist() == names
        assert [each.complete for each in shared.sent] == [False, True]
        shared.instance.stop()


def test_nothing_is_written_to_the_disk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tree / "temporary"))
    shared = Share(tree / "d", tree / "f.bin")
    assert json.loads(shared.ask("/secret/?json").body)["total"] == 2
    assert not (tree / "temporary").exists()
    shared.instance.stop()


def test_links_of_a_listing_stay_below_the_token(tree: Path) -> None:
    shared = Share(tree / "d", tree / "f.bin")
    page = shared.ask("/secret/d/sub/").body.decode()
    assert [link in page for link in ('href="./../../"', 'href="./../"', 'href="/')] == [True, True, False]
    shared.instance.stop()


def test_what_cannot_be_shared_is_a_line_each(tree: Path) -> None:
    (tree / "d" / "sub" / "f.bin").touch()
    os.mkfifo(tree / "fifo")
    paths = [tree / "none", tree / "f.bin", tree / "d" / "sub" / "f.bin", tree / "d" / ".hidden", tree / "fifo"]
    with pytest.raises(UserError) as caught:
        Share(*paths)
    assert [line.partition(":")[0] for line in caught.value.errors] == [str(each) for each in (paths[0], *paths[2:])]


class TestWatch:
    def test_a_download_begins_and_ends_and_is_complete(self, tree: Path) -> None:
        shared = Share(tree / "f.bin")
        transport: Any = connect(shared.factory, Transport())
        transport.reads_nothing = True
        transport.protocol.dataReceived(request(shared.start))
        [transfer] = shared.began
        assert (transfer.name, transfer.size, shared.ended) == ("f.bin", 3 * BLOCK, [])
        before = transfer.sent
        transport.producer.resumeProducing()
        assert transfer.sent > before
        while transport.producer is not transport.protocol:
            transport.producer.resumeProducing()
        assert shared.ended == [transfer]
        assert [(each.size, each.complete) for each in shared.sent] == [(3 * BLOCK, True)]
        transport.end()
        shared.instance.stop()

    def test_parts_that_are_all_of_a_file_complete_it(self, tree: Path) -> None:
        shared = Share(tree / "f.bin")
        for each in (f"0-{BLOCK - 1}", f"{BLOCK}-{2 * BLOCK - 1}", f"{2 * BLOCK}-"):
            shared.ask(shared.start, Range=f"bytes={each}")
        assert [each.complete for each in shared.sent] == [False, False, True]
        shared.instance.stop()

    def test_the_parts_that_are_remembered_are_bounded(self, tree: Path) -> None:
        shared = Share(tree / "d")
        core = shared.instance.core
        for number in range(MOST_PARTS + 10):
            answer = {"method": "GET", "status": 206}
            core.record(f"192.0.2.1:{number}", b"%d" % number, 1, 0.0, "client went away", answer)
        assert len(core._parts) == MOST_PARTS
        shared.instance.stop()

    def test_a_listing_and_a_refusal_complete_nothing(self, tree: Path) -> None:
        shared = Share(tree / "d")
        for target in ("/secret/", "/secret/none"):
            shared.ask(target)
        assert [each.complete for each in shared.sent] == [False]
        shared.instance.stop()


def test_downloads_are_counted_and_shown_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    completed: list[int] = []
    downloads = Downloads(on_terminal=False, completed=lambda: completed.append(1))
    downloads.answered(Sent("first", 10, True))
    downloads.answered(Sent("second", 5, False))
    downloads.close()
    assert (downloads.count, downloads.size, completed) == (1, 15, [1])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[:2] == ["first", "second"]


def test_the_address_is_the_one_of_the_network() -> None:
    def no_route(family: int, address: str) -> str:
        raise OSError

    assert lan_address(lambda family, address: "192.0.2.7") == "192.0.2.7"
    assert lan_address(no_route) == "127.0.0.1"


def test_the_code_is_printed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    print_address("http://192.0.2.7:9000/x/", show_qr=False)
    assert capsys.readouterr().out == "http://192.0.2.7:9000/x/\n"
    print_address("http://192.0.2.7:9000/x/", show_qr=True)
    url, *code = capsys.readouterr().out.splitlines()
    assert url == "http://192.0.2.7:9000/x/"
    assert len(code) > 10
