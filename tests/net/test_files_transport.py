"""What is written to a socket directly comes whole, in order, and its end is told as ever."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock, StringTransport
from zope.interface import implementer

from netsvc.services.files.transport import half_close, write


@implementer(IHalfCloseableProtocol)
class Told(Protocol):
    """Counts the ends of its own direction."""

    ended = 0

    def readConnectionLost(self) -> None:
        raise AssertionError("nobody has closed")

    def writeConnectionLost(self) -> None:
        self.ended += 1


class Line:
    """Twisted's transport on one end of a real pair of sockets, in a reactor that never turns."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.reactor = MemoryReactorClock()
        self.protocol = Told()
        self.transport: Any = Server(ours, self.protocol, ("192.0.2.1", 1), None, 0, self.reactor)  # type: ignore
        self.protocol.makeConnection(self.transport)

    def received(self) -> bytes | None:
        """Read what there is; None for nothing at all, and b"" for the end."""
        try:
            return self.peer.recv(1 << 20)
        except BlockingIOError:
            return None

    @property
    def writing(self) -> bool:
        return self.transport in self.reactor.writers


@pytest.fixture
def line() -> Iterator[Line]:
    opened = Line()
    yield opened
    opened.peer.close()
    opened.transport.abortConnection()
    opened.reactor.advance(0)


@pytest.mark.parametrize("more", [False, True])
def test_bytes_leave_at_once_and_nothing_waits(line: Line, more: bool) -> None:
    write(line.transport, b"content", more=more)
    assert line.received() == b"content"
    assert not line.writing


def test_nothing_written_sends_nothing(line: Line) -> None:
    write(line.transport, b"")
    assert line.received() is None
    assert not line.writing


def test_bytes_do_not_overtake_those_that_wait(line: Line) -> None:
    line.transport.write(b"first, ")
    write(line.transport, b"second")
    assert line.received() is None
    assert line.transport.doWrite() is None
    assert line.received() == b"first, second"


def test_what_the_kernel_does_not_take_waits_for_it(line: Line) -> None:
    data = bytes(range(256)) * 4096
    write(line.transport, data, more=True)
    assert not half_close(line.transport)
    line.transport.loseWriteConnection()
    received = bytearray()
    while line.writing:
        received += line.received() or b""
        assert line.transport.doWrite() is None
        assert line.protocol.ended == (not line.writing)
    while chunk := line.received():
        received += chunk
    assert (bytes(received), chunk) == (data, b"")


@pytest.mark.parametrize("closing", ["connected", "producer"])
def test_a_transport_that_is_not_free_is_written_to_as_ever(line: Line, closing: str) -> None:
    if closing == "connected":
        line.transport.connected = 0
    else:
        line.transport.registerProducer(StringTransport(), True)
    write(line.transport, b"content")
    assert line.received() is None
    line.transport.connected = 1
    line.transport.unregisterProducer()


def test_a_lost_connection_is_found_by_the_transport_and_not_from_inside_the_write(line: Line) -> None:
    line.peer.close()
    write(line.transport, b"content")
    assert line.transport.connected
    assert line.transport.doWrite() is CONNECTION_LOST


def test_a_half_close_with_nothing_left_to_send_is_done_at_once(line: Line) -> None:
    assert half_close(line.transport)
    assert line.received() == b""
    # Whoever closes is told nothing that it does not know.
    assert line.protocol.ended == 0
    line.transport.write(b"too late")
    assert not line.writing


def test_a_half_close_leaves_no_write_behind_that_would_fail(line: Line) -> None:
    line.transport.startWriting()
    assert half_close(line.transport)
    assert not line.writing
    assert line.transport.connected


def test_a_half_close_of_a_lost_connection_is_no_error(line: Line) -> None:
    line.transport.socket.shutdown(socket.SHUT_RDWR)
    line.peer.close()
    with socket.socket() as unconnected:
        # Only a socket that was never connected, or that a reset has disconnected, refuses.
        line.transport.socket, ours = unconnected, line.transport.socket
        assert half_close(line.transport)
        line.transport.socket = ours


@pytest.mark.parametrize("busy", ["written", "producer", "lost", "closing", "closed"])
def test_a_half_close_of_a_transport_that_is_not_free_is_left_to_it(line: Line, busy: str) -> None:
    if busy == "written":
        line.transport.write(b"content")
    elif busy == "producer":
        line.transport.registerProducer(StringTransport(), True)
    elif busy == "lost":
        line.transport.connected = 0
    elif busy == "closing":
        line.transport.loseConnection()
    else:
        assert half_close(line.transport)
        assert line.received() == b""
    assert not half_close(line.transport)
    assert line.received() == (b"" if busy == "closed" else None)
    line.transport.connected = 1
    line.transport.unregisterProducer()


def test_a_connection_that_is_closed_after_a_half_close_closes_without_a_turn(line: Line) -> None:
    half_close(line.transport)
    line.transport.loseConnection()
    assert not line.transport.connected


def test_other_transports_are_written_to_as_they_are_and_not_half_closed() -> None:
    other: Any = StringTransport()
    write(other, b"content", more=True)
    assert other.value() == b"content"
    assert not half_close(other)
