"""A message over the limit of a protocol is logged with the limit and the cure, however many peers send one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress

from netsvc.coroutine import Stream
from netsvc.service import Service
from netsvc.stream import LineProtocol
from netsvc.testing import serve
from tests.builders.facts import states
from tests.builders.logs import Lines, collected


class Short(LineProtocol):
    longest = 5

    def line_received(self, line: bytes) -> None:
        self.transport.write(line)


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield from collected()


def reads(reading: Callable[[Stream], Awaitable[Any]]) -> Service:
    async def read(stream: Stream) -> None:
        await reading(stream)

    return Service("one", "Reads once", streams={"tcp": read})


LIMITED = {
    "line": (reads(lambda stream: stream.read_line(5)), b"123456\n", 5, "the service's limit"),
    "default": (reads(lambda stream: stream.read_line()), b"x" * 8194, 8192, "the service's limit"),
    "delimiter": (reads(lambda stream: stream.read_until(b";", 5)), b"123456;", 5, "limit"),
    "frame": (reads(lambda stream: stream.read_frame(2, 5)), b"\x00\x06123456", 5, "limit"),
    "varint": (reads(lambda stream: stream.read_varint_frame(5)), b"\x06123456", 5, "limit"),
    "netstring": (reads(lambda stream: stream.read_netstring(50)), b"51:", 50, "limit"),
    "class": (Service("one", "Lines", streams={"tcp": Short}), b"123456\n", 5, "Short.longest"),
}


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("peer", ["192.0.2.9", "::ffff:192.0.2.9"])
def test_the_line_has_the_peer_the_limit_and_the_cure(name: str, peer: str, lines: Lines) -> None:
    service, data, limit, cure = LIMITED[name]
    client = serve(service).connect(peer=peer)
    client.send(data)
    client.expect_end()
    [line] = lines
    assert states(line, " 192.0.2.9:", str(limit), cure)
    assert (lines.levels, lines.systems) == (["warn"], ["netsvc.one"])


@pytest.mark.parametrize(
    ("reading", "data"),
    [
        (lambda stream: stream.read_netstring(), b"no:"),
        (lambda stream: stream.read_varint_frame(), b"\xff" * 5),
    ],
)
def test_what_no_limit_admits_is_logged_without_a_cure(reading: Any, data: bytes, lines: Lines) -> None:
    serve(reads(reading)).connect().send(data)
    [line] = lines
    assert "192.0.2.1:" in line and "limit" not in line


def test_a_line_a_second_counts_the_others(lines: Lines) -> None:
    served = serve(LIMITED["line"][0])

    def send(count: int) -> None:
        for _ in range(count):
            served.connect().send(b"123456\n")

    send(100)
    assert len(lines) == 1
    served.clock.advance(1)
    send(50)
    assert len(lines) == 2 and "99 more" in lines[-1]
    served.clock.advance(2)
    send(1)
    assert len(lines) == 3 and "49 more" in lines[-1]


def test_what_the_protocol_handles_itself_is_not_logged(lines: Lines) -> None:
    async def polite(stream: Stream) -> None:
        try:
            await stream.read_line(5)
        except ValueError:
            await stream.write(b"too long\n")

    class Polite(Short):
        def line_too_long(self) -> None:
            self.transport.write(b"too long\n")

    for protocol in (polite, Polite):
        client = serve(Service("one", "Polite", streams={"tcp": protocol})).connect()
        client.send(b"123456\n")
        client.expect(b"too long\n")
    assert lines == []


def test_a_path_of_a_peer_cannot_forge_a_line(lines: Lines) -> None:
    serve(LIMITED["line"][0]).connect(peer=UNIXAddress(b"/run/\x1b[2J\n")).send(b"123456\n")
    [line] = lines
    assert line.isprintable()
