"""A port without descriptors pauses: it refuses no connection, does not spin, and keeps the reserved ones free."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.listen.quiet import quietly
from netsvc.reactor.accept import ACCEPT_PAUSE, RESERVED_DESCRIPTORS, WARN_INTERVAL, pause_when_full
from netsvc.reactor.hooks import Hooked
from netsvc.reactor.streams import PlainTCPPort
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.conftest import LoggedErrors

lines = pytest.fixture(collected)


class Reactor(Clock):
    """A clock that knows who is read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, writer: Any) -> None:
        """Nothing waits to write."""


class Port(PlainTCPPort):
    """A port whose system can be told to fail."""

    def __init__(self) -> None:
        self.served: list[Any] = []
        factory = Factory.forProtocol(lambda: Serving(self.served))
        factory.noisy = False
        super().__init__(0, factory, interface="127.0.0.1", reactor=Reactor())
        self.errors: list[OSError] = []
        quietly(self.startListening)
        pause_when_full(self)

    def _getLogPrefix(self, _factory: object) -> str:
        return "x tcp"

    def accept(self) -> Any:
        if self.errors:
            raise self.errors.pop()
        return super().accept()

    @property
    def reads(self) -> bool:
        return self in self.reactor.readers

    def close(self) -> None:
        for each in self.served:
            each.connectionLost(Failure(ConnectionDone()))
        if self.connected:
            quietly(self.connectionLost, None)


class Serving(Protocol):
    """Keeps the transports of a port."""

    def __init__(self, served: list[Any]) -> None:
        self._served = served

    def connectionMade(self) -> None:
        self._served.append(self.transport)


class Peers:
    """Connections that wait at a port."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._open: list[socket.socket] = []

    def come(self, count: int = 1) -> None:
        for _ in range(count):
            self._open.append(socket.create_connection(self._port.socket.getsockname()))

    @property
    def first(self) -> socket.socket:
        return self._open[0]

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def port() -> Iterator[Any]:
    made = Port()
    yield made
    made.close()
    assert not made.reactor.getDelayedCalls()


@pytest.fixture
def peers(port: Port) -> Iterator[Peers]:
    made = Peers(port)
    yield made
    made.close()


@contextmanager
def limited(soft: int) -> Iterator[None]:
    """Allow so many descriptors."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def next_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_refused_connection_ends_in_order_unless_the_factory_resets_it(port: Port, peers: Peers) -> None:
    factory: Any = port.factory
    factory.buildProtocol = lambda _addr: None
    peers.come()
    accepted(port)
    assert peers.first.recv(1) == b""
    factory.resets_refused = True
    peers.come()
    accepted(port)
    with pytest.raises(ConnectionResetError):
        peers._open[-1].recv(1)


def accepted(port: Port) -> int:
    """Accept what waits; return how many there were."""
    before = len(port.served)
    port.numberAccepts = 100
    port.doRead()
    return len(port.served) - before


def failing(port: Port, number: int) -> None:
    """Have the system fail once."""
    port.errors.append(OSError(number, os.strerror(number)))


def test_connections_are_served_with_transports_that_have_hooks(port: Any, peers: Peers) -> None:
    peers.come(3)
    assert accepted(port) == 3
    assert all(isinstance(transport, Hooked) for transport in port.served)
    assert port.reads
    # What has no descriptors, as a fake, is left alone.
    pause_when_full(object())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
def test_without_room_it_rests_and_looks_again(port: Any, number: int, lines: Lines) -> None:
    failing(port, number)
    assert accepted(port) == 0
    assert not port.reads
    port.reactor.advance(ACCEPT_PAUSE)
    assert port.reads
    [line] = lines
    assert states(line, "x tcp: ", os.strerror(number).lower())
    assert ("ulimit" in line) is (number in (errno.EMFILE, errno.ENFILE))


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH])
def test_a_connection_that_was_lost_before_keeps_nobody_waiting(
    port: Any, peers: Peers, number: int, lines: Lines
) -> None:
    failing(port, number)
    assert accepted(port) == 0
    assert port.reads
    peers.come(1)
    assert accepted(port) == 1
    assert lines == []


