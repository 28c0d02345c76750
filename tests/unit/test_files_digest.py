"""SHA-256 digests: what is asked for, computed, remembered and sent."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.services.files import digest as files_digest
from netsvc.services.files.digest import MOST_FILES, MOST_OF_A_CLIENT, THREADS, Digests, checksum_line, wants_sha256
from netsvc.services.files.download import SMALL
from netsvc.services.files.file import FileBusyError, OpenFile
from netsvc.services.files.http import LONGEST_WAIT
from tests.builders.files import open_below, pattern
from tests.builders.files_http import FilesSite, producer_of
from tests.builders.http import Transport, connect, read_replies, request


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        ("", None),
        ("sha-256=1", True),
        ("sha-512=3, sha-256=10", True),
        ("sha-256=0", False),
        ("sha-256=0, sha-256=1", True),
        ("md5=1", None),
        ("sha-256", None),
        ("sha-256=11", None),
        ("sha-256=-1", None),
        ("sha-256=1.5", None),
        ("SHA-256=1", None),
        ("sha-256=1,", None),
        ("sha-256=1, =", None),
        ("sha-256=1," * 1000 + "sha-256=1", None),
    ],
)
def test_a_client_wants_the_digest_or_not(value: str | None, wanted: bool | None) -> None:
    assert wants_sha256([] if value is None else [value.encode()]) is wanted


@given(st.lists(st.lists(st.sampled_from(["sha-256", "=", "1", "0", "10", ",", " ", "a", "é"])).map("".join)))
def test_any_value_is_an_answer(values: list[str]) -> None:
    assert wants_sha256([each.encode("latin-1") for each in values]) in (None, True, False)


@pytest.mark.parametrize(
    ("name", "end"),
    [(b"a b", b"  a b\n"), (b"a\\b", b"  a\\\\b\n"), (b"a\nb\r", b"  a\\nb\\r\n"), (b"\xff", b"  \xff\n")],
)
def test_a_line_has_the_name_as_sha256sum_reads_it(name: bytes, end: bytes) -> None:
    digest = hashlib.sha256(b"x").digest()
    line = checksum_line(digest, name)
    assert line.removeprefix(b"\\") == digest.hex().encode() + end
    assert line.startswith(b"\\") == (b"\\" in end)


class Threads(Clock):
    """A reactor whose threads run when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Callable[[], object]] = []

    def callInThread(self, function: Callable[..., object], *arguments: Any) -> None:
        self.reads.append(lambda: function(*arguments))

    def callFromThread(self, function: Callable[..., object], *arguments: Any) -> None:
        function(*arguments)

    def run(self) -> None:
        self.reads.pop(0)()


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reactor = Threads()
        self.ahead = 0
        self.digests = Digests(self.reactor, lambda: time.time_ns() + self.ahead)
        self.answers: list[tuple[str, bytes | None]] = []

    def ask(self, name: str, content: bytes = b"content", client: str | None = None) -> Callable[[], None]:
        path = self.directory / name
        if not path.exists():
            path.write_bytes(content)
        file = self.open(name)
        try:
            return self.digests.ask(file, client, lambda digest: self.answers.append((name, digest)))
        finally:
            file.close()

    def open(self, name: str) -> OpenFile:
        descriptor = os.open(self.directory / name, os.O_RDONLY)
        status = os.fstat(descriptor)
        return OpenFile(descriptor, status.st_size, lambda _: None, lambda _: None, status.st_mtime_ns)

    def known(self, name: str) -> bytes | None:
        file = self.open(name)
        try:
            return self.digests.known(file)
        finally:
            file.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.digests.close()
    while made.reactor.reads:
        made.reactor.run()
    assert made.reactor.getDelayedCalls() == []
    assert open_below(tmp_path) == []


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_a_digest_is_computed_in_a_thread_and_remembered(bench: Bench) -> None:
    bench.ask("f")
    assert bench.known("f") is None
    # No change within the clock's tick can go unnoticed.
    assert bench.reactor.reads == []
    bench.reactor.advance(1)
    bench.reactor.run()
    assert bench.answers == [("f", digest_of(b"content"))]
    assert bench.known("f") == digest_of(b"content")
    (bench.directory / "f").write_bytes(b"another")
    assert bench.known("f") is None


def test_a_file_that_has_not_changed_for_long_is_read_at_once(bench: Bench) -> None:
    bench.ahead = 10**10
    bench.ask("f")
    bench.reactor.advance(0)
    bench.reactor.run()
    assert bench.answers == [("f", digest_of(b"content"))]


