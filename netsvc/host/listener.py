"""One listener that runs: its open port, and what is behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from socket import AF_INET, AF_INET6
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from netsvc.address import Proxy
from netsvc.discovery import ANYTHING, describe
from netsvc.errors import MistakeError
from netsvc.guard import Guard
from netsvc.guard.gate import Gate
from netsvc.guard.level import Level
from netsvc.guard.tally import Tally
from netsvc.host.instances import RunningService
from netsvc.hush import hushed
from netsvc.listeners.certificates import CertificateError
from netsvc.listeners.handed import HandedPort
from netsvc.listeners.inherited import Inherited
from netsvc.listeners.opening import Listening, listen
from netsvc.listeners.proxy import ProxyFactory
from netsvc.listeners.tls import Certificates
from netsvc.plan import Listener

__all__ = ["RunningListener"]

_log = Logger(namespace="netsvc")


class RunningListener:
    """One listener of the running plan. `service` is the one that serves its next connections."""

    def __init__(self, guard: Guard, listener: Listener, service: RunningService) -> None:
        self.listener = listener
        self.service = service
        #: Where it is open, once it is.
        self.listening: Listening | None = None
        #: Every gate by which its connections have come, for as long as there are any.
        self.gates: set[Gate] = set()
        #: What is known of it; see `tally`.
        self._tally: Tally | None = None
        self._guard = guard
        self._level: Level | None = None
        #: What the port has: a guarded factory, or a datagram protocol.
        self._front: Any = None
        #: Whether the datagram peers that it knows need not be kept from being sent more than they send.
        self._verified = False
        self._paused = False
        self._unwanted = False

    @property
    def tally(self) -> Tally:
        """The account of it: another one once it serves something else."""
        tally, listener = self._tally, self.listener
        if tally is None or (tally.service, tally.protocol) != (listener.use, listener.protocol):
            if tally is not None:
                tally.closed = True
            tally = self._tally = self._guard.book.open(listener.use, listener.protocol, listener.address.kind)
            self._note_place()
        return tally

    def _note_place(self) -> None:
        if self._tally is not None and self.listening is not None:
            self._guard.book.reopen(self._tally)
            self._tally.place = self.listening.place()
            self._tally.address = self.listener.address

    @property
    def problem(self) -> str:
        """Why nobody can reach it, if it is so."""
        file = self.listening and self.listening.file
        return file.problem if file else ""

    @property
    def trouble(self) -> str:
        """Say why it does not serve, if it does not."""
        if self.listening is None:
            return f"{self.listener.label} is not open yet"
        return f"{self.listener.label}: {self.problem}" if self.problem else ""

    @property
    def port(self) -> Any:
        """The open port."""
        assert self.listening is not None
        return self.listening.port

    def open(self, reactor: Any, inherited: Inherited | None = None) -> Deferred[Listening]:
        """Open it. Raises `MistakeError` if its protocol cannot be built; the Deferred may fail with `ListenError`."""
        if self._front is None:
            self._front = self.service.protocol(self.listener.protocol)
            self.prepare_limits(self.listener)()
            if self.listener.address.kind == "stream":
                name = self.listener.label
                self._front = self._guard.wrap(self._front, name, self.service.level, tally=self.tally)
                address = self.listener.address
                self._front.outermost = address.scheme == "inet" and address.proxy is None
                self.regate()
            else:
                self._front.noisy = False
        # Twisted's "starting on" comes before the start is sure, and says less than the host's own line.
        opening = hushed(listen, reactor, self.listener.address, self._front, inherited, self._refused_by_proxy)
        return opening.addCallback(self._opened)

    def _refused_by_proxy(self, reason: str, host: str) -> None:
        self._front.gate.note(reason, host)

    def _opened(self, listening: Listening) -> Listening:
        if self._unwanted:
            listening.stop()
            return listening
        self.listening = listening
        self._note_place()
        if self.listener.address.kind == "datagram":
            self.regate()
        if self._paused:
            self.pause()
        return listening

    def pause(self) -> None:
        """Take nothing, until `resume` is called: what comes waits."""
        self._paused = True
        if self.listening is not None and hasattr(self.port, "stopReading"):
            self.port.stopReading()

    def resume(self) -> None:
        """Take what waits, and what comes."""
        if self._paused and self.listening is not None and hasattr(self.port, "startReading"):
            self.port.startReading()
        self._paused = False

    def swap(self, listener: Listener, service: RunningService) -> tuple[Callable[[], None], Callable[[], None]]:
        """Put another protocol behind the open port. Return what undoes it, and what makes it final.

        Raises `MistakeError` if that protocol cannot be built or started, and then has changed nothing.
        """
        if self._front is None:
            # It waits for another port to be closed.
            self.listener, self.service = listener, service
            return _nothing, _nothing
        protocol = service.protocol(listener.protocol)
        before = self.listener, self.service
        try:
            steps = (self._swap_factory if listener.address.kind == "stream" else self._swap_protocol)(protocol)
        except ANYTHING as error:
            raise MistakeError([f"{listener.label} cannot start: {describe(error)}"]) from error
        self.listener, self.service = listener, service

        def undo() -> None:
            self.listener, self.service = before
            steps[0]()

        return undo, steps[1]

    def _swap_factory(self, factory: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        before = self._front.factory

        def undo() -> None:
            self._front.factory = before

        self._front.factory = factory
        return undo, _nothing

    def _swap_protocol(self, protocol: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        before, port = self._front, self.port
        if protocol is before:
            # Its author makes one object for all listeners.
            return _nothing, _nothing

        def undo() -> None:
            self._front = port.protocol = before
            protocol.doStop()

        protocol.noisy = False
        protocol.makeConnection(port)
        self._front = port.protocol = protocol
        return undo, before.doStop

    def prepare_limits(self, listener: Listener) -> Callable[[], None]:
        """Do all of a change of its own limits that can fail, and return what does the rest. Raises `MistakeError`."""
        level = self._level
        if not listener.limits:
            return partial(setattr, self, "_level", None)
        if level is None or level.name != listener.label:
            return partial(setattr, self, "_level", Level(listener.label, listener.limits, self._guard.clock))
        return level.prepare(listener.limits)

    def prepare_envelope(self, listener: Listener) -> Callable[[], None]:
        """Do all that can fail of a change of what stands around the protocol: TLS, and the trust of PROXY headers.

        Return what does the rest, for the next connections. Certificates are looked at again if they stay where they
        are. Raises `MistakeError`.
        """
        certificates, tls, proxy = None, listener.address.tls, listener.address.proxy
        has_changed = tls != self.listener.address.tls
        if has_changed and tls is not None:
            try:
                certificates = Certificates(tls, self._guard.clock)
            except CertificateError as error:
                raise MistakeError([listener.cannot_listen(error)]) from error

        def change() -> None:
            listening = self.listening
            assert listening is not None
            if has_changed:
                listening.certificates = certificates
                self._front.envelope = certificates and certificates.wrap
                # It is built anew for the next connection.
                self._front._built = None
            elif listening.certificates is not None:
                listening.certificates.look()
                listening.certificates.warn_of_expiry()
            if isinstance(proxying := getattr(self.port, "factory", None), ProxyFactory):
                proxying.proxy = cast(Proxy, proxy)

        return change

    def renew(self) -> None:
        """Take what comes, by the plan as it is now."""
        self.resume()
        if self.listening is not None:
            self.regate()

    def regate(self) -> None:
        """Admit the next connections by the limits as they are now."""
        guard, listener = self._guard, self.listener
        name = listener.label
        levels = [guard.process, self.service.level, *([self._level] if self._level else [])]
        gate = Gate(levels, guard.refusals, name, listener.address.kind, guard.clock, tally=self.tally)
        if listener.address.kind == "stream":
            self._front.label = name
            self._front.gate = gate
            self.gates.add(gate)
            self.service.gates.add(gate)
            return
        sessions = getattr(self.port, "sessions", None)
        verified = self.service.verifies_peers
        if sessions is not None and list(sessions.gate.levels) == levels and verified == self._verified:
            sessions.gate = gate
            return
        self._verified = verified
        self.port.sessions = guard.sessions(name, self.service.level, verified=verified, tally=self.tally)
        self.port.sessions.gate = gate
        if sessions is not None:
            # Its peers were admitted by what is not asked any more.
            sessions.close()

    def gate(self) -> Gate | None:
        """Return the gate that the next connections come by."""
        return cast(Gate, self._front.gate) if self.listener.address.kind == "stream" else None

    def socket(self) -> Any:
        """Return the socket of the port, if it is one of the Internet's."""
        bound = getattr(self.port, "socket", None)
        return bound if getattr(bound, "family", None) in (AF_INET, AF_INET6) else None

    def port_number(self) -> int:
        """Return the real number of the port, 0 if it has none."""
        number = getattr(self.port.getHost(), "port", 0)
        return number if isinstance(number, int) else 0

    def handed(self) -> HandedPort:
        """Return it as another process may take it over. Raises `MistakeError` if none can."""
        address = self.listener.address
        if self.listening is None or getattr(self.port, "socket", None) is None:
            raise MistakeError([f"{self.listener.label} on {address.text} cannot be handed over, as it is no socket"])
        return HandedPort(
            "listener",
            self.listener.label,
            address.kind,
            address.place,
            [[self.port.socket]],
            self.listening.files(),
            let_go=self.let_go,
            own=self.listening.own,
            pause=self.pause,
            resume=self.resume,
        )

    def let_go(self) -> None:
        """Close it in this process only: another one has it."""
        if self.listening is not None:
            listening, self.listening = self.listening, None
            hushed(listening.let_go)

    def share(self) -> None:
        """Leave the socket as it is when the port is closed: somebody else has it as well."""
        self.port._shouldShutdown = False

    def close(self, *, take: bool = True) -> None:
        """Close the port at once, after taking what waits there. What is being opened is closed when it is open."""
        self._unwanted = self.listening is None
        if self._tally is not None:
            self._tally.closed = True
        if self.listening is not None:
            listening, self.listening = self.listening, None
            if take:
                listening.take_waiting()
            # Twisted's own line about it says less than ours.
            hushed(listening.abandon)

    def yield_to(self, other: RunningListener) -> None:
        """Let another serve who waits here: this one is to be closed without having served anybody."""
        if self.listening is None or other.listening is None or self.listener.address.kind == "datagram":
            return
        own, self.port.factory = self.port.factory, other.port.factory
        try:
            self.listening.take_waiting()
        finally:
            self.port.factory = own

    def own_place(self) -> int | bytes | None:
        """Return the UDP port, or the path of the datagram socket, from which no datagram is to be answered."""
        if self.listening is None:
            return None
        host: Any = self.port.getHost()
        if getattr(host, "type", "") == "UDP":
            return cast(int, host.port)
        return cast(bytes, host.name) if self.listening.datagrams else None

    def announce(self) -> None:
        """Say where it listens, if it does."""
        if self.listening is None:
            return
        _log.info(
            "{service} {protocol} listens on {place}{note}",
            service=self.listener.use,
            protocol=self.listener.protocol,
            place=self.listening.place(),
            note=self.listener.address.note,
        )


def _nothing() -> None:
    """Do nothing."""
