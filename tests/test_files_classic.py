"""The classic protocol, over Twisted's TCP transport on a socket of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger, formatEvent

from netsvc.interfaces import Context
from netsvc.services.files.download import BLOCK, SMALL
from netsvc.services.files.farewell import LINGER
from netsvc.services.files.service import service
from netsvc.testing import Bench, FakeTransport, MemoryReactor, build, connect
from tests.test_files_beneath import open_below

PEER = "192.0.2.1:54321"


class Served:
    """A files service over a directory, and what it logged."""

    def __init__(self, root: Path, **options: object) -> None:
        self.root = root
        self.events: list[LogEvent] = []
        log = Logger("netsvc.files", observer=self.events.append)  # type: ignore[arg-type]
        written = {name.replace("_", "-"): value for name, value in options.items()}
        context = Context(MemoryReactor(), log)
        self.bench: Bench = build(service, {"root": str(root), **written}, context=context)
        self.bench.start()
        self.clock = self.bench.clock

    def connect(self, window: int = 1 << 30) -> FakeTransport:
        return connect(self.bench, "classic", window=window)[1]

    def ask(self, data: bytes, **how: int) -> FakeTransport:
        transport = self.connect(**how)
        transport.feed(data)
        return transport

    @property
    def results(self) -> list[tuple[str, int, str]]:
        return [(event["name"], event["size"], event["result"]) for event in self.events]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def serve(directory: Path) -> Iterator[Served]:
    """Serve a few files for a test, and see that nothing is left of it."""
    (directory / "f").write_bytes(b"content")
    (directory / "empty").touch()
    (directory / "文件.txt").write_bytes("内容".encode())
    for size in (SMALL, SMALL + 1, BLOCK, BLOCK + 1, 5 * BLOCK):
        (directory / str(size)).write_bytes(pattern(size))
    one = Served(directory)
    yield one
    for transport in list(one.clock.connections):
        transport.lose()
    one.bench.stop()
    assert one.bench.core.downloads == 0
    assert one.bench.core.waiting == set()
    assert one.clock.getDelayedCalls() == []
    assert open_below(directory) == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_name_is_answered_with_the_file_and_the_end_of_the_stream(served: Served, end: bytes) -> None:
    transport = served.ask(b"f" + end)
    assert (transport.value(), transport.ended, transport.aborted) == (b"content", True, False)
    assert [formatEvent(event) for event in served.events] == [f'{PEER} "f" 7 bytes in 0.000 s: sent']


@pytest.mark.parametrize("size", [SMALL, SMALL + 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_files_of_every_size_are_sent_whole(served: Served, size: int) -> None:
    transport = served.ask(b"%d\n" % size)
    assert transport.value() == pattern(size)
    assert transport.ended
    assert served.results == [(str(size), size, "sent")]


def test_a_name_byte_by_byte_is_the_same_name(served: Served) -> None:
    transport = served.connect()
    for byte in b"f\r\nand more":
        transport.feed(bytes([byte]))
    assert (transport.value(), transport.ended) == (b"content", True)
    assert served.results == [("f", 7, "sent")]


def test_a_legacy_name_gets_the_file_and_is_logged_as_the_file_is_named(served: Served) -> None:
    assert served.ask("文件.txt\n".encode("gbk")).value() == "内容".encode()
    assert served.ask("文件.txt\n".encode()).value() == "内容".encode()
    assert served.results == [("文件.txt", 6, "sent")] * 2


@pytest.mark.parametrize(
    ("name", "result"),
    [
        (b"missing", "no such file"),
        (b".", "not a regular file"),
        (b".hidden", "hidden"),
        (b"/f", "outside the root"),
        (b"../f", "outside the root"),
        (b"f\0", "not a file name"),
        (b"", "not a file name"),
        (b"\xff\xff", "not a file name"),
    ],
)
def test_a_refused_name_closes_with_no_bytes(served: Served, name: bytes, result: str) -> None:
    transport = served.ask(name + b"\n")
    assert (transport.value(), transport.ended, transport.aborted) == (b"", True, False)
    ((_, size, logged),) = served.results
    assert (size, logged) == (0, result)


def test_a_name_over_the_limit_closes_at_once_with_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "12345678").write_bytes(b"fits")
    served = Served(tmp_path, name_limit="8")
    assert served.ask(b"12345678\n").value() == b"fits"
    transport = served.ask(b"123456789")
    assert (transport.value(), transport.ended) == (b"", True)
    assert served.results[1] == ("123456789", 0, "name too long")
    transport.lose()
    served.bench.stop()


def test_a_name_without_an_end_is_complete_after_a_quiet_moment(served: Served) -> None:
    transport = served.ask(b"f")
    served.clock.advance(0.05)
    assert (transport.value(), transport.ended) == (b"", False)
    served.clock.advance(0.05)
    assert (transport.value(), transport.ended) == (b"content", True)
    assert served.results == [("f", 7, "sent")]


def test_each_segment_begins_the_quiet_moment_anew(served: Served) -> None:
    transport = served.ask(b"emp")
    served.clock.advance(0.05)
    transport.feed(b"ty")
    served.clock.advance(0.05)
    assert not transport.ended
    served.clock.advance(0.05)
    assert transport.ended
    assert served.results == [("empty", 0, "sent")]


def test_what_lies_in_the_socket_when_the_moment_is_over_still_belongs_to_the_name(tmp_path: Path) -> None:
    # The reactor was busy: the timer is due and the rest of the name has come, both at once.
    (tmp_path / "empty").write_bytes(b"e")
    served = Served(tmp_path)
    protocol, transport = connect(served.bench, "classic")
    transport.feed(b"emp")
    protocol._fell_quiet()
    protocol.dataReceived(b"ty")
    served.clock.advance(0)
    assert not transport.ended
    served.clock.advance(0.1)
    assert served.results == [("empty", 1, "sent")]
    transport.lose()
    served.bench.stop()


def test_a_connection_that_asks_for_nothing_logs_nothing(served: Served) -> None:
    half, gone, partly = served.connect(), served.connect(), served.ask(b"f")
    half.half_close()
    gone.lose()
    partly.lose()
    served.clock.advance(10)
    assert (half.value(), half.ended, half.connected) == (b"", True, 0)
    assert served.events == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b"f", b"/", b"..", b"\n", b"\r", b"empty"]))))
def test_any_bytes_in_any_pieces_get_a_file_or_nothing(served: Served, pieces: list[bytes]) -> None:
    transport = served.connect()
    for piece in pieces:
        transport.feed(piece)
    transport.half_close()
    assert transport.value() in (b"", b"content", "内容".encode())
    assert not transport.aborted
    served.clock.advance(LINGER)
    assert not transport.connected
    assert len(served.events) <= 1
    served.events.clear()
