"""Finds the ports in a tree of Twisted services, before they are opened, and puts the guard around them.

The tree is that of another twistd plugin. What is known of it are Twisted's own services: those that listen show
their endpoint, or ask a reactor that they can be given. A port that appears in the reactor meanwhile is guarded as it
is. The rest is told by name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from twisted.application.internet import StreamServerEndpointService, _AbstractServer
from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.udp import MulticastPort
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from netsvc.accepting import accept_by
from netsvc.embedded.endpoint import GuardedEndpoint, stand_outside
from netsvc.embedded.passed import Passed
from netsvc.guard import Guard, GuardedFactory, guarded_factory
from netsvc.hush import hushed
from netsvc.limits import Limits
from netsvc.listeners.opening import Listening
from netsvc.listeners.sockets import BACKLOG, bound_unix_datagram
from netsvc.listeners.tls import TLSTransport
from netsvc.udp import UDPPort, UNIXDatagramPort

__all__ = ["Ports", "has_datagrams", "place_of", "stop_services", "surround", "unreachable"]

#: Of what Twisted's protocols open beside their port.
_BESIDE = {
    "twisted.protocols.ftp.FTPFactory": "the connections for files (PASV, PORT)",
    "twisted.protocols.socks.SOCKSv4Factory": "the ports for BIND, and the connections to others",
    "twisted.conch.ssh.factory.SSHFactory": "the ports that its users forward",
}

_log = Logger(namespace="netsvc")


class Ports:
    """The ports of one tree. `label` names them in the log, with `udp` after it those for datagrams.

    `opened` is called with the label and each port that opens, `failed` with what kept one from it.
    """

    def __init__(self, guard: Guard, label: str, level: Any, reactor: Any, passed: Passed | None = None) -> None:
        self.guard = guard
        self.label = label
        self.reactor = reactor
        self.opened: Callable[[str, Listening], None] = lambda label, listening: None
        self.failed: Callable[[Failure], None] = lambda failure: None
        #: How many endpoints take their time to open.
        self.pending = 0
        #: Why the last datagram port could not be opened.
        self.datagrams_refused: CannotListenError | None = None
        self._level = level
        #: What another process has opened.
        self._passed = passed
        self._open: list[tuple[str, Listening]] = []
        self._held: list[Factory] = []

    def open(self) -> list[tuple[str, Listening]]:
        """List what is open, with its label."""
        for _, listening in self._open:
            if not getattr(listening.port, "connected", True) and (tally := self._tally(listening)) is not None:
                tally.closed = True
        self._open = [each for each in self._open if getattr(each[1].port, "connected", True)]
        return list(self._open)

    def release(self) -> None:
        """Let the factories stop whose ports are closed."""
        while self._held:
            self._held.pop().doStop()

    def stream(self, factory: IProtocolFactory, limits: Limits | None = None) -> GuardedFactory:
        """Put the guard around a factory."""
        return self.guard.wrap(factory, self.label, self._level, limits)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take in what is opened meanwhile, whoever does it and how."""
        before = self._listening()
        try:
            with nullcontext() if self._passed is None else self._passed.offered(self.reactor):
                yield
        finally:
            for port in self._listening() - before - {listening.port for _, listening in self._open}:
                self._adopt(port)

    def _listening(self) -> set[Any]:
        readers: Iterable[Any] = getattr(self.reactor, "getReaders", list)()
        return {reader for reader in readers if IListeningPort.providedBy(reader)}

    def _adopt(self, port: Any) -> None:
        label, listening = self.label, Listening(port)
        if isinstance(port, UDPPort):
            label = f"{label} udp"
            port.sessions = self.guard.sessions(label, self._level)
        elif isinstance(getattr(port, "factory", None), Factory):
            self._hold(port.factory)
            port.factory = self.stream(port.factory)
            port.factory.outermost = True
        else:
            _log.warn(
                "{label}: what listens on {place} has no limits, and is not drained",
                label=label,
                place=place_of(listening),
            )
        self._take(label, listening)

    def _hold(self, factory: IProtocolFactory) -> None:
        if isinstance(factory, Factory):
            # A factory stops with its last port, and closes its log, say. Its connections shall still be drained.
            factory.doStart()
            self._held.append(factory)

    def took(self, port: IListeningPort, guarded: GuardedFactory) -> IListeningPort:
        """Take a port in that is open."""
        self._hold(guarded.factory)
        if hasattr(port, "numberAccepts"):
            accept_by(port)
        stand_outside(port, guarded)
        if isinstance(guarded.factory, TLSMemoryBIOFactory):
            guarded.factory.protocol = TLSTransport
        # The port of standard input and output is their one connection: it is drained, and nothing is to be closed.
        if hasattr(port, "stopListening"):
            self._take(self.label, Listening(port))
        return port

    def datagrams(self, port: Any, path: str | None = None) -> Any:
        """Open a datagram port, with the limits."""
        label = f"{self.label} udp"
        if self._passed is not None and path is None:
            self._passed.take_datagrams(port)
        port.protocol.noisy = False
        port.sessions = self.guard.sessions(label, self._level)
        try:
            hushed(port.startListening)
        except CannotListenError as error:
            self.datagrams_refused = error
            raise
        self._take(label, Listening(port, path))
        return port

    def _tally(self, listening: Listening) -> Any:
        """Return the account of a port, if it has limits."""
        port: Any = listening.port
        gated = getattr(port, "sessions", None) or guarded_factory(getattr(port, "factory", None))
        return None if gated is None else gated.gate.tally

    def bound_unix_datagram(self, path: Any, mode: int) -> socket.socket:
        """Return a UNIX datagram socket: one that is there, or a new one. Raises `OSError`."""
        passed = self._passed and self._passed.take_path("datagram", path)
        return passed or bound_unix_datagram(path, mode)

    def _take(self, label: str, listening: Listening) -> None:
        if self._passed is not None and self._passed.has_given(listening.port):
            listening.share()
        self._open.append((label, listening))
        tally = self._tally(listening)
        if tally is not None:
            tally.place = place_of(listening)
        self.opened(label, listening)


