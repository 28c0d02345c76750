"""The network in memory: a reactor whose time the test moves, and transports for streams and datagrams.

The transport and the datagram port are those that netsvc has on any reactor, over sockets in memory: so buffering,
producers, half-close, abort, limits, refused addresses and the order of events are the same as on real ones.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.abstract import isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol, IReactorTime, IReactorUDP
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.reactor.datagrams import BesidePort, UDPPort, UNIXDatagramPort
from netsvc.reactor.streams import PlainTCPPort
from netsvc.testing.frames import shown_at_caller

__all__ = [
    "LONGEST_DATAGRAM",
    "PEER",
    "WINDOW",
    "FakeDatagramTransport",
    "FakeTransport",
    "MemoryReactor",
    "attach",
    "bind_datagrams",
]

#: Bytes. The longest payload of a UDP datagram over IPv4: 65,535 less the IP and UDP headers.
LONGEST_DATAGRAM = 65507
#: Bytes that a peer reads by default: enough for a conversation, and an end for a protocol that sends for ever.
WINDOW = 1024 * 1024
#: The default address of a peer (reserved for documentation), and of a datagram port.
PEER = IPv4Address("TCP", "192.0.2.1", 54321)
HOST = IPv4Address("UDP", "127.0.0.1", 40000)
#: Rounds of reading and writing after which `turn` gives up, and those in which only calls with no delay are made.
TURNS, IDLE_TURNS = 10000, 1000
#: Bytes that a protocol may write to a client that does not read, so that an endless answer ends.
MOST_BUFFERED = 256 * 1024 * 1024


class EndlessError(AssertionError):
    """A protocol does not come to rest."""


@implementer(IReactorTime, IReactorUDP)
class MemoryReactor(MemoryReactorClock):
    """Twisted's `MemoryReactorClock` with datagram sockets, and connections that carry bytes.

    `udpServers` and `unixDatagramServers` record the calls, as `tcpServers` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.udpServers: list[tuple[int, Any, str, int]] = []
        self.unixDatagramServers: list[tuple[str, Any, int, int]] = []
        # An ordered set: the order of events must not depend on object addresses.
        self.connections: dict[FakeTransport, None] = {}
        self._next_port = 40001

    @shown_at_caller
    def advance(self, amount: float) -> None:
        """Let `amount` seconds pass, and deliver what was written meanwhile."""
        self.rightNow += amount
        self.turn()

    def _run_due(self) -> bool:
        """Run the calls that are due, but none that they schedule; return whether there were any."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        due.sort(key=lambda call: call.getTime())
        for call in due:
            # An earlier one may have cancelled or delayed it.
            if call.active() and call.getTime() <= self.seconds():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        return bool(due)

    def turn(self) -> None:
        """Deliver everything that was written, until nothing moves. No time passes."""
        idle = 0
        for _ in range(TURNS):
            ran = self._run_due()
            moving = [connection for connection in self.connections if connection.can_move()]
            idle = 0 if moving else idle + 1
            if not (moving or ran):
                return
            if idle > IDLE_TURNS:
                break
            for connection in moving:
                connection.move()
        raise EndlessError("the service does not come to rest: it goes on for ever with what it was sent")

    def listenUDP(
        self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> FakeDatagramTransport:
        """Bind a datagram protocol; port 0 gets a free one. Returns the transport, which is the port as well."""
        self.udpServers.append((port, protocol, interface, maxPacketSize))
        family = IPv6Address if isIPv6Address(interface) else IPv4Address
        return bind_datagrams(protocol, family("UDP", interface or "0.0.0.0", port or self._free_port()), self)

    def listenUNIXDatagram(
        self, address: str, protocol: Any, maxPacketSize: int = 8192, mode: int = 0o666
    ) -> FakeDatagramTransport:
        """Bind a datagram protocol to a path; no file is made."""
        self.unixDatagramServers.append((address, protocol, maxPacketSize, mode))
        return bind_datagrams(protocol, UNIXAddress(address), self)

    def _free_port(self) -> int:
        self._next_port += 1
        return self._next_port - 1


class _Socket:
    """The memory between a transport and its peer, with the methods of a non-blocking socket."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.arriving = bytearray()
        self.finished = False
        self.received = bytearray()
        self.blocked = False
        self.ended = False
        self.aborted = False
        #: Whether the peer has closed its socket, so that what is sent to it is answered with a reset.
        self.gone = False
        self.options: dict[tuple[int, int], Any] = {}

    def setblocking(self, flag: bool) -> None:
        """Do nothing: memory never blocks."""

    def fileno(self) -> int:
        return -1

    def recv(self, size: int) -> bytes:
        if not self.arriving and not self.finished:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing has come")
        data = bytes(self.arriving[:size])
        del self.arriving[:size]
        return data

    def send(self, data: memoryview, flags: int = 0) -> int:
        if self.gone and data:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        taken = bytes(data[: self.window])
        if data and not taken:
            self.blocked = True
            raise BlockingIOError(errno.EWOULDBLOCK, "the peer does not read")
        self.window -= len(taken)
        self.received += taken
        return len(taken)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if size:
            # What the kernel knows of a connection: nothing.
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return self.options.get((level, option), 0)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.options[level, option] = value
        # Twisted closes an aborted connection with a linger time of nothing, which is what makes it a reset.
        self.aborted = self.aborted or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def shutdown(self, how: int) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True