def test_several_who_ask_for_one_content_wait_for_one_reading(bench: Bench) -> None:
    withdraw = bench.ask("f")
    bench.ask("f")
    withdraw()
    withdraw()
    bench.reactor.advance(1)
    assert len(bench.reactor.reads) == 1
    bench.reactor.run()
    assert [name for name, _ in bench.answers] == ["f"]


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("size", [0, 5, 7, 20])
def test_a_file_that_changes_has_no_digest(bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str, size: int) -> None:
    monkeypatch.setattr(files_digest, "TURN", 5)
    monkeypatch.setattr(files_digest, "PIECE", 5)
    bench.ask("f")
    bench.reactor.advance(1)
    if when == "between":
        bench.reactor.run()
    (bench.directory / "f").write_bytes(b"C" * size)
    while bench.reactor.reads:
        bench.reactor.run()
    assert bench.answers == [("f", None)]
    assert bench.known("f") is None


def test_large_files_take_turns_with_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_digest, "TURN", 4)
    monkeypatch.setattr(files_digest, "PIECE", 2)
    for number in range(THREADS):
        bench.ask(f"large{number}", b"x" * 100)
    bench.ask("small", b"x")
    bench.reactor.advance(1)
    for _ in range(2 * THREADS + 1):
        bench.reactor.run()
    assert [name for name, _ in bench.answers] == ["small"]
    while bench.reactor.reads:
        assert len(bench.reactor.reads) <= THREADS
        bench.reactor.run()
    assert {digest for name, digest in bench.answers if name != "small"} == {digest_of(b"x" * 100)}


def test_a_file_that_nobody_waits_for_is_read_no_further(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_digest, "TURN", 4)
    monkeypatch.setattr(files_digest, "PIECE", 2)
    withdraw = bench.ask("f")
    bench.reactor.advance(1)
    bench.reactor.run()
    withdraw()
    while bench.reactor.reads:
        bench.reactor.run()
    assert bench.answers == []
    assert open_below(bench.directory) == []


def test_files_are_limited_in_number_and_for_each_client(bench: Bench) -> None:
    for number in range(MOST_OF_A_CLIENT):
        bench.ask(f"a{number}", client="a")
    with pytest.raises(FileBusyError):
        bench.ask("more", client="a")
    for number in range(MOST_FILES - MOST_OF_A_CLIENT):
        bench.ask(f"b{number}")
    with pytest.raises(FileBusyError):
        bench.ask("more")
    # What is being read is not one more.
    bench.ask("b0")
    bench.reactor.advance(1)
    while bench.reactor.reads:
        bench.reactor.run()
    bench.ask("more", client="a")
    assert len(bench.answers) == MOST_FILES + 1


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilesSite]:
    made = FilesSite(tmp_path, precompressed=True)
    made.write("f.txt", b"0123456789")
    made.write("f.txt.gz", b"gzipped")
    yield made
    made.factory.close()
    assert made.core.downloads == 0
    made.core.stop()
    assert made.clock.getDelayedCalls() == []
    assert open_below(tmp_path) == []


CONTENT = b"0123456789"


def asked(site: FilesSite, target: str, method: str = "GET", **headers: str) -> Transport:
    transport = site.send(request(target, method, headers=headers))
    # For the tick, and for a thread.
    for _ in range(4):
        site.clock.advance(0.5)
    return transport


def header_of(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest_of(content)).decode()}:"


def test_the_digest_is_a_line_for_sha256sum_or_json(site: FilesSite) -> None:
    [reply] = read_replies(asked(site, "/f.txt?sha256").value())
    assert (reply.code, reply.body) == (200, f"{digest_of(CONTENT).hex()}  f.txt\n".encode())
    # Of the file as it is, whatever the client accepts.
    for target, headers in (("/f.txt?json&sha256", {}), ("/f.txt?sha256", {"Accept": "application/json"})):
        [reply] = read_replies(asked(site, target, Accept_Encoding="gzip", **headers).value())
        assert reply.json == {"name": "f.txt", "sha256": digest_of(CONTENT).hex(), "size": 10}
    assert site.results[0] == ("f.txt", 0, "checksum", "GET", 200)
    assert site.ask("/missing?sha256").code == 404
    assert site.ask("/?sha256").code == 404
    # Another parameter.
    assert site.ask("/f.txt?xsha256=1").body == CONTENT