def place_of(listening: Listening) -> str:
    """Name where a port listens, whatever its address is."""
    try:
        return listening.place()
    except AttributeError:
        # One of an endpoint plugin, with neither a host nor a path.
        return f"a {type(listening.port.getHost()).__name__}"


@implementer(IStreamServerEndpoint)
class _Endpoint:
    """Stands in for the endpoint of a service."""

    def __init__(self, ports: Ports, endpoint: Any) -> None:
        # What a `guard:` in its words sets are limits of this listener, beside those of the process.
        within = isinstance(endpoint, GuardedEndpoint)
        self._endpoint: IStreamServerEndpoint = endpoint.endpoint if within else endpoint
        self._limits: Limits | None = endpoint.limits if within else None
        self._ports = ports

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        ports = self._ports
        guarded = ports.stream(factory, self._limits)
        # Twisted's "starting on" comes before the start is sure, and says less than the host's own line.
        opening = hushed(self._endpoint.listen, guarded)
        ports.pending += 1
        opening.addBoth(self._answered)
        opening.addCallback(ports.took, guarded)
        return opening.addErrback(self._not_opened)

    def _answered(self, result: Any) -> Any:
        self._ports.pending -= 1
        return result

    def _not_opened(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError):
            self._ports.failed(failure)
        # The one failure that no service logs.
        return Failure(CancelledError())


