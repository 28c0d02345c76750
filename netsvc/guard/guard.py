"""Enforces the limits of a server around every stream connection and datagram port.

The guard tracks each connection from accept to close. It checks the limits on new connections when one is accepted.
After that it uses hooks of the transport (`netsvc.reactor.hooks`); none of its code runs when bytes are transferred.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.hosts import plain_host
from netsvc.guard.admission import Gate, Level
from netsvc.guard.bandwidth import Bandwidth
from netsvc.guard.closing import abort, tls_of
from netsvc.guard.counters import Book, Tally, next_number, split_label
from netsvc.guard.faults import Faults, is_fault
from netsvc.guard.lingering import Lingering
from netsvc.guard.refusals import Refusals
from netsvc.guard.sessions import Sessions
from netsvc.guard.tcp import Traffic, keep_alive, read_traffic
from netsvc.guard.timeouts import Watch, Watched, terms_of
from netsvc.interfaces import Kind
from netsvc.plan.limits import DEFAULTS, Limits, in_force
from netsvc.reactor.accept import AcceptMixin
from netsvc.reactor.hooks import Door

__all__ = ["Connection", "DatagramConversation", "Guard", "GuardedFactory", "guarded_factory"]

#: The result of SO_PEERCRED: process, user and group (unix(7)).
_CREDENTIALS = struct.Struct("3i")


class Guard:
    """The limits of a server, and all of its live stream connections.

    `limits` are the process's, over `DEFAULTS`; `faults` takes the exceptions of protocols. The constructor and
    every method that takes limits raise `UserError` if a network file cannot be read, and then change nothing.
    """

    def __init__(self, clock: Any, limits: Limits | None = None, faults: Faults | None = None) -> None:
        self.live: set[Connection] = set()
        #: Called after each connection that ends.
        self.ended: Callable[[], None] = lambda: None
        self.clock = clock
        self.refusals = Refusals(clock)
        self.faults = faults or Faults(clock)
        self.book = Book()
        self.process = Level("process", limits or {}, clock, DEFAULTS)
        self.watch = Watch(clock, self._end_for_limit, self._report_limit)

    def gate(
        self,
        label: str,
        kind: Kind,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        tally: Tally | None = None,
    ) -> Gate:
        """Create the gate of one listener, with a tally of its own unless `tally` is given."""
        levels = [self.process, *([service] if service else [])]
        if limits:
            levels.append(Level(label, limits, self.clock))
        tally = tally or self.book.open(*split_label(label), kind)
        return Gate(levels, self.refusals, label, kind, self.clock, tally=tally)

    def wrap(
        self,
        factory: IProtocolFactory,
        label: str,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        tally: Tally | None = None,
    ) -> GuardedFactory:
        """Return a factory that builds the protocols of `factory` within the limits. `label` names the listener."""
        return GuardedFactory(self, factory, label, self.gate(label, "stream", service, limits, tally=tally))

    def sessions(
        self,
        label: str,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        verified: bool = False,
        tally: Tally | None = None,
        port: int = 0,
    ) -> Sessions:
        """Create the session table of a datagram port. `verified`: the protocol verifies the addresses of peers.

        `port` is its number, or 0 for a UNIX socket.
        """
        gate = self.gate(label, "datagram", service, limits, tally=tally)
        return Sessions(self.clock, gate, self.faults, verified=verified, port=port, converse=self._converse)

    def _converse(self, gate: Gate, port: Any, peer: tuple[str, int]) -> Callable[[], None]:
        """Count a datagram port that was opened for one peer as live; the returned function ends that."""
        family = IPv6Address if ":" in peer[0] else IPv4Address
        conversation = DatagramConversation(self, family("UDP", *peer), port.protocol, gate, None)
        conversation.transport = conversation.hooks = port
        self.live.add(conversation)
        no_limit = (None, False)
        self.watch.add(conversation, no_limit, no_limit, no_limit)
        return conversation.end

    def close(self) -> None:
        """Log what is pending, reset closed connections that are not acknowledged, and cancel all delayed calls."""
        for connection in [each for each in self.live if each.closed is not None]:
            abort(connection.transport)
        self.watch.close()
        self.refusals.close()

    def _end_for_limit(self, connection: Connection, limit: str) -> None:
        if limit == "keepalive":
            # As when the kernel finds that the peer is gone: it is not a refusal.
            connection.cause = ("reset", None)
            return
        connection.cause = ("limit", limit)
        connection.gate.count_refusal(limit, str(connection.peer_key), ended=True)

    def _report_limit(self, connection: Connection, limit: str) -> None:
        connection.gate.count_refusal(limit, str(connection.peer_key), ended=True, dry=True)


class Connection(Watched):
    """One live connection, the observer of its transport.

    `transport` closes the connection: it is our TLS layer, if there is one. `hooks` is the transport with the hooks.
    """

    __slots__ = (
        *("bytes_in", "bytes_out", "cause", "closed", "gate", "guard", "label", "number", "peer", "peer_key"),
        *("protocol", "transport"),
    )

    def __init__(self, guard: Guard, peer: IAddress, protocol: Any, gate: Gate, peer_key: str | None) -> None:
        self.guard = guard
        self.number = next_number()
        self.label = gate.label
        self.peer = peer
        self.protocol = protocol
        self.transport: Any = None
        self.gate = gate
        #: The key under which limits count the peer; None until it is known.
        self.peer_key = peer_key
        #: The bytes that the listener's counters already include.
        self.bytes_in = self.bytes_out = 0
        #: Why the server ends it, if it does: one of `netsvc.plan.record.REASONS`, and a limit.
        self.cause: tuple[str, str | None] | None = None
        #: The traffic until it was closed, while the peer has not acknowledged everything.
        self.closed: Traffic | None = None

    def peer_place(self) -> tuple[str, int | None]:
        """Return the address and port of the peer; for a UNIX socket the user, if known, and None."""
        host, port = _place(self.peer)
        return host or self.peer_key or "", port

    def fail(self, failure: Failure, what: str = "failed") -> None:
        """Log and count an exception of the protocol."""
        self.cause = self.cause or ("error", None)
        self.gate.tally.counts.errors += 1
        self.guard.faults.note(self.label, *self.peer_place(), failure, what)

    def look(self, *, in_order: bool = True) -> Traffic:
        """Update the counters of the listener; return the traffic of the connection so far.

        `in_order`: the peer has not reset the connection.
        """
        if self.closed is not None:
            return self.closed
        hooks = self.hooks
        if hooks.counted_by_kernel:
            so_far = read_traffic(hooks) or _NO_TRAFFIC
        else:
            so_far = Traffic(hooks.received, hooks.sent, hooks.peer_first)
        counts = self.gate.tally.counts
        received = so_far.received - (so_far.closed and in_order)
        # For a closed socket the kernel reports no counts.
        if received > self.bytes_in:
            counts.bytes_in += received - self.bytes_in
            self.bytes_in = received
        if so_far.sent > self.bytes_out:
            counts.bytes_out += so_far.sent - self.bytes_out
            self.bytes_out = so_far.sent
        return so_far

    def connection_lost(self, reason: Failure, close: Callable[[Failure], None]) -> None:
        """Close the connection, count and record it; see `netsvc.reactor.hooks.Observer`.

        While the peer has not acknowledged everything, the connection stays counted, with its socket.
        """
        hooks = self.hooks
        last = self.look(in_order=reason.type is ConnectionDone)
        if reason.type is not ConnectionDone and is_fault(reason):
            self.fail(reason)
        cause = self.cause or (_reason(self, last, reason), None)
        rest = last if hooks.counted_by_kernel else read_traffic(hooks) or last
        kept = None
        if rest.left and not rest.closed and reason.type is not ConnectionAborted:
            kept = hooks.keep_socket()
        try:
            close(reason)
        except BaseException:  # noqa: BLE001  (it is lost all the same)
            # A protocol that fails in a callback has aborted its connection, and raises the exception now.
            has_failed = cause == _ABORTED
            self.fail(Failure(), "failed" if has_failed else "failed in connectionLost")
            cause = ("error", None) if has_failed else cause
        if kept is None:
            self._end(cause, rest)
            return
        self.closed = last
        self.protocol = None
        self.hooks = self.transport = Lingering(kept, hooks.reactor, partial(self._settled, cause))
        self.guard.watch.linger(self)

    def _settled(self, cause: tuple[str, str | None], last: Traffic, was_reset: bool) -> None:
        """End a closed connection: the peer has acknowledged everything, or it has been reset."""
        if was_reset:
            cause = self.cause or ("stalled", None)
        elif last.left:
            cause = ("reset", None)
        self._end(cause, last)

    def _end(self, cause: tuple[str, str | None], last: Traffic) -> None:
        """Record and release the connection. `last` is what the kernel has counted, if it counts."""
        guard = self.guard
        guard.live.discard(self)
        seconds = guard.clock.seconds() - self.began
        # The kernel may not count any more. A layer counts what was lost between it and the kernel.
        delivered = max(0, min(self.bytes_out, last.sent or self.bytes_out) - last.left)
        self.gate.tally.ended(self.peer_place(), (self.bytes_in, delivered, None, None), max(0.0, seconds), cause)
        if self.due:
            guard.watch.remove(self)
        self.gate.leave(self.peer_key or "")
        guard.ended()


class DatagramConversation(Connection):
    """A datagram port that is open for one peer. A drain waits for it; its session counts and records the datagrams."""

    __slots__ = ()

    def look(self, *, in_order: bool = True) -> Traffic:
        """Return no traffic: the session counts it."""
        return _NO_TRAFFIC

    def end(self) -> None:
        """Forget it: the port is closed."""
        self.guard.live.discard(self)
        self.guard.watch.remove(self)
        self.guard.ended()


#: If the kernel reports nothing.
_NO_TRAFFIC = Traffic(0, 0)

#: Reasons by Twisted's exceptions, except for an orderly end.
_REASONS: dict[type, str] = {ConnectionLost: "reset", ConnectionAborted: "abort"}


#: The cause of the end of a connection that its protocol has aborted.
_ABORTED = ("abort", None)


def _reason(connection: Connection, last: Traffic, failure: Failure) -> str:
    """Return why a connection has ended that the guard did not end; see `netsvc.plan.record.REASONS`."""
    kind: Any = failure.type
    hooks = connection.hooks
    # A transport of ours knows whether it is without TLS.
    is_plain = hooks is connection.transport and hooks.counted_by_kernel and not hooks.TLS
    tls = None if is_plain else tls_of(connection.transport)
    if tls is not None and not tls._handshakeDone:
        return "tls"
    if kind is not ConnectionDone:
        return _REASONS.get(kind) or ("reset" if issubclass(kind, OSError | ConnectionClosed) else "error")
    if tls is not None:
        # TLS answers the peer's close_notify by closing, so at the socket the server always closes first.
        return "server" if tls.disconnecting and not getattr(tls, "peer_first", False) else "peer"
    if last.peer_first is not None:
        return "peer" if last.peer_first else "server"
    return "server" if hooks.disconnecting else "peer"


def _place(address: IAddress) -> tuple[str, int | None]:
    host = getattr(address, "host", None)
    return ("", None) if host is None else (plain_host(host), getattr(address, "port", None))


@implementer(IProtocolFactory)
class GuardedFactory(Factory):
    """Builds the protocols of `factory` for peers that the limits admit. Both can be changed at any time.

    `envelope` wraps the factory in a layer between the socket and the protocol, such as TLS. If this factory is
    `outermost`, directly at a port of our reactor, nothing is built for a refused connection. Each one is reset.
    """

    noisy = False
    #: For the ports of `netsvc.reactor.accept`.
    resets_refused = True

    def __init__(self, guard: Guard, factory: IProtocolFactory, label: str, gate: Gate | None = None) -> None:
        self.guard = guard
        self.label = label
        self.outermost = False
        self._envelope: Callable[[IProtocolFactory], IProtocolFactory] | None = None
        self._started = False
        self._factory = factory
        self._gate: Any = None
        self._port: Any = None
        self._built: IProtocolFactory | None = None
        self.factory = factory
        if gate is not None:
            self.gate = gate

    @property
    def factory(self) -> IProtocolFactory:
        """The factory that builds the protocols of new connections."""
        return self._factory

    @factory.setter
    def factory(self, factory: IProtocolFactory) -> None:
        # The server logs a more precise line for each listener than Twisted does for each factory.
        if getattr(factory, "noisy", False):
            factory.noisy = False  # type: ignore[attr-defined]
        if self._started:
            factory.doStart()
            self._factory.doStop()
        self._factory = factory
        self._built = None

    @property
    def envelope(self) -> Callable[[IProtocolFactory], IProtocolFactory] | None:
        """What wraps the factory in a layer, for new connections."""
        return self._envelope

    @envelope.setter
    def envelope(self, envelope: Callable[[IProtocolFactory], IProtocolFactory] | None) -> None:
        self._envelope = envelope
        self._built = None

    @property
    def gate(self) -> Gate:
        """The gate that admits new connections."""
        return self._gate  # type: ignore[no-any-return]

    @gate.setter
    def gate(self, gate: Gate) -> None:
        levels = [level.limits for level in gate.levels]
        self._gate = gate
        self.bandwidth = Bandwidth(gate, self.guard.clock)
        self.terms = terms_of(
            *(in_force(levels, name) for name in ("handshake", "idle", "life", "minrate", "keepalive"))
        )
        self._keep_alive()

    def listens_on(self, port: Any) -> None:
        """Apply the limits that belong to the port itself, now and whenever they change."""
        self._port = port
        # Other ports close a refused connection in order, which is an answer in some protocols.
        self.outermost = self.outermost and isinstance(port, AcceptMixin)
        if self._gate is not None:
            self._keep_alive()

    def _keep_alive(self) -> None:
        if self._port is not None:
            seconds, is_dry = in_force([level.limits for level in self._gate.levels], "keepalive")
            keep_alive(self._port, None if is_dry else seconds)

    def doStart(self) -> None:
        """Start the factory; see `IProtocolFactory`."""
        self._started = True
        self._factory.doStart()

    def doStop(self) -> None:
        """Stop the factory; see `IProtocolFactory`."""
        self._started = False
        self._factory.doStop()

    def logPrefix(self) -> str:
        """Return the label, which Twisted logs as the name of the port."""
        return self.label

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """Build the protocol of a connection. For a refused connection, return None or a protocol that closes it."""
        host = getattr(addr, "host", None)
        gate = self._gate
        peer: str | None = None
        if host is not None:
            peer = gate.admit(host)
            if peer is None:
                return None if self.outermost else _Refusal(None, self.guard.clock)
        built = self._built
        if built is None:
            built = self._built = self._envelope(self._factory) if self._envelope else self._factory
        try:
            protocol: Any = built.buildProtocol(addr)
        except BaseException:  # noqa: BLE001  (it ends one connection only)
            place = _place(addr)
            self.guard.faults.note(self.label, *place, Failure(), "could not be given a protocol")
            gate.tally.counts.errors += 1
            if peer is not None:
                gate.leave_unserved(peer, place, "error")
            return None if self.outermost else _Refusal(None, self.guard.clock)
        if protocol is None or getattr(protocol, "wrappedProtocol", protocol) is None:
            if peer is not None:
                gate.leave_unserved(peer, _place(addr), "server")
            return _Refusal(None, self.guard.clock)
        return _ConnectionSetup(self, Connection(self.guard, addr, protocol, gate, peer))


def guarded_factory(factory: Any) -> GuardedFactory | None:
    """Return the guarded factory inside a port's factory, below TLS and PROXY; None if there is none."""
    while factory is not None and not isinstance(factory, GuardedFactory):
        factory = getattr(factory, "wrappedFactory", None) or getattr(factory, "factory", None)
    return factory


