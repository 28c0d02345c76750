"""One running listener: its open port, and the guarded factory or datagram protocol behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from socket import AF_INET, AF_INET6
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from netsvc.base.errors import ANYTHING, UserError, describe
from netsvc.base.steps import Steps
from netsvc.guard import Guard, GuardedFactory
from netsvc.guard.admission import Gate, Level
from netsvc.guard.counters import Tally
from netsvc.listen.certificates import CertificateError
from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.listen.opening import listen
from netsvc.listen.port import OpenPort
from netsvc.listen.proxy import ProxyFactory
from netsvc.listen.quiet import quietly
from netsvc.listen.tls import Certificates, use_tls
from netsvc.plan.address import Proxy
from netsvc.plan.plan import Listener
from netsvc.server.instances import RunningService
from netsvc.server.requests import record_requests

_log = Logger(namespace="netsvc")


class RunningListener:
    """One listener of the running plan. `service` serves its next connections."""

    def __init__(self, guard: Guard, listener: Listener, service: RunningService) -> None:
        self.listener = listener
        self.service = service
        #: The open port; None before it is open.
        self.listening: OpenPort | None = None
        #: The gates that admitted its live connections.
        self.gates: set[Gate] = set()
        #: See `tally`.
        self._tally: Tally | None = None
        self._guard = guard
        self._level: Level | None = None
        #: What the port calls: a guarded factory, or a datagram protocol.
        self._factory_or_protocol: Any = None
        #: Whether its datagram protocol verifies the addresses of peers, so that `amplify` does not apply to them.
        self._verified = False
        self._paused = False
        self._unwanted = False
        #: Whether it belongs to the running plan and has a gate.
        self._is_current = False

    @property
    def tally(self) -> Tally:
        """The counters of the listener; new ones are opened when it serves another service or protocol."""
        tally, listener = self._tally, self.listener
        if tally is None or (tally.service, tally.protocol) != (listener.use, listener.protocol):
            if tally is not None:
                tally.closed = True
            tally = self._tally = self._guard.book.open(listener.use, listener.protocol, listener.address.kind)
            self._note_address()
        return tally

    def _note_address(self) -> None:
        if self._tally is not None and self.listening is not None:
            self._guard.book.reopen(self._tally)
            self._tally.place = self.listening.place()
            self._tally.address = self.listener.address

    @property
    def unreachable_reason(self) -> str:
        """The reason why clients cannot reach it; an empty string if they can."""
        file = self.listening and self.listening.file
        return file.problem if file else ""

    @property
    def not_ready_reason(self) -> str:
        """The reason why it is not open or not reachable, with its label; an empty string if it is."""
        if self.listening is None:
            return f"{self.listener.label} is not open yet"
        return f"{self.listener.label}: {self.unreachable_reason}" if self.unreachable_reason else ""

    @property
    def port(self) -> Any:
        """The open port."""
        assert self.listening is not None
        return self.listening.port

    def open(self, reactor: Any, sockets: Sockets | None = None) -> Deferred[OpenPort]:
        """Open the port. Raises `UserError` if its protocol cannot be built; the Deferred may fail: `ListenError`."""
        if self._factory_or_protocol is None:
            self._factory_or_protocol = self.service.protocol(self.listener.protocol)
            record_requests(self._factory_or_protocol, self._guard.book)
            self.prepare_limits(self.listener)()
            if self.listener.address.kind == "stream":
                # `activate` sets its gate before it accepts anything.
                self._factory_or_protocol = GuardedFactory(self._guard, self._factory_or_protocol, self.listener.label)
                address = self.listener.address
                self._factory_or_protocol.outermost = address.scheme == "inet" and address.proxy is None
            else:
                self._factory_or_protocol.noisy = False
        # Twisted logs "starting on" before the start is certain, and with less than our own line.
        opening = quietly(
            listen, reactor, self.listener.address, self._factory_or_protocol, sockets, self._refused_by_proxy
        )
        return opening.addCallback(self._opened)

    def _refused_by_proxy(self, reason: str, host: str) -> None:
        self._factory_or_protocol.gate.count_refusal(reason, host)

    def _opened(self, listening: OpenPort) -> OpenPort:
        if self._unwanted:
            listening.stop()
            return listening
        self.listening = listening
        if isinstance(self._factory_or_protocol, GuardedFactory):
            self._factory_or_protocol.listens_on(listening.port)
        self._note_address()
        if self._is_current and self.listener.address.kind == "datagram":
            self.apply_limits()
        if self._paused:
            self.pause()
        return listening

    def pause(self) -> None:
        """Stop accepting until `resume` is called; new connections and datagrams wait in the kernel."""
        self._paused = True
        if self.listening is not None:
            self.listening.pause()

    def resume(self) -> None:
        """Accept again, first what waits in the kernel."""
        if self._paused and self.listening is not None:
            self.listening.resume()
        self._paused = False

    def swap(self, listener: Listener, service: RunningService, steps: Steps) -> None:
        """Put another protocol behind the open port.

        Raises `UserError` if that protocol cannot be built or started; nothing has changed then.
        """
        if self._factory_or_protocol is None:
            # It is opened only after another port is closed.
            self.listener, self.service = listener, service
            return
        protocol = service.protocol(listener.protocol)
        before = self.listener, self.service

        def undo() -> None:
            self.listener, self.service = before

        try:
            (self._swap_factory if listener.address.kind == "stream" else self._swap_protocol)(protocol, steps)
        except ANYTHING as error:
            raise UserError([f"{listener.label} cannot start: {describe(error)}"]) from error
        self.listener, self.service = listener, service
        steps.on_undo(undo)

    def _swap_factory(self, factory: Any, steps: Steps) -> None:
        undo = partial(setattr, self._factory_or_protocol, "factory", self._factory_or_protocol.factory)
        record_requests(factory, self._guard.book)
        self._factory_or_protocol.factory = factory
        steps.on_undo(undo)

    def _swap_protocol(self, protocol: Any, steps: Steps) -> None:
        before, port = self._factory_or_protocol, self.port
        if protocol is before:
            # The service uses one protocol object for all listeners.
            return

        def undo() -> None:
            self._factory_or_protocol = port.protocol = before
            protocol.doStop()

        protocol.noisy = False
        protocol.makeConnection(port)
        self._factory_or_protocol = port.protocol = protocol
        steps.on_undo(undo)
        steps.on_commit(before.doStop)

    def prepare_limits(self, listener: Listener) -> Callable[[], None]:
        """Prepare a change of its own limits (all that can fail); return a function that applies it.

        Raises `UserError`.
        """
        level = self._level
        if not listener.limits:
            return partial(setattr, self, "_level", None)
        if level is None or level.name != listener.label:
            return partial(setattr, self, "_level", Level(listener.label, listener.limits, self._guard.clock))
        return level.prepare(listener.limits)

    def prepare_envelope(self, listener: Listener) -> Callable[[], None]:
        """Prepare a change of TLS and of the sources trusted to send PROXY headers (all that can fail).

        Return a function that applies it to new connections. Certificates at unchanged paths are read again if their
        files have changed. Raises `UserError`.
        """
        certificates, tls, proxy = None, listener.address.tls, listener.address.proxy
        has_changed = tls != self.listener.address.tls
        if has_changed and tls is not None:
            try:
                certificates = Certificates(tls, self._guard.clock)
            except CertificateError as error:
                raise UserError([listener.cannot_listen(error)]) from error

        def change() -> None:
            listening = self.listening
            assert listening is not None
            if has_changed:
                listening.certificates = certificates
                use_tls(self.port, self._factory_or_protocol, certificates)
            elif listening.certificates is not None:
                listening.certificates.look()
                listening.certificates.warn_of_expiry()
            if isinstance(proxying := getattr(self.port, "factory", None), ProxyFactory):
                proxying.proxy = cast(Proxy, proxy)

        return change

    def activate(self) -> None:
        """Accept connections and datagrams according to the current plan."""
        self._is_current = True
        if self.listening is not None or self.listener.address.kind == "stream":
            self.apply_limits()
        self.resume()

    def apply_limits(self) -> None:
        """Apply the current limits to new connections and sessions."""
        guard, listener = self._guard, self.listener
        name = listener.label
        levels = [guard.process, self.service.level, *([self._level] if self._level else [])]
        gate = Gate(levels, guard.refusals, name, listener.address.kind, guard.clock, tally=self.tally)
        self.gates.add(gate)
        self.service.gates.add(gate)
        if listener.address.kind == "stream":
            self._factory_or_protocol.label = name
            self._factory_or_protocol.gate = gate
            return
        sessions = getattr(self.port, "sessions", None)
        verified = self.service.verifies_peers
        if sessions is not None and list(sessions.gate.levels) == levels and verified == self._verified:
            sessions.gate = gate
            return
        self._verified = verified
        self.port.sessions = guard.sessions(
            name, self.service.level, verified=verified, tally=self.tally, port=self.port_number()
        )
        self.port.sessions.gate = gate
        if sessions is not None:
            # Its peers were admitted by limits that are no longer in force.
            sessions.close()

    def gate(self) -> Gate | None:
        """Return the gate that admits new connections or sessions; None before the port of datagrams is open."""
        if self.listener.address.kind == "stream":
            return cast(Gate, self._factory_or_protocol.gate)
        sessions = None if self.listening is None else getattr(self.port, "sessions", None)
        return None if sessions is None else cast(Gate, sessions.gate)

    def socket(self) -> Any:
        """Return the socket of the port if it is an IPv4 or IPv6 socket."""
        bound = getattr(self.port, "socket", None)
        return bound if getattr(bound, "family", None) in (AF_INET, AF_INET6) else None

    def port_number(self) -> int:
        """Return the real port number; 0 if it has none."""
        number = getattr(self.port.getHost(), "port", 0)
        return number if isinstance(number, int) else 0

    def offered(self) -> OfferedPort:
        """Describe the open port to another process. Raises `UserError` if it cannot be handed over."""
        address = self.listener.address
        if self.listening is None or self.listening.socket is None:
            raise UserError([f"{self.listener.label} on {address.text} cannot be handed over: it is not a socket"])
        opened = self.listening
        return OfferedPort(
            "listener", self.listener.label, address.kind, address.endpoint, [opened.socket], self, opened.files()
        )

    def own(self, files: Sequence[str]) -> None:
        """Remove these files when the port is closed: this process is now their only owner."""
        if self.listening is not None:
            self.listening.own(files)

    def release(self) -> None:
        """Close the port in this process only: another process serves it."""
        if self.listening is not None:
            listening, self.listening = self.listening, None
            quietly(listening.release)

    def share(self) -> None:
        """Do not shut the socket down when the port is closed: another port uses the same socket."""
        self.port._shouldShutdown = False

    def close(self, *, take: bool = True) -> None:
        """Close the port at once, or when it has opened; with `take`, first accept what waits there."""
        self._unwanted = self.listening is None
        if self._tally is not None:
            self._tally.closed = True
        if self.listening is not None:
            listening, self.listening = self.listening, None
            if take:
                listening.take_waiting()
            # Our own line has more than Twisted's.
            quietly(listening.abandon)

    def yield_to(self, other: RunningListener) -> None:
        """Pass waiting connections to another listener: this one is closed without having served."""
        if self.listening is None or other.listening is None or self.listener.address.kind == "datagram":
            return
        own, self.port.factory = self.port.factory, other.port.factory
        try:
            self.listening.take_waiting()
        finally:
            self.port.factory = own

    def own_datagram_address(self) -> int | bytes | None:
        """Return its UDP port or datagram socket path: datagrams from there must not be answered. None for streams."""
        if self.listening is None:
            return None
        host: Any = self.port.getHost()
        if getattr(host, "type", "") == "UDP":
            return cast(int, host.port)
        return cast(bytes, host.name) if self.listening.datagrams else None

    def announce(self) -> None:
        """Log the address of the open port, if it is open."""
        if self.listening is None:
            return
        _log.info(
            "{service} {protocol} listens on {place}{note}",
            service=self.listener.use,
            protocol=self.listener.protocol,
            place=self.listening.place(),
            note=self.listener.address.note,
        )