def test_a_digest_that_is_known_is_sent_with_the_file_and_its_parts(site: FilesSite) -> None:
    assert "repr-digest" not in site.ask("/f.txt").headers
    asked(site, "/f.txt?sha256")
    for _ in range(2):
        assert site.ask("/f.txt").headers["repr-digest"] == header_of(CONTENT)
    assert site.ask("/f.txt", "HEAD").headers["repr-digest"] == header_of(CONTENT)
    part = site.ask("/f.txt", Range="bytes=1-2")
    assert (part.code, part.headers["repr-digest"]) == (206, header_of(CONTENT))
    assert "repr-digest" not in site.ask("/f.txt", Want_Repr_Digest="sha-256=0").headers
    assert "repr-digest" not in site.ask("/f.txt", Accept_Encoding="gzip").headers
    site.write("f.txt", b"9876543210")
    assert "repr-digest" not in site.ask("/f.txt").headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_digest_that_is_wanted_is_that_of_what_is_sent(site: FilesSite, method: str) -> None:
    for coding, content in (("gzip", b"gzipped"), ("", CONTENT)):
        answer = asked(site, "/f.txt", method, Want_Repr_Digest="sha-256=1", Accept_Encoding=coding).value()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"\r\nRepr-Digest: {header_of(content)}\r\n".encode() in head + b"\r\n"
        assert body == content * (method == "GET")
    assert [each[2] for each in site.results] == ["sent", "sent"]


def slow(site: FilesSite) -> Threads:
    """Let threads run only when they are told to."""
    threads = Threads()
    threads.rightNow = site.clock.seconds()
    site.core.digests = Digests(threads)
    return threads


def test_an_answer_does_not_wait_long_for_a_digest_but_it_is_known_next_time(site: FilesSite) -> None:
    threads = slow(site)
    site.write("big", pattern(2 * SMALL))
    transport = connect(site.factory, Transport())
    transport.protocol.dataReceived(request("/big", Want_Repr_Digest="sha-256=1"))
    assert transport.value() == b""
    transport.reads_nothing = True
    site.clock.advance(LONGEST_WAIT)
    assert b"200 OK" in transport.value()
    assert b"Repr-Digest" not in transport.value()
    threads.advance(1)
    threads.run()
    assert site.ask("/big").headers["repr-digest"] == header_of(pattern(2 * SMALL))
    producer_of(transport).stopProducing()
    transport.end()


def test_a_client_that_leaves_ends_the_reading(site: FilesSite) -> None:
    threads = slow(site)
    for target, more in (("/f.txt?sha256", {}), ("/f.txt", {"Want_Repr_Digest": "sha-256=1"})):
        transport = site.send(request(target, headers=more))
        threads.advance(1)
        transport.protocol.connectionLost(Failure(ConnectionDone()))
        threads.run()
        assert not site.core.digests.any_known
    assert [each[2:] for each in site.results] == [("client went away", "GET", 0)] * 2


def test_a_file_that_changes_while_it_is_read_is_not_answered(site: FilesSite) -> None:
    threads = slow(site)
    transport = site.send(request("/f.txt?sha256"))
    other = site.send(request("/f.txt", Want_Repr_Digest="sha-256=1"))
    site.write("f.txt", b"9876543210")
    threads.advance(1)
    threads.run()
    [reply] = read_replies(transport.value())
    assert (reply.code, "retry-after" in reply.headers) == (503, True)
    assert b"Repr-Digest" not in other.value()


def test_a_client_that_asks_for_too_much_at_once_is_told_when_to_try_again(site: FilesSite) -> None:
    slow(site)
    for number in range(MOST_OF_A_CLIENT):
        site.write(f"{number}", CONTENT)
        site.send(request(f"/{number}?sha256"))
    reply = site.ask("/f.txt?sha256")
    assert (reply.code, int(reply.headers["retry-after"]) > 0) == (503, True)
    # The file itself does not need it.
    assert site.ask("/f.txt", Want_Repr_Digest="sha-256=1").body == CONTENT
    site.core.digests.close()


def test_a_waiting_answer_gives_its_place_to_another(tmp_path: Path) -> None:
    site = FilesSite(tmp_path, downloads=1, stall=0.1)
    site.write("f", CONTENT)
    slow(site)
    waiting = site.send(request("/f", Want_Repr_Digest="sha-256=1"))
    site.clock.advance(1)
    assert site.ask("/f").body == CONTENT
    [reply] = read_replies(waiting.value())
    assert re.match("503", str(reply.code))
    site.factory.close()
    site.core.stop()
    assert site.clock.getDelayedCalls() == []
