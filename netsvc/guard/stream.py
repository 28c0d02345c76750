"""The guard around every stream protocol: it knows each connection from its first moment to its last.

It stands at admission only. It watches a connection by two attributes of its own on the objects that Twisted
calls anyway, so nothing of it runs when bytes come or go.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, providedBy

from netsvc.guard.bandwidth import Bandwidth
from netsvc.guard.ending import abort
from netsvc.guard.faults import is_fault
from netsvc.guard.gate import Gate
from netsvc.guard.peers import plain_host
from netsvc.guard.tally import next_number
from netsvc.guard.tcp_info import socket_transport
from netsvc.guard.traffic import Counted, Traffic, count, traffic
from netsvc.guard.watch import Watched
from netsvc.limits import in_force

if TYPE_CHECKING:
    from netsvc.guard.guard import Guard

__all__ = ["Connection", "GuardedFactory", "guarded_factory"]

#: Of SO_PEERCRED: process, user and group (unix(7)).
_CREDENTIALS = struct.Struct("3i")


class Connection(Watched):
    """One live connection: which listener took it, from whom, and its transport.

    Below TLS of our own, `transport` is what encrypts: it ends a connection as its peer expects.
    """

    __slots__ = (
        *("bytes_in", "bytes_out", "cause", "gate", "label", "lowest", "number", "peer", "peer_key", "protocol"),
        "transport",
    )

    def __init__(self, label: str, peer: IAddress, protocol: Any, gate: Gate, peer_key: str | None) -> None:
        super().__init__()
        self.number = next_number()
        self.label = label
        self.peer = peer
        self.protocol = protocol
        self.transport: Any = None
        self.gate = gate
        #: Whom the limits count it for; None until that is known.
        self.peer_key = peer_key
        #: The transport that has the socket.
        self.lowest: Any = None
        #: What is in the account of its listener already.
        self.bytes_in = self.bytes_out = 0
        #: Why it is being ended, by whom that is not its service: one of `netsvc.records.REASONS`, and a limit.
        self.cause: tuple[str, str | None] | None = None

    def peer_place(self) -> tuple[str, int | None]:
        """Return where the peer is: an address and a port; or who it is, as far as is known, and None."""
        host, port = _place(self.peer)
        return host or self.peer_key or "", port

    def fail(self, guard: Guard, failure: Failure, what: str = "failed") -> None:
        """Take note of what the protocol has raised."""
        self.cause = self.cause or ("error", None)
        self.gate.tally.counts.errors += 1
        guard.faults.note(self.label, *self.peer_place(), failure, what)

    def look(self, *, in_order: bool = True) -> Traffic:
        """Bring the account of the listener up to date; return what the connection has taken and sent.

        `in_order`: the peer has not broken it off.
        """
        so_far = traffic(self.lowest)
        counts = self.gate.tally.counts
        received = so_far.received - (so_far.closed and in_order)
        # A socket that is gone does not say.
        if received > self.bytes_in:
            counts.bytes_in += received - self.bytes_in
            self.bytes_in = received
        if so_far.sent > self.bytes_out:
            counts.bytes_out += so_far.sent - self.bytes_out
            self.bytes_out = so_far.sent
        return so_far


def _place(address: IAddress) -> tuple[str, int | None]:
    host = getattr(address, "host", None)
    return ("", None) if host is None else (plain_host(host), getattr(address, "port", None))


@implementer(IProtocolFactory)
class GuardedFactory(Factory):
    """Builds the protocols of `factory`, if the limits let them; both can be changed while connections come.

    `envelope` is what stands between the socket and the protocol, TLS say: it makes a factory of a factory. Where
    this factory is `outermost`, right at the port, nothing is built for a connection that is refused.
    """

    noisy = False

    def __init__(self, guard: Guard, factory: IProtocolFactory, label: str, gate: Gate) -> None:
        self.guard = guard
        self.label = label
        self.outermost = False
        self.envelope: Callable[[IProtocolFactory], IProtocolFactory] | None = None
        self._started = False
        self._factory = factory
        self._built: IProtocolFactory | None = None
        self.factory = factory
        self.gate = gate

    @property
    def factory(self) -> IProtocolFactory:
        """The factory whose protocols are built for the next connections."""
        return self._factory

    @factory.setter
    def factory(self, factory: IProtocolFactory) -> None:
        # Twisted's own line for each factory says less than the host's line for each listener.
        if getattr(factory, "noisy", False):
            factory.noisy = False  # type: ignore[attr-defined]
        if self._started:
            factory.doStart()
            self._factory.doStop()
        self._factory = factory
        self._built = None

    @property
    def gate(self) -> Gate:
        """The limits that the next connections are admitted by."""
        return self._gate

    @gate.setter
    def gate(self, gate: Gate) -> None:
        levels = [level.limits for level in gate.levels]
        self._gate = gate
        self.bandwidth = Bandwidth(gate, self.guard.clock)
        self.watched = (in_force(levels, "handshake"), in_force(levels, "idle"), in_force(levels, "life"))

    def doStart(self) -> None:
        """Start the factory; see `IProtocolFactory`."""
        self._started = True
        self._factory.doStart()

    def doStop(self) -> None:
        """Stop the factory; see `IProtocolFactory`."""
        self._started = False
        self._factory.doStop()

    def logPrefix(self) -> str:
        """Return the label."""
        # What Twisted calls the port in its own log lines.
        return self.label

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """Build the protocol of a connection, None or one that closes it if it is refused."""
        host = getattr(addr, "host", None)
        gate = self._gate
        peer: str | None = None
        if host is not None:
            peer = gate.admit(host)
            if peer is None:
                return None if self.outermost else _Refusal()
        built = self._built
        if built is None:
            built = self._built = self.envelope(self._factory) if self.envelope else self._factory
        try:
            protocol: Any = built.buildProtocol(addr)
        except BaseException:  # noqa: BLE001  (of one connection; who comes next may be built)
            where = _place(addr)
            self.guard.faults.note(self.label, *where, Failure(), "could not be given a protocol")
            gate.tally.counts.errors += 1
            if peer is not None:
                gate.leave_unserved(peer, where, "error")
            return None if self.outermost else _Refusal()
        if protocol is None or getattr(protocol, "wrappedProtocol", protocol) is None:
            if peer is not None:
                gate.leave_unserved(peer, _place(addr), "server")
            return _Refusal()
        connection = Connection(self.label, addr, protocol, gate, peer)
        connection.began = self.guard.clock.seconds()
        making = _Making(self, connection, protocol.makeConnection)
        try:
            protocol.makeConnection = making
        except AttributeError:
            connection.protocol = protocol = _Introduction(protocol)
            making.original = protocol.makeConnection
            protocol.makeConnection = making
        return protocol  # type: ignore[no-any-return]


def guarded_factory(factory: Any) -> GuardedFactory | None:
    """Return the guard in what a port has as its factory: TLS or PROXY may stand around it. None if there is none."""
    while factory is not None and not isinstance(factory, GuardedFactory):
        factory = getattr(factory, "wrappedFactory", None) or getattr(factory, "factory", None)
    return factory


class _Refusal(Protocol):
    """Closes a connection that is refused, where something stands around its protocol.

    TLS and PROXY wrap the None that means this, fail at it with a traceback, and leave the connection open.
    """

    transport: Any

    def connectionMade(self) -> None:
        abort(self.transport)


class _Introduction:
    """Stands in for a protocol that takes no attributes (one with __slots__), until it has its transport."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        directlyProvides(self, providedBy(protocol))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def makeConnection(self, transport: Any) -> None:
        # A socket's transport has the one, a TLS or PROXY transport the other. A fake has nobody else to tell.
        _replace(transport, self, self._protocol)
        self._protocol.makeConnection(transport)


