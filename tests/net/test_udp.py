"""Datagram ports: bounded batches, answers that are dropped rather than kept, nothing cut, room for a burst."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import InvalidAddressError, MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from netsvc.datagram import AnsweringFunction
from netsvc.guard import Guard
from netsvc.listen.port import adopt
from netsvc.listen.sockets import bind, bind_unix_datagram
from netsvc.plan.address import parse_address
from netsvc.reactor.datagrams import DATAGRAMS_A_TURN, LONGEST_DATAGRAM, TURNS_A_BURST, UDPPort
from tests.conftest import LoggedErrors

PEER = ("::1", 54321, 0, 7)


class Flooded:
    """A socket that always has one more datagram, up to a number."""

    def __init__(self, waiting: int = 10**6) -> None:
        self.waiting = waiting
        self.sent: list[tuple[bytes, Any]] = []
        self.full: OSError | None = None
        self.reading: OSError = BlockingIOError(errno.EAGAIN, "none")

    def recvfrom(self, _size: int) -> tuple[bytes, Any]:
        if not self.waiting:
            raise self.reading
        self.waiting -= 1
        return b"", PEER

    def sendto(self, data: bytes, address: Any) -> int:
        if self.full:
            raise self.full
        self.sent.append((data, address))
        return len(data)

    def send(self, data: bytes) -> int:
        return self.sendto(data, None)


class Taker(DatagramProtocol):
    """Keeps what comes; `then` is called for each."""

    def __init__(self, then: Callable[[Any, Any], None] = lambda transport, peer: None) -> None:
        self.got: list[Any] = []
        self.refused = 0
        self.then = then

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.got.append((data, peer))
        self.then(self.transport, peer)

    def connectionRefused(self) -> None:
        self.refused += 1


def flooded(waiting: int = 10**6, then: Callable[[Any, Any], None] = lambda transport, peer: None) -> Any:
    """A port over such a socket, as if it listened."""
    port: Any = UDPPort(0, Taker(then), "::")
    port.protocol.transport = port
    port.clock = Clock()
    port.turn_clock = port.clock.seconds
    port.socket = Flooded(waiting)
    port.connected = 1
    port._cuts_address = True
    return port


def test_a_flood_of_empty_datagrams_leaves_others_their_turn() -> None:
    port = flooded()
    port.doRead()
    assert port.protocol.got == [(b"", ("::1", 54321))] * DATAGRAMS_A_TURN


@pytest.mark.parametrize("limited", [False, True])
def test_datagrams_that_are_slow_to_serve_leave_others_their_turn(limited: bool) -> None:
    port = flooded(then=lambda transport, peer: clock.advance(0.0002))
    clock = port.clock
    if limited:
        port.sessions = Guard(clock).sessions("x udp")
    port.doRead()
    # 5 fit into a turn; it looks at the clock now and then.
    assert 5 <= len(port.protocol.got) <= 8
    # Before it closes, all is read.
    port.socket.waiting = 1000
    port.protocol.got.clear()
    port.read_waiting()
    assert len(port.protocol.got) == 1000
    if limited:
        port.sessions.close()


def test_what_waits_is_read_and_no_more() -> None:
    port = flooded(3)
    port.doRead()
    port.doRead()
    assert len(port.protocol.got) == 3


def test_before_a_port_closes_a_whole_burst_is_read_and_an_endless_one_is_not() -> None:
    port = flooded(3 * DATAGRAMS_A_TURN + 1)
    port.read_waiting()
    assert port.socket.waiting == 0
    port = flooded()
    port.read_waiting()
    assert len(port.protocol.got) == TURNS_A_BURST * DATAGRAMS_A_TURN
    port.connected = 0
    port.read_waiting()
    assert len(port.protocol.got) == TURNS_A_BURST * DATAGRAMS_A_TURN


def test_a_port_that_its_protocol_closed_is_not_read() -> None:
    def close(transport: Any, _peer: Any) -> None:
        transport.connected = 0

    port = flooded(10, close)
    port.doRead()
    assert len(port.protocol.got) == 1


def _failing() -> Any:
    def fail(_transport: Any, _peer: Any) -> None:
        raise ValueError("no")

    return flooded(3, fail)


def test_a_fault_costs_one_datagram_and_is_logged_as_twisted_does(logged_errors: LoggedErrors) -> None:
    port = _failing()
    port.doRead()
    assert len(port.protocol.got) == len(logged_errors.flush(ValueError)) == 3


def test_under_limits_faults_are_logged_once_a_second(logged_errors: LoggedErrors) -> None:
    port = _failing()
    port.reactor = clock = Clock()
    port.sessions = Guard(clock).sessions("x udp")
    port.doRead()
    assert len(port.protocol.got) == 3
    assert len(logged_errors.flush(ValueError)) == 1
    clock.advance(1)
    port.socket.waiting = 1
    with capturedLogs() as events:
        port.doRead()
    assert len(logged_errors.flush(ValueError)) == 1
    assert formatEvent(events[0]) == "x udp [::1]:54321 failed (2 more before it)"
    assert port.sessions.gate.tally.counts.errors == 4
    port.sessions.close()


def test_a_coroutine_that_fails_later_is_logged_as_the_port_s(logged_errors: LoggedErrors) -> None:
    waits: list[Deferred[None]] = []

    async def answer(data: bytes, peer: Any) -> None:
        waits.append(Deferred())
        await waits[-1]
        int(data)

    port = flooded(2, lambda *_: None)
    port.reactor = clock = Clock()
    guard = Guard(clock)
    guard.faults.debug = True
    port.sessions = guard.sessions("x udp")
    port.protocol = AnsweringFunction(answer)
    port.protocol._refused_ports = set()
    port.protocol.transport = port
    port.doRead()
    with capturedLogs() as events:
        for each in waits:
            each.callback(None)
    assert len(logged_errors.flush(ValueError)) == 1
    assert [event["place"] for event in events] == ["[::1]:54321"]
    assert "; received 0 bytes: " in formatEvent(events[0])
    assert port.sessions.gate.tally.counts.errors == 2
    port.sessions.close()


def test_an_answer_goes_to_the_address_as_it_came_scope_included() -> None:
    port = flooded(1, lambda transport, peer: transport.write(b"answer", peer))
    port.doRead()
    assert port.socket.sent == [(b"answer", PEER)]
    port.write(b"other", ("::2", 1))
    assert port.socket.sent[1:] == [(b"other", ("::2", 1))]


@pytest.mark.parametrize(
    "number",
    [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN],
)
def test_what_finds_no_room_or_no_way_is_dropped_and_counted(number: int) -> None:
    port = flooded(5, lambda transport, peer: transport.write(b"answer", peer))
    port.socket.full = OSError(number, "full")
    port.doRead()
    port.write(b"other", ("::2", 1))
    assert (port.dropped, port.socket.sent) == (6, [])


def test_other_failures_are_told_as_twisted_tells_them() -> None:
    port = flooded(0)
    port._peer, port._whole_peer = peer, _ = ("::1", 1), ("::1", 1, 0, 0)
    port.socket.full = OSError(errno.EMSGSIZE, "long")
    for address in (peer, ("::2", 2)):
        with pytest.raises(MessageLengthError):
            port.write(b"long", address)
    for number in (errno.EBADF, errno.EACCES):
        port.socket.full = OSError(number, "bad")
        with pytest.raises(OSError, match="bad"):
            port.write(b"x", ("::2", 2))
    port.socket.full = OSError(errno.EBADF, "bad")
    with pytest.raises(OSError, match="bad"):
        port.write(b"x", peer)
    with pytest.raises(InvalidAddressError):
        port.write(b"x", ("localhost", 1))
    assert port.dropped == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EDESTADDRREQ])
def test_an_answer_to_where_nothing_can_go_is_dropped(number: int) -> None:
    port = flooded(1, lambda transport, peer: transport.write(b"answer", peer))
    port.socket.full = OSError(number, "nowhere")
    port.doRead()
    assert (len(port.protocol.got), port.dropped) == (1, 1)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_what_became_of_a_datagram_sent_before_is_no_news(number: int) -> None:
    port = flooded(0)
    port.socket.reading = OSError(number, "far away")
    with capturedLogs() as events:
        port.doRead()
    assert not events
    port.socket.waiting = 1
    port.doRead()
    assert len(port.protocol.got) == 1


def test_trouble_that_nobody_knows_is_told_of_once_a_minute_and_the_port_goes_on() -> None:
    port = flooded(0)
    port.reactor = clock = Clock()
    port.getHost = lambda: "here"
    port.socket.reading = OSError(errno.EIO, "strange")
    lines = []
    for _ in range(120):
        with capturedLogs() as events:
            port.doRead()
        lines += [formatEvent(event) for event in events]
        clock.advance(1)
    assert lines == ["datagrams cannot be read at here: strange"] * 2


def test_a_connected_port_hears_of_a_refusal_and_another_does_not() -> None:
    port = flooded(0)
    port.socket.reading = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    port.doRead()
    assert port.protocol.refused == 0
    port._connectedAddr = ("::1", 1)
    port.doRead()
    assert port.protocol.refused == 1
    port.write(b"x")
    assert port.socket.sent == [(b"x", None)]
    port.socket.reading = OSError(errno.EBADF, "bad")
    with pytest.raises(OSError, match="bad"):
        port.doRead()


@pytest.fixture
def real() -> Iterator[Any]:
    from twisted.internet import reactor

    port: Any = adopt(reactor, bind(parse_address("127.0.0.1:0", "datagram")), Taker())
    yield port
    port.stopReading()
    port.connectionLost()


def test_netsvc_s_own_sockets_are_such_ports_on_every_reactor(real: Any) -> None:
    assert isinstance(real, UDPPort)
    assert real.maxPacketSize == LONGEST_DATAGRAM


def test_a_burst_fits_and_the_longest_datagram_is_whole(real: Any) -> None:
    room = real.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked,
    ):
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        assert room >= asked.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        plain.sendto(bytes(65507), real.socket.getsockname())
    real.doRead()
    assert [len(data) for data, _ in real.protocol.got] == [65507]


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Any]:
    from twisted.internet import reactor

    answering = Taker(lambda transport, peer: transport.write(b"answer", peer))
    port: Any = adopt(reactor, bind_unix_datagram(str(tmp_path / "s"), 0o600), answering)
    yield port
    port.stopReading()
    port.connectionLost()


def test_a_unix_peer_that_is_gone_or_does_not_read_costs_its_answers_alone(unix: Any, tmp_path: Path) -> None:
    unix.sessions = Guard(unix.reactor).sessions("x udp")
    place = str(tmp_path / "peer")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(place)
        # No answer is longer than what it answers.
        peer.sendto(bytes(6), unix.port)
    unix.doRead()
    assert (len(unix.protocol.got), unix.dropped) == (1, 1)
    os.unlink(place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(place)
        # It answers one, and the kernel keeps so many for one who reads none.
        peer.sendto(b"x" * 60_000, unix.port)
        unix.doRead()
        for _ in range(5000):
            unix.write(b"x", place)
        assert unix.dropped > 1
        unix.sessions.close()
        unix.sessions = None
        with pytest.raises(MessageLengthError):
            unix.write(bytes(1 << 22), place)
    os.unlink(place)
    with pytest.raises(FileNotFoundError):
        unix.write(b"x", str(tmp_path / "nobody"))
