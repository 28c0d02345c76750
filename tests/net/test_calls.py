"""What an operation costs, without a clock: the Python functions that are called for it, with the default limits.

A bound is what was counted, and a little more for other versions of Python and Twisted. System calls are counted in
`tests/process/test_reactor.py`.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.protocol import Factory

from netsvc.guard import Guard
from netsvc.guard.admission import Level
from netsvc.log.access import AccessLog, RecordLimit
from netsvc.log.formats import TextLines
from netsvc.services.echo import Echo, EchoDatagram
from tests.builders.turned import PATIENCE, Net

#: Operations at once, among which the calls of a turn of the reactor are shared.
MANY = 40


class Served(Net):
    """Echo over the fast reactor, within the default limits and with access records."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard(self.reactor, {})
        self.level = Level("echo", {}, self.reactor)
        self.lines: list[str] = []
        self.log = AccessLog(TextLines().record, self.lines.append, self.reactor)
        self.limit = RecordLimit(self.log.record, self.reactor)
        self.guard.book.record = self.limit.record
        factory = self.guard.wrap(Factory.forProtocol(Echo), "echo tcp", self.level)
        factory.outermost = True
        self.port: Any = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        protocol: Any = EchoDatagram()
        protocol.noisy = False
        protocol.context = SimpleNamespace(own_ports=set())
        self.datagrams: Any = self.reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.datagrams.sessions = self.guard.sessions("echo udp", self.level, port=self.datagrams.getHost().port)
        # A turn ends by its number of datagrams only.
        self.datagrams.turn_clock = float

    def come(self, kind: int, port: Any) -> list[socket.socket]:
        made = []
        for _ in range(MANY):
            peer = socket.socket(type=kind)
            self.peers.append(peer)
            peer.settimeout(PATIENCE)
            peer.connect(("127.0.0.1", port.getHost().port))
            made.append(peer)
        return made

    def close(self) -> None:
        for port in (self.port, self.datagrams):
            port.stopListening()
        for peer in self.peers:
            peer.close()
        self.until(lambda: not self.guard.live)
        self.turn(2)
        self.limit.close()
        self.log.close()
        self.guard.close()
        super().close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def calls(served: Served, done: Callable[[], object]) -> float:
    """Turn the reactor until something is so; return the calls of Python functions for each of `MANY` operations."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        served.until(done)
    finally:
        sys.setprofile(before)
    return count / MANY


def test_a_message(served: Served) -> None:
    peers = served.come(socket.SOCK_STREAM, served.port)
    served.until(lambda: len(served.guard.live) == MANY)
    for peer in peers:
        peer.sendall(b"x" * 64)
    # The protocol and its transport.
    assert calls(served, lambda: all_answered(peers)) <= 4


def test_a_datagram(served: Served) -> None:
    peers = served.come(socket.SOCK_DGRAM, served.datagrams)
    for peer in peers:
        peer.send(b"first")
    served.until(lambda: all_answered(peers))
    for peer in peers:
        assert peer.recv(10) == b"first"
        peer.send(b"x" * 64)
    # The protocol, its answer and the port.
    assert calls(served, lambda: all_answered(peers)) <= 4


def test_a_connection_that_is_admitted_served_recorded_and_closed(served: Served) -> None:
    def serve() -> float:
        for peer in served.come(socket.SOCK_STREAM, served.port):
            peer.sendall(b"x" * 64)
            peer.shutdown(socket.SHUT_WR)
        before = ended(served)
        return calls(served, lambda: ended(served) == before + MANY)

    # The first ones fill caches.
    serve()
    assert serve() <= 90
    served.log.flush()
    assert "".join(served.lines).count("bytes_in=64 bytes_out=64") == 2 * MANY


def ended(served: Served) -> int:
    """Return how many connections have ended."""
    return sum(sum(tally.counts.ended.values()) for tally in served.guard.book.tallies)


def all_answered(peers: list[socket.socket]) -> bool:
    return len(select.select(peers, [], [], 0)[0]) == MANY
