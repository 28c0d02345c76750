"""Stands in for the network: a reactor whose time the test moves, and transports to both kinds of protocol.

The stream transport is Twisted's own TCP transport over a socket made of memory, so that buffering, producers,
half-close, abort and the order of events are those of a real connection.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, InvalidAddressError, MessageLengthError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IReactorTime, IReactorUDP, IUDPTransport
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["LONGEST_DATAGRAM", "PEER", "WINDOW", "FakeDatagramTransport", "FakeTransport", "MemoryReactor", "attach"]

#: Bytes. The longest payload of a UDP datagram over IPv4: 65,535 less the IP and UDP headers.
LONGEST_DATAGRAM = 65507
#: Bytes that a peer takes before it stops reading, unless the test says otherwise: enough for a conversation,
#: and an end for a protocol that would send for ever.
WINDOW = 1024 * 1024
#: Where a peer connects from (an address set aside for examples).
PEER = IPv4Address("TCP", "192.0.2.1", 54321)
#: Rounds of reading and writing after which connections that still move are called endless.
TURNS = 10000


@implementer(IReactorTime, IReactorUDP)
class MemoryReactor(MemoryReactorClock):
    """A reactor in memory: `MemoryReactorClock`, datagrams, and connections that really carry bytes.

    `udpServers` and `unixDatagramServers` record what was asked for, as `tcpServers` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.udpServers: list[tuple[int, Any, str, int]] = []
        self.unixDatagramServers: list[tuple[str, Any, int, int]] = []
        # A dict for its order: what happens must not depend on where objects lie in memory.
        self.connections: dict[FakeTransport, None] = {}
        self._next_port = 40001

    def advance(self, amount: float) -> None:
        """Let time pass, in seconds, and carry what was written meanwhile."""
        super().advance(amount)
        self.turn()

    def turn(self) -> None:
        """Carry everything that is on its way, until nothing moves. Time stands still."""
        for _ in range(TURNS):
            super().advance(0)
            moving = [connection for connection in self.connections if connection.can_move()]
            if not moving:
                return
            for connection in moving:
                connection.move()
        raise AssertionError(f"the connections do not come to rest within {TURNS} turns")

    def listenUDP(
        self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> FakeDatagramTransport:
        """Bind a datagram protocol; port 0 gets a free one. Returns the transport, which is the port as well."""
        self.udpServers.append((port, protocol, interface, maxPacketSize))
        family = IPv6Address if isIPv6Address(interface) else IPv4Address
        host = family("UDP", interface or "0.0.0.0", port or self._free_port())
        return FakeDatagramTransport.bind(protocol, host, maxPacketSize)

    def listenUNIXDatagram(
        self, address: str, protocol: Any, maxPacketSize: int = 8192, mode: int = 0o666
    ) -> FakeDatagramTransport:
        """Bind a datagram protocol to a path; no file is made."""
        self.unixDatagramServers.append((address, protocol, maxPacketSize, mode))
        return FakeDatagramTransport.bind(protocol, UNIXAddress(address), maxPacketSize)

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

    def send(self, data: memoryview) -> int:
        taken = bytes(data[: self.window])
        if data and not taken:
            self.blocked = True
            raise BlockingIOError(errno.EWOULDBLOCK, "the peer does not read")
        self.window -= len(taken)
        self.received += taken
        return len(taken)

    def getsockopt(self, level: int, option: int) -> Any:
        return self.options.get((level, option), 0)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.options[level, option] = value
        # Twisted closes an aborted connection with a linger time of nothing, which is what makes it a reset.
        self.aborted = self.aborted or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def shutdown(self, how: int) -> None:
        self.ended = True

    def close(self) -> None:
        """Do nothing: there is no descriptor."""


class FakeTransport(Connection):
    """A connection to a stream protocol, and the peer at its far end in the test's hands.

    The peer sends with `feed`, `half_close` and `lose`, and reads up to `window` bytes, more with `take`; what
    it has got is `value()`. `ended` and `aborted` tell how it saw the connection close. All that follows from
    one of these calls has happened when the call returns, but for what waits for time to pass. An error that
    the protocol raises comes out of the call.
    """

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
        self._peer = peer
        self._host = host or IPv4Address("TCP", "127.0.0.1", 40000)
        super().__init__(cast(Any, self._wire), protocol, cast(Any, self._network))
        self.connected = 1
        self._network.connections[self] = None
        self.startReading()

    def getHost(self) -> IAddress:
        """Return the server's address."""
        return self._host

    def getPeer(self) -> IAddress:
        """Return the peer's address."""
        return self._peer

    def feed(self, data: bytes) -> None:
        """Let the peer send `data`; lost if there is no connection any more."""
        if self.connected:
            self._wire.arriving += data
            self._network.turn()

    def half_close(self, data: bytes = b"") -> None:
        """Let the peer say that it has sent all (a FIN). It still reads. `data` comes together with that."""
        self._wire.arriving += data
        self._wire.finished = True
        self._network.turn()

    def lose(self) -> None:
        """Break the connection, as a peer that crashes does. Does nothing to one that is gone."""
        self.connectionLost(Failure(ConnectionLost()))
        self._network.turn()

    def take(self, count: int) -> None:
        """Let the peer read `count` bytes more than it would have."""
        self._wire.window += count
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
    def buffered(self) -> int:
        """How many bytes wait in the transport for the peer to read."""
        return len(self.dataBuffer) - self.offset + int(self._tempDataLen)

    @property
    def reading(self) -> bool:
        """Whether the protocol lets the peer's bytes come, and has not paused them."""
        return self in self._network.readers

    def can_move(self) -> bool:
        """Tell whether there is something to read that may be read, or to write that the peer takes."""
        return self._readable() or self._writable()

    def _readable(self) -> bool:
        return self.reading and bool(self._wire.arriving or self._wire.finished)

    def _writable(self) -> bool:
        return self in self._network.writers and not self._wire.blocked

    def move(self) -> None:
        """Read and write once, in the order of Twisted's reactors.

        What is read is answered in the next round: poll() had looked before, whether there was anything to write.
        """
        writable = self._writable()
        if self._readable():
            self._settle(self.doRead(), reading=True)
        if writable and self._writable():
            self._settle(self.doWrite(), reading=False)

    def _settle(self, why: Exception | None, *, reading: bool) -> None:
        # As twisted.internet.posixbase does with the outcome of doRead and doWrite.
        if why is None:
            return
        self.stopReading()
        if reading and isinstance(why, ConnectionDone):
            self.readConnectionLost(Failure(why))
        else:
            self.connectionLost(Failure(why))

    def connectionLost(self, reason: Failure) -> None:
        """Tell the protocol, once, that the connection is gone."""
        self._network.connections.pop(self, None)
        super().connectionLost(reason)


def attach(protocol: IProtocol, reactor: MemoryReactor | None = None, **how: Any) -> FakeTransport:
    """Connect a stream protocol and return its transport. `how` is what `FakeTransport` takes."""
    transport = FakeTransport(protocol, reactor, **how)
    protocol.makeConnection(cast(Any, transport))
    transport._network.turn()
    return transport


@implementer(IUDPTransport, IListeningPort)
class FakeDatagramTransport:
    """A bound datagram socket in memory, for UDP or, with a `UNIXAddress`, for a UNIX socket.

    `written` holds each datagram that was sent with its address. What a real socket refuses is refused here: a
    datagram that is too long (`MessageLengthError`), a host name in place of an IP address, an address of the
    other IP version (`InvalidAddressError`). An error that the protocol raises comes out of `feed`.
    """

    def __init__(self, host: IAddress | None = None, max_packet_size: int = 65535) -> None:
        self.written: list[tuple[bytes, Any]] = []
        self.protocol: AbstractDatagramProtocol | None = None
        self._host = host or IPv4Address("UDP", "127.0.0.1", 40000)
        self._max_packet_size = max_packet_size
        self._connected_to: tuple[str, int] | None = None
        self._broadcast = False

    @classmethod
    def bind(cls, protocol: Any, host: IAddress | None = None, max_packet_size: int = 65535) -> FakeDatagramTransport:
        """Make a transport and start a protocol on it."""
        transport = cls(host, max_packet_size)
        transport.protocol = protocol
        transport.startListening()
        return transport

    def feed(self, data: bytes, address: Any = ("192.0.2.1", 54321)) -> None:
        """Let a datagram come. As at a real socket, what exceeds `max_packet_size` is cut off."""
        assert self.protocol is not None, "no protocol listens here"
        self.protocol.datagramReceived(data[: self._max_packet_size], address)

    def write(self, packet: bytes, addr: Any = None) -> None:
        """Send a datagram, to the connected address if none is given."""
        if not isinstance(packet, bytes):
            raise TypeError(f"a datagram is bytes, not {type(packet).__name__}")
        address = addr or self._connected_to
        if not address:
            raise TypeError("a datagram needs an address to go to")
        if not isinstance(self._host, UNIXAddress):
            self._check_address(address[0])
            if len(packet) > LONGEST_DATAGRAM:
                raise MessageLengthError("message too long")
        self.written.append((packet, address))

    def _check_address(self, host: str) -> None:
        version_6 = isinstance(self._host, IPv6Address)
        if not (isIPAddress(host) or isIPv6Address(host) or (host == "<broadcast>" and self._broadcast)):
            raise InvalidAddressError(host, "write() takes IP addresses, not host names")
        if isIPv6Address(host) is not version_6:
            raise InvalidAddressError(host, f"this socket is for IPv{6 if version_6 else 4}")

    def writeSequence(self, packets: Sequence[bytes], addr: Any = None) -> None:
        """Send one datagram made of parts."""
        self.write(b"".join(packets), addr)

    def connect(self, host: str, port: int) -> None:
        """Send everything to one address from now on."""
        self._check_address(host)
        self._connected_to = (host, port)

    def getHost(self) -> Any:
        """Return the address that the socket is bound to."""
        return self._host

    def startListening(self) -> None:
        """Start the protocol."""
        assert self.protocol is not None, "no protocol listens here"
        self.protocol.makeConnection(self)

    def stopListening(self) -> Deferred[None]:
        """Stop the protocol. Does nothing the second time."""
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.doStop()
        return succeed(None)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """Allow or forbid sending to `<broadcast>`."""
        self._broadcast = enabled

    def getBroadcastAllowed(self) -> bool:
        """Tell whether sending to `<broadcast>` is allowed."""
        return self._broadcast