_Transport: Any = PlainTCPPort.transport


class FakeTransport(_Transport):  # type: ignore[misc]
    """A connection to a stream protocol; its methods also act for the peer.

    The peer sends with `feed`, ends with `half_close`, `close` or `lose`, and reads up to `window` bytes; `value()` is
    what it has received, `ended` and `aborted` are how the connection closed. When a call returns, everything that
    follows from it has happened, except what waits for time. Errors of the protocol are raised by it.
    """

    # As a UNIX socket, it counts its bytes itself.
    counted_by_kernel = False

    def __init__(
        self,
        protocol: IProtocol,
        reactor: MemoryReactor | None = None,
        *,
        peer: IAddress = PEER,
        host: IAddress | None = None,
        window: int = WINDOW,
    ) -> None:
        self._network = reactor or MemoryReactor()
        self._wire = _Socket(window)
        self._place = (peer, host or IPv4Address("TCP", "127.0.0.1", 40000))
        self.server: Any = None
        # Not the base's own, which needs the address of a real socket.
        Connection.__init__(self, cast(Any, self._wire), protocol, cast(Any, self._network))
        self.connected = 1
        self._network.connections[self] = None
        self.startReading()

    def getHost(self) -> IAddress:
        """Return the server's address."""
        return self._place[1]

    def getPeer(self) -> IAddress:
        """Return the peer's address."""
        return self._place[0]

    def keep_socket(self) -> Any:
        """Return None: nothing waits for the peer's acknowledgement in memory."""
        return None

    def write(self, data: bytes) -> None:
        """Write bytes; see `ITransport.write`. Raises `EndlessError` if the peer has too much to read."""
        if self.buffered > MOST_BUFFERED:
            raise EndlessError(f"{self.buffered // 1024**2} MiB are written to a client without a pause")
        super().write(data)

    def _dataReceived(self, data: bytes) -> Any:
        self.received += len(data)
        self.moved_at = self.reactor.seconds()
        return super()._dataReceived(data)

    def writeSomeData(self, data: Any) -> Any:
        """Write once, and count it; see `FileDescriptor.writeSomeData`."""
        sent = super().writeSomeData(data)
        # An exception as the result means that the connection is lost.
        if isinstance(sent, int) and sent > 0:
            self.sent += sent
            self.moved_at = self.reactor.seconds()
        return sent

    def feed(self, data: bytes) -> None:
        """Send `data` as the peer; dropped if the connection is closed."""
        if self.connected:
            self._wire.arriving += data
            self._network.turn()

    def half_close(self, data: bytes = b"") -> None:
        """Send `data` and a FIN as the peer, which still reads."""
        self._wire.arriving += data
        self._wire.finished = True
        self._network.turn()

    def close(self) -> None:
        """End the connection in order as the peer, which reads nothing more."""
        self._wire.gone = True
        self._wire.blocked = False
        self.half_close()

    def lose(self) -> None:
        """Break the connection, as a peer that crashes. Does nothing if it is closed."""
        self.connectionLost(Failure(ConnectionLost()))
        self._network.turn()

    def take(self, count: int) -> None:
        """Let the peer read `count` bytes more."""
        self.window += count

    @property
    def window(self) -> int:
        """How many more bytes the peer reads; it can be set."""
        return self._wire.window

    @window.setter
    def window(self, size: int) -> None:
        self._wire.window = size
        self._wire.blocked = False
        self._network.turn()

    def value(self) -> bytes:
        """Return what the peer has received since the last `clear`."""
        return bytes(self._wire.received)

    def clear(self) -> None:
        """Forget what the peer has received."""
        self._wire.received.clear()

    @property
    def ended(self) -> bool:
        """Whether the peer has seen the end of the stream (a FIN)."""
        return self._wire.ended

    @property
    def aborted(self) -> bool:
        """Whether the peer has seen the connection reset (an RST)."""
        return self._wire.aborted

    @property
    def unsent(self) -> int:
        """How many bytes of the peer the server has not read."""
        return len(self._wire.arriving)

    @property
    def buffered(self) -> int:
        """How many bytes wait in the transport for the peer to read."""
        return int(len(self.dataBuffer) - self.offset + self._tempDataLen)

    @property
    def reading(self) -> bool:
        """Whether the protocol reads, and has not paused."""
        return self in self._network.readers

    def can_move(self) -> bool:
        """Return whether something can be read, or written."""
        return self._readable() or self._writable()

    def _readable(self) -> bool:
        return self.reading and bool(self._wire.arriving or self._wire.finished)

    def _writable(self) -> bool:
        return self in self._network.writers and not self._wire.blocked

    def move(self) -> None:
        """Read and write once, in the order of Twisted's reactors.

        Answers to what is read are written in the next round, because poll() came before the read.
        """
        writable = self._writable()
        try:
            if self._readable():
                self._settle(self.doRead(), reading=True)
            if writable and self._writable():
                self._settle(self.doWrite(), reading=False)
        except BaseException as error:
            # As the reactor does, which then logs it.
            self.stopReading()
            self.stopWriting()
            self.connectionLost(Failure(error))
            raise

    def _settle(self, why: Exception | None, *, reading: bool) -> None:
        # As twisted.internet.posixbase does with the outcome of doRead and doWrite.
        if why is None:
            return
        self.stopReading()
        if reading and isinstance(why, ConnectionDone):
            self.readConnectionLost(Failure(why))
        else:
            self.connectionLost(Failure(why))

    def readConnectionLost(self, reason: Failure) -> None:
        """As Twisted's, which logs an error of the protocol; here it is raised."""
        self._at_end = True
        self.peer_first = not (self.disconnecting or self._writeDisconnected)
        if IHalfCloseableProtocol.providedBy(self.protocol):
            cast(Any, self.protocol).readConnectionLost()
        else:
            self.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Report the loss to the protocol, once."""
        if self in self._network.connections:
            del self._network.connections[self]
            super().connectionLost(reason)


def attach(protocol: IProtocol, reactor: MemoryReactor | None = None, **how: Any) -> FakeTransport:
    """Connect a stream protocol and return its transport. `how`: the keyword arguments of `FakeTransport`."""
    transport = FakeTransport(protocol, reactor, **how)
    protocol.makeConnection(cast(Any, transport))
    transport._network.turn()
    return transport


class _DatagramSocket:
    """The memory between a datagram port and its peers, with the methods of a non-blocking socket."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self.family = socket.AF_INET6 if isinstance(name, tuple) and ":" in name[0] else socket.AF_INET
        self.arriving: deque[tuple[bytes, Any]] = deque()
        self.written: list[tuple[bytes, Any]] = []
        #: Called with each datagram that is sent, and its address.
        self.deliver: Callable[[bytes, Any], object] = lambda data, address: None
        self._options: dict[tuple[int, int], Any] = {}
        self._peer: Any = None

    def getsockname(self) -> Any:
        return self.name

    def fileno(self) -> int:
        return -1

    def dup(self) -> _DatagramSocket:
        return self

    def close(self) -> None:
        """Do nothing: there is no descriptor."""

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        if not self.arriving:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing has come")
        return self.arriving.popleft()

    def sendto(self, data: bytes, address: Any) -> int:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a datagram is bytes, not {type(data).__name__}")
        if not address:
            raise TypeError("a datagram needs an address to go to")
        if isinstance(self.name, tuple) and len(data) > LONGEST_DATAGRAM:
            raise OSError(errno.EMSGSIZE, "Message too long")
        if address[0] == "<broadcast>" and not self._options.get((socket.SOL_SOCKET, socket.SO_BROADCAST)):
            raise OSError(errno.EACCES, "Permission denied")
        self.written.append((bytes(data), address))
        self.deliver(bytes(data), address)
        return len(data)

    def connect(self, address: Any) -> None:
        self._peer = address

    def send(self, data: bytes) -> int:
        return self.sendto(data, self._peer)

    def getsockopt(self, level: int, option: int) -> Any:
        return self._options.get((level, option), 0)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self._options[level, option] = value


