"""A port without room rests: it does not turn anybody away, nor spin, nor take what is left to others."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.task import Clock

from netsvc.accepting import HEADROOM, REST, TELL_INTERVAL, RestingAcceptor, accept_by
from tests.logs import Lines, collected

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


class Port:
    """As much of a port as matters here."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.factory = None
        self.socket: Any = socket.create_server(("127.0.0.1", 0))
        self.startReading()

    def _getLogPrefix(self, _factory: object) -> str:
        return "x tcp"

    def startReading(self) -> None:
        self.reactor.addReader(self)

    def stopReading(self) -> None:
        self.reactor.removeReader(self)

    @property
    def reads(self) -> bool:
        return self in self.reactor.readers


class Peers:
    """Connections that wait at a port."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._open: list[socket.socket] = []

    def come(self, count: int = 1) -> None:
        for _ in range(count):
            self._open.append(socket.create_connection(self._port.socket.getsockname()))

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def port() -> Iterator[Any]:
    made = Port()
    accept_by(made)
    yield made
    made.socket.close()
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


def accepted(port: Port) -> int:
    """Accept as Twisted does; return how many there were."""
    count = 0
    while True:
        try:
            connection, _ = port.socket.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


def failing(port: Port, number: int) -> None:
    """Have the system fail once, and then have nobody there."""
    errors = iter([OSError(number, os.strerror(number))])

    def fail() -> Any:
        raise next(errors, BlockingIOError(errno.EAGAIN, "nobody"))

    port.socket._accept = fail


def test_the_socket_is_replaced_once_and_stays_the_same(port: Any, peers: Peers) -> None:
    before = port.socket
    assert port.fileno() == before.fileno()
    accept_by(port)
    assert port.socket is before
    # What has no socket, as a fake, is left alone.
    accept_by(object())
    peers.come(3)
    assert accepted(port) == 3
    assert port.reads


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
def test_without_room_it_rests_and_looks_again(port: Any, number: int, lines: Lines) -> None:
    failing(port, number)
    assert accepted(port) == 0
    assert not port.reads
    # Twisted asks until there is nobody.
    assert accepted(port) == 0
    port.reactor.advance(REST)
    assert port.reads
    [line] = lines
    assert line.startswith(f"x tcp: connections have to wait: {os.strerror(number).lower()}")
    assert ("ulimit" in line) is (number in (errno.EMFILE, errno.ENFILE))


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH])
def test_a_connection_that_was_lost_before_keeps_nobody_waiting(port: Any, number: int, lines: Lines) -> None:
    failing(port, number)
    with pytest.raises(PermissionError):
        port.socket.accept()
    assert port.reads
    assert lines == []


def test_a_closed_socket_is_told_of_as_what_it_is(port: Any) -> None:
    failing(port, errno.EBADF)
    with pytest.raises(OSError, match="Bad file"):
        port.socket.accept()
    assert port.reads


def test_what_is_left_to_others_is_not_taken_and_room_is_seen(port: Any, peers: Peers, lines: Lines) -> None:
    peers.come(3)
    soft = 16 + max(map(int, os.listdir("/proc/self/fd")))
    held: list[int] = []
    with limited(soft):
        port.socket._ceiling = ceiling = soft - soft // 8
        while next_descriptor() < ceiling:
            held.append(os.dup(0))
        # This one has come already; who comes next has to wait.
        one, _ = port.socket.accept()
        assert accepted(port) == 0
        for _ in range(50):
            port.reactor.advance(REST)
            assert not port.reads
        assert len(lines) == 1
        one.close()
        os.close(held.pop())
        port.reactor.advance(REST)
        assert port.reads
        for descriptor in held:
            os.close(descriptor)
    # That is how many connections there may be again.
    port.socket._ceiling = 1 << 20
    assert accepted(port) == 2


def test_a_process_without_a_descriptor_at_all_waits_for_one(port: Any) -> None:
    failing(port, errno.EMFILE)
    accepted(port)
    with limited(port.fileno()):
        port.reactor.advance(REST)
        assert not port.reads
    port.reactor.advance(REST)
    assert port.reads


def test_those_to_whom_the_last_are_left_may_take_them(port: Any, peers: Peers) -> None:
    accept_by(port, spare=True)
    soft = 16 + max(map(int, os.listdir("/proc/self/fd")))
    peers.come(2)
    with limited(soft):
        held = []
        while next_descriptor() < soft - 1:
            held.append(os.dup(0))
        one, _ = port.socket.accept()
        assert port.reads
        assert one.fileno() == soft - 1
        failing(port, errno.EMFILE)
        accepted(port)
        port.reactor.advance(REST)
        assert not port.reads
        one.close()
        port.reactor.advance(REST)
        assert port.reads
    for descriptor in held:
        os.close(descriptor)


def test_headroom_is_an_eighth_where_there_is_little() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft in (160, 4096) if hard == resource.RLIM_INFINITY or hard >= 4096 else (160,):
        with limited(soft):
            port = Port()
            accept_by(port)
            assert port.socket._ceiling == soft - min(HEADROOM, soft // 8)
            port.socket.close()


def test_who_stops_a_port_that_rests_is_listened_to(port: Any) -> None:
    for wanted in (False, True):
        failing(port, errno.ENOBUFS)
        accepted(port)
        port.stopReading()
        if wanted:
            port.startReading()
        assert not port.reads
        port.reactor.advance(REST)
        assert port.reads is wanted
        assert "startReading" not in vars(port)
        port.startReading()


def test_a_port_that_is_closed_while_it_rests_is_forgotten(port: Any) -> None:
    failing(port, errno.ENOBUFS)
    accepted(port)
    port.socket.close()
    assert not port.reactor.getDelayedCalls()
    assert "startReading" not in vars(port)
    port.socket.close()


def test_that_it_has_no_room_is_told_of_once_a_minute(port: Any, lines: Lines) -> None:
    for _ in range(int(2 * TELL_INTERVAL / REST)):
        failing(port, errno.ENOBUFS)
        accepted(port)
        port.reactor.advance(REST)
    assert 2 <= len(lines) <= 3
    # A clock that is set back does not silence it.
    port.reactor.rightNow = -1e6
    failing(port, errno.ENOBUFS)
    accepted(port)
    assert len(lines) in (3, 4)
    assert isinstance(port.socket, RestingAcceptor)