class _Reactor:
    """Stands in for the reactor that a service listens with."""

    def __init__(self, ports: Ports, reactor: Any) -> None:
        self._ports = ports
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: Any, factory: Any, backlog: int = BACKLOG, interface: str = "") -> Any:
        return self._stream("listenTCP", port, factory, backlog=backlog, interface=interface)

    def listenSSL(
        self, port: Any, factory: Any, contextFactory: Any, backlog: int = BACKLOG, interface: str = ""
    ) -> Any:
        return self._stream("listenSSL", port, factory, contextFactory, backlog=backlog, interface=interface)

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = BACKLOG, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        return self._stream("listenUNIX", address, factory, backlog=backlog, mode=mode, wantPID=wantPID)

    def _stream(self, method: str, place: Any, factory: Any, *others: Any, **named: Any) -> Any:
        guarded = self._ports.stream(factory)
        port = hushed(getattr(self._reactor, method), place, guarded, *others, **named)
        return self._ports.took(port, guarded)

    def listenUDP(self, port: Any, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        return self._ports.datagrams(UDPPort(port, protocol, interface, maxPacketSize, self._reactor))

    def listenMulticast(
        self,
        port: Any,
        protocol: Any,
        interface: str = "",
        maxPacketSize: int = 8192,
        listenMultiple: bool = False,
    ) -> Any:
        opened: Any = _MulticastPort(port, protocol, interface, maxPacketSize, self._reactor)
        opened.listenMultiple = listenMultiple
        return self._ports.datagrams(opened)

    def listenUNIXDatagram(self, address: Any, protocol: Any, maxPacketSize: int = 8192, mode: int = 0o666) -> Any:
        try:
            bound = self._ports.bound_unix_datagram(address, mode)
        except OSError as error:
            raise CannotListenError(None, address, error) from error
        with bound:
            bound.setblocking(False)
            return self._ports.datagrams(UNIXDatagramPort(self._reactor, bound, protocol), address)


class _MulticastPort(UDPPort, MulticastPort):
    """A UDP port that can join groups."""


class _Adding:
    """Stands in for the `addService` of a collection: what is added later is surrounded as well."""

    def __init__(self, ports: Ports, original: Callable[[Any], None]) -> None:
        self._ports = ports
        self._original = original

    def __call__(self, service: Any) -> None:
        surround(service, self._ports)
        for line in unreachable(service):
            _log.warn("{label}: {line}", label=self._ports.label, line=line)
        self._original(service)


def surround(service: Any, ports: Ports) -> None:
    """Put the guard around all that a service and those below it will open, as far as that can be known."""
    for each in _below(service):
        if isinstance(each, StreamServerEndpointService):
            each.endpoint = _Endpoint(ports, each.endpoint)
        elif isinstance(each, _AbstractServer):
            each.reactor = _Reactor(ports, each.reactor or ports.reactor)
        elif isinstance(each, MultiService):
            each.addService = _Adding(ports, each.addService)  # type: ignore[method-assign]


def stop_services(service: Any) -> list[Deferred[Any]]:
    """Stop a service and those below it, the last first; return what fires, or fails, as each has stopped.

    Twisted's own collections leave it to the garbage collector to tell of one that fails.
    """
    if getattr(type(service), "stopService", None) is not MultiService.stopService:
        return [maybeDeferred(service.stopService)]
    service.running = 0
    return [stopping for each in reversed(list(service)) for stopping in stop_services(each)]


def _below(service: Any) -> Iterator[Any]:
    """Go through a tree, from its root."""
    yield service
    if IServiceCollection.providedBy(service):
        for each in service:
            yield from _below(each)


def has_datagrams(service: Any) -> bool:
    """Tell whether a tree listens for datagrams."""
    return any(
        isinstance(each, _AbstractServer) and each.method in ("UDP", "Multicast", "UNIXDatagram")
        for each in _below(service)
    )


def unreachable(service: Any) -> list[str]:
    """Say what in a tree may take connections that no limit holds for, and no drain waits for: a line each."""
    lines: dict[str, None] = {}
    for each in _below(service):
        kind = type(each)
        if not all(_is_twisteds(kind, method) for method in _methods(each)):
            lines[f"what {_name(kind)} opens after its start, if it does, has no limits, and is not drained"] = None
        factory = getattr(each, "factory", None) or next(
            (argument for argument in getattr(each, "args", ()) if IProtocolFactory.providedBy(argument)), None
        )
        for base in type(factory).__mro__:
            if beside := _BESIDE.get(_name(base)):
                lines[f"{beside} have no limits, and are not drained"] = None
    return list(lines)


def _methods(service: Any) -> tuple[str, ...]:
    """Name the methods in which a service may open ports."""
    if isinstance(service, StreamServerEndpointService):
        return ()
    if isinstance(service, _AbstractServer):
        return ("_getPort",)
    return ("privilegedStartService", "startService")


def _is_twisteds(kind: type, method: str) -> bool:
    """Tell whether a method is one of Twisted's: of these, those that listen are known."""
    defining = next((base for base in kind.__mro__ if method in vars(base)), kind)
    return defining.__module__.startswith("twisted.")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