class _MemoryPort:
    """What both kinds of `FakeDatagramTransport` add to the real port."""

    protocol: Any
    maxPacketSize: int
    sessions: Any
    reactor: Any
    read_batch: Any
    startListening: Any
    memory: _DatagramSocket

    @property
    def written(self) -> list[tuple[bytes, Any]]:
        """Each sent datagram with its address."""
        return self.memory.written

    def feed(self, data: bytes, address: Any = (PEER.host, PEER.port)) -> None:
        """Deliver a datagram, through the limits if there are any. Without, errors of the protocol are raised."""
        if self.sessions is None:
            self.protocol.datagramReceived(data, address)
        else:
            self.memory.arriving.append((bytes(data), address))
            self.read_batch(math.inf)
        self.reactor.turn()

    def close(self) -> None:
        """Close the port, at once."""
        cast(Any, self).stopListening()
        self.reactor.turn()


class _MemoryUDPPort(_MemoryPort, UDPPort):
    def _bindSocket(self) -> None:
        self.socket = self.memory = _DatagramSocket((self.interface or "0.0.0.0", self.port))
        self._sources = {}
        self._realPortNumber = self.port
        self.connected = 1
        self.fileno = self.socket.fileno  # type: ignore[method-assign]

    def _bind_beside(self, local: tuple[Any, ...], number: int) -> Any:
        if number in {port.getHost().port for port in self.beside}:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        bound = _DatagramSocket((local[0], number or self.reactor._free_port()))
        bound.deliver = self.memory.deliver
        return bound