def _replace(transport: Any, protocol: Any, other: Any) -> None:
    """Have a transport tell another protocol, wherever it keeps the one."""
    for place in ("protocol", "wrappedProtocol") if hasattr(transport, "connectionLost") else ():
        if getattr(transport, place, None) is protocol:
            setattr(transport, place, other)


class _Making:
    """Replaces one protocol's makeConnection, once: learns the transport, and asks it to tell of the end.

    The transport is asked, rather than the protocol, because a connection may change its protocol (startTLS,
    an HTTP upgrade). A transport without `connectionLost` is a fake in a test; then the protocol is asked.
    """

    __slots__ = ("_connection", "_factory", "original")

    def __init__(self, factory: GuardedFactory, connection: Connection, original: Callable[[Any], None]) -> None:
        self._factory = factory
        self._connection: Connection | None = connection
        self.original = original

    def __del__(self) -> None:
        # What was built and then got no transport, for whatever failed between, is told of nowhere else.
        connection = self._connection
        if connection is not None and connection.peer_key is not None:
            connection.gate.leave_unserved(connection.peer_key, connection.peer_place(), "reset")

    def __call__(self, transport: Any) -> None:
        connection: Any = self._connection
        self._connection = None
        factory = self._factory
        protocol = connection.protocol
        del protocol.makeConnection
        if connection.peer_key is None:
            # Of a UNIX socket's client nothing is known before.
            connection.peer_key = connection.gate.admit(None, _user(transport))
            if connection.peer_key is None:
                refusal = _Refusal()
                _replace(transport, protocol, refusal)
                refusal.makeConnection(transport)
                return
        connection.transport = protocol if isinstance(protocol, TLSMemoryBIOProtocol) else transport
        connection.lowest = socket_transport(transport)
        count(connection.lowest)
        teller = transport if hasattr(transport, "connectionLost") else protocol
        teller.connectionLost = _Losing(factory.guard, connection, teller)
        guard = factory.guard
        guard.live.add(connection)
        guard.watch.add(connection, *factory.watched)
        if factory.bandwidth.limited:
            factory.bandwidth.limit(transport, connection.peer_key)
        if isinstance(transport, HAProxyProtocolWrapper) and IHalfCloseableProtocol.providedBy(protocol):
            _pass_on_half_closes(transport, protocol)
        try:
            self.original(transport)
        except BaseException:  # noqa: BLE001  (what has not begun well cannot go on; others can)
            connection.fail(guard, Failure())
            abort(connection.transport)


