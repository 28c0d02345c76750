"""A tree of Twisted services with the guard around its ports, and connections to them."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection

from netsvc.embedded.tree import Ports, surround
from netsvc.guard import Guard
from netsvc.guard.admission import Level

PEER = IPv4Address("TCP", "192.0.2.7", 4000)


class Echo(DatagramProtocol):
    """Answers with what it got, twice."""

    transport: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)
        self.transport.write(datagram, addr)


class Broken:
    """An endpoint that cannot listen, or cannot yet."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.waiting: Deferred[Any] = Deferred()

    def listen(self, factory: Any) -> Deferred[Any]:
        return fail(self.error) if self.error else self.waiting

    connect = listen


def surrounded(service: Any, limits: dict[str, Any] | None = None, on: Any = None) -> Ports:
    """Put a guard around a tree on a reactor in memory."""
    on = on or MemoryReactorClock()
    guard = Guard(on)
    ports = Ports(guard, "acme", Level("acme", limits or {}, guard.clock), on)
    surround(service, ports)
    return ports


def connect(factory: Any, peer: IPv4Address = PEER) -> StringTransportWithDisconnection:
    """Let a connection come; a transport that is disconnecting was refused."""
    protocol = factory.buildProtocol(peer)
    transport = StringTransportWithDisconnection(peerAddress=peer)
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return transport


def is_refused(transport: StringTransportWithDisconnection) -> bool:
    return bool(transport.disconnecting or transport.disconnected or not transport.connected)