class _Refusal(Door):
    """Closes a refused connection where the factory must return a protocol.

    The wrappers for TLS and PROXY fail with a traceback if they get None, and leave the connection open.
    """

    def makeConnection(self, transport: Any) -> None:
        abort(transport)

    def dataReceived(self, data: bytes) -> None:
        """Ignore the data."""

    def readConnectionLost(self) -> None:
        """Do nothing: the connection is being aborted."""

    def connectionLost(self, reason: object = None) -> None:
        """Do nothing: the connection was not counted."""


class _ConnectionSetup(Door):
    """The first protocol of a guarded connection; applies the limits when the transport is known."""

    def __init__(self, factory: GuardedFactory, connection: Connection) -> None:
        self._factory = factory
        self._connection: Connection | None = connection
        self.protocol = connection.protocol
        self.clock = factory.guard.clock

    def __del__(self) -> None:
        # If something failed before the connection got its transport, this is the only place to release it.
        connection = self._connection
        if connection is not None and connection.peer_key is not None:
            connection.gate.leave_unserved(connection.peer_key, connection.peer_place(), "reset")

    def enter(self, transport: Any) -> None:
        connection: Any = self._connection
        self._connection = None
        factory = self._factory
        guard = factory.guard
        if connection.peer_key is None:
            # The user of a UNIX socket's client is known only now.
            connection.peer_key = connection.gate.admit(None, _user(transport))
            if connection.peer_key is None:
                transport.protocol = _Refusal(None, self.clock)
                abort(transport)
                return
        protocol = transport.protocol = connection.protocol
        connection.transport = protocol if isinstance(protocol, TLSMemoryBIOProtocol) else transport
        connection.hooks = transport
        transport.observer = connection
        guard.live.add(connection)
        guard.watch.begin(connection, factory.terms)
        if factory.bandwidth.limited:
            factory.bandwidth.limit(transport, connection.peer_key)
        try:
            protocol.makeConnection(transport)
        except BaseException:  # noqa: BLE001  (it ends this connection only)
            connection.fail(Failure())
            abort(connection.transport)


def _user(transport: Any) -> str:
    """Return the user at the other end of a UNIX socket, such as `uid 1000`; an empty string if unknown."""
    try:
        _, user, _ = _CREDENTIALS.unpack(
            transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    except (AttributeError, OSError, struct.error):
        return ""
    return f"uid {user}"
