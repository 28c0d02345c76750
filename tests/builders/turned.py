"""The fast reactor turned by hand, with connections to blocking sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from netsvc.reactor.epoll import NetsvcReactor

#: Seconds that the peer of a test waits for what must come.
PATIENCE = 60.0


class Counting:
    """Stands before a poller or a socket, and counts the calls of each kind."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return real(*arguments)

        return call


class Wire(Protocol):
    """One connection under test; `received` is what it does with data."""

    received: Callable[[Wire, bytes], None] = staticmethod(lambda wire, data: None)

    def __init__(self) -> None:
        self.reason: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received(self, data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason.type


class Net:
    """A fast reactor that is turned by hand, with connections to blocking sockets."""

    def __init__(self) -> None:
        self.reactor: Any = NetsvcReactor()
        self.poller = self.reactor._poller = Counting(self.reactor._poller)
        self.peers: list[socket.socket] = []
        self.wires: list[Wire] = []

    def connect(self, received: Callable[[Wire, bytes], None] = lambda wire, data: None, *, unix: bool = False) -> Any:
        """Make a connection; return its protocol and the peer's socket."""
        if unix:
            ours, peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                peer = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        peer.settimeout(PATIENCE)
        wire = Wire()
        wire.received = received
        factory = Factory.forProtocol(Wire)
        factory.buildProtocol = lambda address: wire  # type: ignore[method-assign,assignment]
        self.reactor.adoptStreamConnection(ours.fileno(), ours.family, factory)
        ours.close()
        self.peers.append(peer)
        self.wires.append(wire)
        return wire, peer

    def turn(self, count: int = 1) -> None:
        """Do what is due, and one poll that waits for nothing."""
        for _ in range(count):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)

    def until(self, done: Callable[[], object]) -> None:
        """Turn until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline
            self.turn()

    def close(self) -> None:
        for wire in self.wires:
            if wire.reason is None:
                wire.transport.abortConnection()  # type: ignore[union-attr]
        self.turn(2)
        for peer in self.peers:
            peer.close()
        for reader in [*self.reactor._internalReaders]:
            self.reactor._internalReaders.remove(reader)
            self.reactor.removeReader(reader)
            reader.connectionLost(Failure(ConnectionDone()))
        assert self.reactor.flushes == []
        assert self.reactor.removeAll() == []
        assert [wire for wire in self.wires if wire.reason is None] == []


def echo(wire: Wire, data: bytes) -> None:
    wire.transport.write(data)  # type: ignore[union-attr]


def read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        assert more
        data += more
    return data


def shut(reactor: Any) -> None:
    """Close a reactor that was turned by hand, and has nothing to do any more."""
    assert set(reactor.getReaders()) <= reactor._internalReaders
    assert reactor.getWriters() == []
    for reader in list(reactor._internalReaders):
        reactor._internalReaders.remove(reader)
        reactor.removeReader(reader)
        reader.connectionLost(None)
    reactor._poller.close()