class _MemoryBesidePort(_MemoryPort, BesidePort):
    def _bindSocket(self) -> None:
        super()._bindSocket()
        self.memory = cast(Any, self.socket)


_MemoryUDPPort.beside_kind = _MemoryBesidePort


class _MemoryUNIXPort(_MemoryPort, UNIXDatagramPort):
    def __init__(self, reactor: Any, path: str, protocol: Any) -> None:
        self.memory = _DatagramSocket(path)
        super().__init__(reactor, cast(Any, self.memory), protocol)


#: A datagram port in memory.
FakeDatagramTransport = _MemoryUDPPort | _MemoryUNIXPort


def bind_datagrams(
    protocol: Any, host: IAddress | None = None, reactor: MemoryReactor | None = None
) -> FakeDatagramTransport:
    """Return the port of a datagram protocol: UDP, or a UNIX socket if `host` is a `UNIXAddress`.

    It is netsvc's own port over a socket in memory. So it refuses what a real one refuses: a datagram that is too long
    (`MessageLengthError`), a host name, and an address of the other IP version (`InvalidAddressError`).
    """
    port = make_port(protocol, host or HOST, reactor or MemoryReactor())
    port.startListening()
    return port


def make_port(protocol: Any, host: Any, reactor: MemoryReactor) -> FakeDatagramTransport:
    """Return a port that does not listen yet."""
    if isinstance(host, UNIXAddress):
        return _MemoryUNIXPort(reactor, os.fsdecode(host.name or b""), protocol)
    return _MemoryUDPPort(host.port, protocol, host.host, reactor=reactor)
