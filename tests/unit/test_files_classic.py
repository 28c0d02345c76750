"""The classic protocol, over Twisted's TCP transport on a socket of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import formatEvent

from netsvc.services.files.core import PATIENCE, FilesOptions
from netsvc.services.files.download import BLOCK, SMALL
from netsvc.services.files.transport import LINGER
from tests.builders.files import Served, pattern, serve

#: The default.
QUIET: float = FilesOptions()["quiet"]

PEER = "192.0.2.1:54321"


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
        (b"/missing", "no such file"),
        (b"../f", "outside the root"),
        (b"", "not a file name"),
        (b"\0", "not a file name"),
        (b"\xfe\xff", "no such file"),
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
    served.clock.advance(QUIET / 2)
    assert (transport.value(), transport.ended) == (b"", False)
    served.clock.advance(QUIET / 2)
    assert (transport.value(), transport.ended) == (b"content", True)
    assert served.results == [("f", 7, "sent")]


def test_each_segment_begins_the_quiet_moment_anew(served: Served) -> None:
    # `f` alone would be a file as well.
    (served.root / "fully").write_bytes(b"all")
    transport = served.ask(b"f")
    served.clock.advance(QUIET * 0.9)
    transport.feed(b"ul")
    served.clock.advance(QUIET * 0.9)
    transport.feed(b"ly")
    served.clock.advance(QUIET * 0.9)
    assert not transport.ended
    served.clock.advance(QUIET * 0.1)
    assert (transport.value(), transport.ended) == (b"all", True)


def test_a_name_that_is_no_file_yet_may_be_typed_slowly(served: Served) -> None:
    transport = served.connect()
    for byte in b"empt":
        transport.feed(bytes([byte]))
        served.clock.pump([QUIET / 2] * (2 * PATIENCE - 1))
    transport.feed(b"y\n")
    assert transport.ended
    assert served.results == [("empty", 0, "sent")]


def test_a_name_without_an_end_that_stays_no_file_closes_with_no_bytes(served: Served) -> None:
    transport = served.ask(b"empt")
    served.clock.pump([QUIET / 2] * (2 * PATIENCE - 1))
    assert not transport.ended
    served.clock.pump([QUIET / 2] * 2)
    assert (transport.value(), transport.ended, transport.aborted) == (b"", True, False)
    assert served.results == [("empt", 0, "no such file")]


def test_a_file_that_appears_while_the_rest_of_its_name_is_awaited_is_sent(served: Served) -> None:
    transport = served.ask(b"new")
    served.clock.advance(QUIET)
    (served.root / "new").write_bytes(b"just made")
    served.clock.pump([QUIET] * PATIENCE)
    assert (transport.value(), transport.ended) == (b"just made", True)


def test_a_name_without_an_end_is_not_refused_as_missing_while_the_server_is_busy(served: Served) -> None:
    first = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    served.bench.core._download_limit = 1
    transport = served.ask(b"f")
    served.clock.advance(QUIET)
    assert transport.aborted
    first.take(1 << 30)


def test_what_lies_in_the_socket_when_the_moment_is_over_still_belongs_to_the_name(served: Served) -> None:
    # The reactor was busy: the timer is due and the rest of the name has come, both at once.
    transport = served.ask(b"f")
    (served.root / "full").write_bytes(b"all")
    served.clock.callLater(QUIET, transport.protocol.dataReceived, b"ull")
    served.clock.advance(QUIET)
    served.clock.advance(0)
    assert not transport.ended
    served.clock.advance(QUIET)
    assert transport.value() == b"all"


def test_a_connection_that_asks_for_nothing_logs_nothing(served: Served) -> None:
    half, gone, partly = served.connect(), served.connect(), served.ask(b"f")
    half.half_close()
    gone.lose()
    partly.lose()
    served.clock.advance(10)
    assert (half.value(), half.ended, half.connected) == (b"", True, 0)
    assert served.events == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
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
