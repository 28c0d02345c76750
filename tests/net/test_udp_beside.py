"""A port that is opened for one conversation is within the limits of the port that it began at."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from netsvc.guard import Guard
from netsvc.interfaces import Context
from netsvc.listen.port import adopt
from netsvc.listen.sockets import bind
from netsvc.plan.address import parse_address
from netsvc.reactor.datagrams import ONE_COUNTED
from tests.builders.processes import PATIENCE


class Conversing(DatagramProtocol):
    """Answers from a port of its own; asked to, in vain, it says so."""

    transport: Any

    def __init__(self, ports: tuple[int, ...]) -> None:
        self.ports = ports
        self.opened: list[Any] = []

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        from twisted.internet import reactor

        try:
            opened = Context(reactor, None).open_datagrams(Answering(), self.transport, peer, self.ports)  # type: ignore[arg-type]
        except CannotListenError:
            self.transport.write(b"none", peer)
        else:
            self.opened.append(opened)
            opened.write(b"here", peer)


class Answering(DatagramProtocol):
    """Answers each datagram, and the end of its port."""

    transport: Any

    def startProtocol(self) -> None:
        self.port = self.transport

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.peer = peer
        self.transport.write(data, peer)

    def stopProtocol(self) -> None:
        if hasattr(self, "peer"):
            self.port.write(b"bye", self.peer)


class Asked:
    """A port in a guard, and its client."""

    def __init__(self, address: str, limits: dict[str, Any] | None = None, ports: tuple[int, ...] = (0,)) -> None:
        from twisted.internet import reactor

        self.protocol = Conversing(ports)
        self.guard = Guard(reactor, limits)
        self.port: Any = adopt(reactor, bind(parse_address(address, "datagram")), self.protocol)
        self.port.sessions = self.sessions = self.guard.sessions("x udp", verified=True)
        self.client = socket.socket(type=socket.SOCK_DGRAM)
        self.client.bind(("127.0.0.1", 0))
        self.client.settimeout(PATIENCE)

    def ask(self, host: str = "127.0.0.1") -> tuple[bytes, tuple[str, int]]:
        self.client.sendto(b"hello", (host, self.port.getHost().port))
        self.port.doRead()
        return self.client.recvfrom(100)

    def close(self) -> None:
        for port in (*self.protocol.opened, self.port):
            if port.connected:
                port.stopReading()
                port.connectionLost()
        self.client.close()
        assert self.guard.live == set()
        assert len(self.sessions) == 0
        self.guard.close()


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> Any:
    made: list[Asked] = []

    def make(*arguments: Any, **named: Any) -> Asked:
        made.append(Asked(*arguments, **named))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Asked]


@pytest.mark.parametrize("address", ["0", "udp:0", "127.0.0.2:0"])
def test_it_has_the_address_that_was_asked(asked: Make, address: str) -> None:
    one = asked(address)
    data, (host, number) = one.ask("127.0.0.2")
    [port] = one.protocol.opened
    assert (data, host, number) == (b"here", "127.0.0.2", port.getHost().port)
    assert port.getHost().host.removeprefix("::ffff:") == "127.0.0.2"
    assert number != one.port.getHost().port


def test_its_datagrams_are_counted_in_the_session_of_the_peer(asked: Make) -> None:
    one = asked("0")
    _, place = one.ask()
    one.client.sendto(b"more", place)
    one.protocol.opened[0].doRead()
    assert one.client.recv(100) == b"more"
    [session] = one.sessions.all()
    assert divmod(session.received, ONE_COUNTED) == (2, 9)
    assert divmod(session.sent, ONE_COUNTED) == (2, 8)


def test_the_first_free_port_is_taken(asked: Make) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other, socket.socket(type=socket.SOCK_DGRAM) as free:
        for each in (other, free):
            each.bind(("127.0.0.1", 0))
        taken, number = other.getsockname()[1], free.getsockname()[1]
        free.close()
        one = asked("127.0.0.1:0", ports=(taken, number))
        assert one.ask() == (b"here", ("127.0.0.1", number))
        assert one.ask()[0] == b"none"


@pytest.mark.parametrize(("limits", "answered"), [({}, 3000), ({"answers": 100}, 100)])
def test_the_limit_on_answers_is_enforced_if_it_was_set(asked: Make, limits: dict[str, Any], answered: int) -> None:
    one = asked("127.0.0.1:0", limits)
    one.ask()
    [port] = one.protocol.opened
    peer = one.client.getsockname()
    sent = [port.write(b"x", peer) for _ in range(3000)]
    # The first answer was one of them. Time passes while they are sent.
    assert answered - 1 <= sum(each is not None for each in sent) <= answered * 2


def test_a_foreign_peer_is_within_the_limits_too(asked: Make) -> None:
    one = asked("127.0.0.1:0", {"deny": ("127.0.0.3",)})
    one.ask()
    [port] = one.protocol.opened
    with socket.socket(type=socket.SOCK_DGRAM) as foreign:
        foreign.bind(("127.0.0.3", 0))
        foreign.sendto(b"x", ("127.0.0.1", port.getHost().port))
        port.doRead()
    assert len(one.sessions) == 1
    assert not hasattr(port.protocol, "peer")


def test_it_is_live_until_it_is_closed(asked: Make) -> None:
    one = asked("0")
    _, place = one.ask()
    [port] = one.protocol.opened
    [live] = one.guard.live
    assert (live.gate, live.transport, live.peer_place()[0]) == (one.sessions.gate, port, "127.0.0.1")
    # The listener is closed first.
    one.port.stopReading()
    one.port.connectionLost()
    one.client.sendto(b"more", place)
    port.doRead()
    assert one.client.recv(100) == b"more"
    ended: list[bool] = []
    one.guard.ended = lambda: ended.append(True)
    port.stopReading()
    port.connectionLost()
    assert one.client.recv(100) == b"bye"
    assert (one.guard.live, ended) == (set(), [True])


def received(peer: socket.socket, count: int) -> list[bytes]:
    return [peer.recv(65536) for _ in range(count)]


@pytest.mark.parametrize("address", ["0", "udp:0"])
@pytest.mark.parametrize("limits", [None, {"write": 9e6}], ids=["free", "paced"])
@pytest.mark.parametrize(
    ("size", "length"), [(100, 250), (100, 300), (100, 7), (1432, 100_000), (10, 1000), (40_000, 90_000)]
)
def test_a_series_of_datagrams_is_sent_and_counted(
    asked: Make, address: str, limits: dict[str, Any] | None, size: int, length: int
) -> None:
    one = asked(address, limits)
    one.ask()
    [port] = one.protocol.opened
    [session] = one.sessions.all()
    before, data = session.sent, bytes(place % 251 for place in range(length))
    pieces = [data[start : start + size] for start in range(0, length, size)]
    assert port.write_series(data, size, session.address) == len(pieces)
    assert received(one.client, len(pieces)) == pieces
    assert divmod(session.sent - before, ONE_COUNTED) == (len(pieces), length)


def test_a_series_is_sent_one_by_one_where_the_system_does_not_take_it(asked: Make) -> None:
    one = asked("127.0.0.1:0")
    one.ask()
    [port] = one.protocol.opened
    failing = port.socket = Failing(port.socket, errno.EINVAL)
    peer = one.sessions.all()[0].address
    for _ in range(2):
        assert port.write_series(b"abc", 2, peer) == 2
        assert received(one.client, 2) == [b"ab", b"c"]
    assert (failing.failed, port.dropped) == (1, 0)


def test_a_series_for_which_there_is_no_room_is_dropped(asked: Make) -> None:
    one = asked("127.0.0.1:0")
    one.ask()
    [port] = one.protocol.opened
    port.socket = Failing(port.socket, errno.EAGAIN)
    [session] = one.sessions.all()
    before = session.sent
    assert port.write_series(b"abc", 2, session.address) == 0
    assert (port.dropped, session.sent) == (1, before)
    assert port._takes_series


class Failing:
    """A socket that sends no series."""

    def __init__(self, real: socket.socket, number: int) -> None:
        self.real, self.number, self.failed = real, number, 0

    def sendmsg(self, *_: Any) -> int:
        self.failed += 1
        raise OSError(self.number, "no")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)
