"""The guard around every stream protocol: it knows each connection from its first moment to its last.

It stands at admission only. It watches a connection by two attributes of its own on the objects that Twisted
calls anyway, so nothing of it runs when bytes come or go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, providedBy

__all__ = ["Connection", "Guard"]


class Connection:
    """One live connection: which listener took it, from whom, and its transport."""

    __slots__ = ("label", "peer", "protocol", "transport")

    def __init__(self, label: str, peer: IAddress, protocol: Any) -> None:
        self.label = label
        self.peer = peer
        self.protocol = protocol
        self.transport: Any = None


class Guard:
    """Knows all live stream connections of a host."""

    def __init__(self) -> None:
        self.live: set[Connection] = set()
        #: Called after each connection that ends.
        self.ended: Callable[[], None] = lambda: None

    def wrap(self, factory: IProtocolFactory, label: str) -> IProtocolFactory:
        """Return a factory that builds what `factory` builds, watched. `label` names the listener."""
        return _GuardedFactory(self, factory, label)

    def census(self) -> Counter[str]:
        """Count the live connections by label."""
        return Counter(connection.label for connection in self.live)

    def _admit(self, connection: Connection) -> None:
        self.live.add(connection)

    def _forget(self, connection: Connection) -> None:
        self.live.discard(connection)
        self.ended()


@implementer(IProtocolFactory)
class _GuardedFactory(Factory):
    noisy = False

    def __init__(self, guard: Guard, factory: IProtocolFactory, label: str) -> None:
        self._guard = guard
        self._factory = factory
        self._label = label

    def doStart(self) -> None:
        # Twisted's own line for each factory says less than the host's line for each listener.
        if getattr(self._factory, "noisy", False):
            self._factory.noisy = False  # type: ignore[attr-defined]
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def logPrefix(self) -> str:
        # What Twisted calls the port in its own log lines.
        return self._label

    def buildProtocol(self, addr: IAddress) -> IProtocol:  # type: ignore[override]
        protocol: Any = self._factory.buildProtocol(addr)
        if protocol is None:
            return _Refusal()
        connection = Connection(self._label, addr, protocol)
        try:
            protocol.makeConnection = _Making(self._guard, connection, protocol.makeConnection)
        except AttributeError:
            connection.protocol = protocol = _Introduction(protocol)
            protocol.makeConnection = _Making(self._guard, connection, protocol.makeConnection)
        return protocol  # type: ignore[no-any-return]


class _Refusal(Protocol):
    """Closes a connection that a factory refused.

    TLS and PROXY wrap the None that means this, fail at it with a traceback, and leave the connection open.
    """

    transport: Any

    def connectionMade(self) -> None:
        self.transport.loseConnection()


class _Introduction:
    """Stands in for a protocol that takes no attributes (one with __slots__), until it has its transport."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        directlyProvides(self, providedBy(protocol))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def makeConnection(self, transport: Any) -> None:
        # A socket's transport has the one, a TLS or PROXY transport the other. A fake has nobody else to tell.
        for place in ("protocol", "wrappedProtocol") if hasattr(transport, "connectionLost") else ():
            if getattr(transport, place, None) is self:
                setattr(transport, place, self._protocol)
        self._protocol.makeConnection(transport)


class _Making:
    """Replaces one protocol's makeConnection, once: learns the transport, and asks it to tell of the end.

    The transport is asked, rather than the protocol, because a connection may change its protocol (startTLS,
    an HTTP upgrade). A transport without `connectionLost` is a fake in a test; then the protocol is asked.
    """

    __slots__ = ("_connection", "_guard", "_original")

    def __init__(self, guard: Guard, connection: Connection, original: Callable[[Any], None]) -> None:
        self._guard = guard
        self._connection = connection
        self._original = original

    def __call__(self, transport: Any) -> None:
        connection = self._connection
        connection.transport = transport
        del connection.protocol.makeConnection
        teller = transport if hasattr(transport, "connectionLost") else connection.protocol
        teller.connectionLost = _Losing(self._guard, connection, teller)
        self._guard._admit(connection)
        if isinstance(transport, HAProxyProtocolWrapper) and IHalfCloseableProtocol.providedBy(connection.protocol):
            _pass_on_half_closes(transport, connection.protocol)
        self._original(transport)


def _pass_on_half_closes(wrapper: Any, protocol: Any) -> None:
    """Let a protocol behind a PROXY header know of a half-close.

    Twisted's wrapper does not; so to its transport a half-close is the end, and an orderly one: what was not
    sent yet is dropped, and the client takes the part for the whole.
    """
    wrapper.readConnectionLost = protocol.readConnectionLost
    wrapper.writeConnectionLost = protocol.writeConnectionLost
    alsoProvides(wrapper, IHalfCloseableProtocol)


class _Losing:
    """Replaces one connectionLost, once."""

    __slots__ = ("_connection", "_guard", "_original", "_teller")

    def __init__(self, guard: Guard, connection: Connection, teller: Any) -> None:
        self._guard = guard
        self._connection = connection
        self._teller = teller
        self._original = teller.connectionLost

    def __call__(self, *reason: Failure) -> None:
        # Take the attribute away again: it and the teller refer to each other.
        del self._teller.connectionLost
        try:
            self._original(*reason)
        finally:
            self._guard._forget(self._connection)