def test_a_closed_socket_is_logged_as_what_it_is(port: Any, logged_errors: LoggedErrors) -> None:
    failing(port, errno.EBADF)
    assert accepted(port) == 0
    assert port.reads
    assert len(logged_errors.flush(OSError)) == 1


def test_a_connection_that_cannot_be_served_keeps_nobody_waiting(
    port: Any, peers: Peers, logged_errors: LoggedErrors
) -> None:
    port.factory.protocol = lambda: 1 / 0
    peers.come(2)
    assert accepted(port) == 0
    assert len(logged_errors.flush(ZeroDivisionError)) == 2
    assert port.reads


def test_what_is_left_to_others_is_not_taken_and_room_is_seen(port: Any, peers: Peers, lines: Lines) -> None:
    peers.come(3)
    soft = 16 + max(map(int, os.listdir("/proc/self/fd")))
    held: list[int] = []
    with limited(soft):
        port._ceiling = ceiling = soft - soft // 8
        while next_descriptor() < ceiling:
            held.append(os.dup(0))
        # This one has come already; the next has to wait.
        assert accepted(port) == 1
        assert not port.reads
        for _ in range(50):
            port.reactor.advance(ACCEPT_PAUSE)
            assert not port.reads
        assert len(lines) == 1
        port.served.pop().connectionLost(Failure(ConnectionDone()))
        os.close(held.pop())
        port.reactor.advance(ACCEPT_PAUSE)
        assert port.reads
        for descriptor in held:
            os.close(descriptor)
    # That is how many connections there may be again.
    port._ceiling = 1 << 20
    assert accepted(port) == 2


def test_a_process_without_a_descriptor_at_all_waits_for_one(port: Any) -> None:
    failing(port, errno.EMFILE)
    accepted(port)
    with limited(port.fileno()):
        port.reactor.advance(ACCEPT_PAUSE)
        assert not port.reads
    port.reactor.advance(ACCEPT_PAUSE)
    assert port.reads


def test_those_to_whom_the_last_are_left_may_take_them(port: Any, peers: Peers) -> None:
    pause_when_full(port, use_reserved=True)
    soft = 16 + max(map(int, os.listdir("/proc/self/fd")))
    peers.come(2)
    with limited(soft):
        held = []
        while next_descriptor() < soft - 1:
            held.append(os.dup(0))
        port.numberAccepts = 1
        port.doRead()
        assert port.reads
        assert port.served[0].fileno() == soft - 1
        failing(port, errno.EMFILE)
        assert accepted(port) == 0
        port.reactor.advance(ACCEPT_PAUSE)
        assert not port.reads
        port.served.pop().connectionLost(Failure(ConnectionDone()))
        port.reactor.advance(ACCEPT_PAUSE)
        assert port.reads
    for descriptor in held:
        os.close(descriptor)


def test_headroom_is_an_eighth_where_there_is_little() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft in (160, 4096) if hard == resource.RLIM_INFINITY or hard >= 4096 else (160,):
        with limited(soft):
            port = Port()
            assert port._ceiling == soft - min(RESERVED_DESCRIPTORS, soft // 8)
            port.close()


def test_who_stops_a_port_that_rests_is_listened_to(port: Any) -> None:
    for wanted in (False, True):
        failing(port, errno.ENOBUFS)
        accepted(port)
        port.stopReading()
        if wanted:
            port.startReading()
        # It tries at once, and pauses again if there is no room yet.
        assert port.reads is wanted
        port.reactor.advance(ACCEPT_PAUSE)
        assert port.reads is wanted
        port.startReading()


def test_a_port_that_is_closed_while_it_rests_is_forgotten(port: Any) -> None:
    failing(port, errno.ENOBUFS)
    accepted(port)
    port.close()
    assert not port.reactor.getDelayedCalls()
    assert not port.reads


def test_that_it_has_no_room_is_told_of_once_a_minute(port: Any, lines: Lines) -> None:
    for _ in range(int(2 * WARN_INTERVAL / ACCEPT_PAUSE)):
        failing(port, errno.ENOBUFS)
        accepted(port)
        port.reactor.advance(ACCEPT_PAUSE)
    assert 2 <= len(lines) <= 3
    # A clock that is set back does not silence it.
    port.reactor.rightNow = -1e6
    failing(port, errno.ENOBUFS)
    accepted(port)
    assert len(lines) in (3, 4)