def _user(transport: Any) -> str:
    """Name the user at the other end of a UNIX socket, where the system tells."""
    try:
        _, user, _ = _CREDENTIALS.unpack(
            transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    except (AttributeError, OSError, struct.error):
        return ""
    return f"uid {user}"


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
        if self._teller.connectionLost is not self:
            # Twisted may have scheduled the call, to abort, before another way to lose the connection was quicker.
            self._original(*reason)
            return
        # Take the attribute away again: it and the teller refer to each other.
        del self._teller.connectionLost
        guard, connection = self._guard, self._connection
        # Now, for the socket is about to be closed.
        failure = reason[0] if reason else None
        last = connection.look(in_order=failure is None or failure.type is ConnectionDone)
        if failure is not None and is_fault(failure):
            connection.fail(guard, failure)
        cause = connection.cause or (_reason(connection, last, failure), None)
        try:
            self._original(*reason)
        except BaseException:  # noqa: BLE001  (it is lost all the same)
            connection.fail(guard, Failure(), "failed at its end")
        finally:
            guard.live.discard(connection)
            if isinstance(counted := getattr(connection.lowest, "traffic", None), Counted):
                counted.clear()
            gate = connection.gate
            gate.tally.ended(
                connection.peer_place(),
                (connection.bytes_in, connection.bytes_out, None, None),
                max(0.0, guard.clock.seconds() - connection.began),
                cause,
            )
            guard.watch.remove(connection)
            gate.leave(connection.peer_key or "")
            guard.ended()


#: What Twisted's reasons are called, but for an orderly end: who began that?
_REASONS: dict[type, str] = {ConnectionLost: "reset", ConnectionAborted: "abort"}


def _reason(connection: Connection, last: Traffic, failure: Failure | None) -> str:
    """Name why a connection has ended that nobody else has ended; see `netsvc.records.REASONS`."""
    kind: Any = ConnectionDone if failure is None else failure.type
    transport = connection.transport
    if isinstance(transport, TLSMemoryBIOProtocol) and not transport._handshakeDone:
        return "tls"
    if kind is not ConnectionDone:
        return _REASONS.get(kind) or ("reset" if issubclass(kind, OSError | ConnectionClosed) else "error")
    if isinstance(transport, TLSMemoryBIOProtocol):
        # To the farewell of a peer TLS answers with an end, which is the first one at the socket.
        return "server" if transport.disconnecting else "peer"
    if last.peer_first is not None:
        return "peer" if last.peer_first else "server"
    return "server" if getattr(connection.lowest, "disconnecting", False) else "peer"
