"""Transports of every kind over a pair of sockets, in a reactor whose time is a test's."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet import tcp, unix
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from netsvc.base.bucket import Bucket
from netsvc.guard.bandwidth import ReadAllowance, WriteAllowance
from netsvc.reactor.epoll import NetsvcReactor
from netsvc.reactor.hooks import Door
from netsvc.reactor.streams import PlainTCPPort, PlainUNIXPort, TCPPort, UNIXPort

#: Transports with hooks, and Twisted's own, which are given a layer.
KINDS: dict[str, Callable[..., Any]] = {
    "tcp": PlainTCPPort.transport,
    "unix": PlainUNIXPort.transport,
    "layered tcp": tcp.Server,
    "layered unix": unix.Server,
    "flushed tcp": TCPPort.transport,
    "flushed unix": UNIXPort.transport,
}

#: Rounds of a turn after which a reactor that is still called is one that never rests.
_ROUNDS = 5000


class Loop(Clock, _DisconnectSelectableMixin):
    """A reactor of one test: its time stands still unless told otherwise."""

    _flush_all: Any = NetsvcReactor._flush_all

    def __init__(self) -> None:
        super().__init__()
        self.advance(1000.7)
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.flushes: list[Any] = []

    @property
    def _reads(self) -> set[int]:
        return {each.fileno() for each in self.readers | self.writers}

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def settle(self, outside: Callable[[], bool] = lambda: False) -> None:
        """Turn until nothing is left to do at this time; `outside` does what the peers do, and tells if anything."""
        still = 0
        for _ in range(_ROUNDS):
            moved = outside()
            self.advance(0)
            self._flush_all()
            readable, writable, _ = select.select(self.readers, self.writers, (), 0)
            for ready, method in ((readable, "doRead"), (writable, "doWrite")):
                for each in ready:
                    if each in (self.readers if method == "doRead" else self.writers):
                        why = getattr(each, method)()
                        if why:
                            self._disconnectSelectable(each, why, method == "doRead")
            still = 0 if moved or readable or writable or self.flushes else still + 1
            # What was flushed in the one round, peers see in the next.
            if still == 2:
                return
        raise AssertionError("it never rests")

    def run(self, seconds: float, outside: Callable[[], bool] = lambda: False, step: float = 0.01) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step)):
            self.advance(step)
            self.settle(outside)


class Peer:
    """The far end of a connection: sends all that it is given, and keeps what comes, if it may."""

    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self.socket = own
        self.to_send = b""
        self.sent = 0
        self.received = bytearray()
        self.reads = True
        self.ended = False

    def move(self) -> bool:
        moved = False
        if self.socket.fileno() < 0:
            return False
        try:
            if self.to_send:
                count = self.socket.send(self.to_send[:65536])
                self.to_send = self.to_send[count:]
                self.sent += count
                moved = True
        except BlockingIOError:
            pass
        try:
            if self.reads and not self.ended:
                data = self.socket.recv(1 << 20)
                self.received += data
                self.ended = not data
                moved = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.ended = moved = True
        return moved


class Sink(Protocol):
    """Keeps what comes, chunk by chunk, and what it is told."""

    transport: Any

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.lost = 0

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)

    def connectionLost(self, reason: object = None) -> None:
        self.lost += 1

    @property
    def got(self) -> int:
        return sum(map(len, self.chunks))


class Echo(Sink):
    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.write(data)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Connect two sockets over TCP, so that one end can reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    ours.setblocking(False)
    return ours, theirs


class Limited(Door):
    """Gives a line its protocol, and its transport the limits."""

    def __init__(self, line: Line, read: Sequence[Bucket], write: Sequence[Bucket]) -> None:
        super().__init__(line.protocol, line.loop)
        self._line = line
        self._read, self._write = read, write

    def enter(self, transport: Any) -> None:
        self._line.transport = transport
        if self._read:
            transport.reads = ReadAllowance(transport, self.clock, lambda: self._read)
        if self._write:
            transport.writes = WriteAllowance(transport, self.clock, lambda: self._write)
        super().enter(transport)


class Line:
    """One metered connection, and its peer: over a socketpair, or over TCP."""

    transport: Any

    def __init__(
        self,
        loop: Loop,
        kind: str,
        protocol: Any = None,
        read: Sequence[Bucket] = (),
        write: Sequence[Bucket] = (),
        *,
        pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
    ) -> None:
        self.loop = loop
        ours, theirs = pair()
        self.peer = Peer(theirs)
        self.protocol = protocol or Sink()
        address: Any = "peer" if "unix" in kind else ("192.0.2.1", 4000)
        door = Limited(self, read, write)
        self.lowest = KINDS[kind](ours, door, address, None, 1, loop)
        door.makeConnection(self.lowest)

    def settle(self) -> None:
        self.loop.settle(self.peer.move)

    def run(self, seconds: float, step: float = 0.01) -> None:
        self.loop.run(seconds, self.peer.move, step)

    def reset(self) -> None:
        """Have the peer reset the connection, and wait until the kernel has heard of it."""
        self.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.socket.close()
        heard = select.poll()
        heard.register(self.lowest, 0)
        assert heard.poll(10_000)


def pattern(size: int) -> bytes:
    return (b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]


class Bench:
    """Lines over buckets of one reactor, all closed at the end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.lines: list[Line] = []

    def bucket(self, rate: float, burst: float | None = None) -> Bucket:
        return Bucket(rate, burst or rate, self.loop.seconds())

    def line(
        self, kind: str, protocol: Any = None, read: Any = (), write: Any = (), *, pair: Any = socket.socketpair
    ) -> Line:
        self.lines.append(Line(self.loop, kind, protocol, read, write, pair=pair))
        return self.lines[-1]

    def held(self, bucket: Bucket) -> float:
        """Return the tokens in a bucket."""
        now = self.loop.seconds()
        return bucket.burst - bucket.wait(bucket.burst, now) * bucket.rate

    def close(self) -> None:
        """Close all; nothing may be left in the reactor."""
        for line in self.lines:
            line.peer.socket.close()
            if not line.protocol.lost:
                line.transport.abortConnection()
        self.loop.advance(0)
        assert not self.loop.getDelayedCalls()
        assert not self.loop.readers | self.loop.writers


def benched() -> Iterator[Bench]:
    """Make a bench, and close it. For a fixture."""
    bench = Bench()
    yield bench
    bench.close()


def each_kind(request: pytest.FixtureRequest) -> str:
    """Return the parameter, one of `KINDS`. For a fixture."""
    return str(request.param)
