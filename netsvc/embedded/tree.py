"""Guards the ports of a tree of Twisted services, before they are opened.

The tree belongs to another twistd plugin. Services of Twisted itself have an endpoint or a reactor that can be
replaced. Any other port that appears in the reactor during the start is guarded after it was opened. Services that may
open ports later are reported by name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from twisted.application.internet import StreamServerEndpointService, _AbstractServer
from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.udp import MulticastPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.embedded.endpoint import GuardedEndpoint, stand_outside
from netsvc.guard import Guard, GuardedFactory, guarded_factory
from netsvc.interfaces import Kind
from netsvc.listen.handoff import Sockets, asked_path, asked_port
from netsvc.listen.opening import PortReactor, lengthen_backlog, offered
from netsvc.listen.port import OpenPort
from netsvc.listen.quiet import quietly
from netsvc.listen.sockets import bind_unix_datagram
from netsvc.plan.address import Address, join_endpoint
from netsvc.plan.limits import Limits
from netsvc.reactor.accept import pause_when_full
from netsvc.reactor.datagrams import UDPPort, UNIXDatagramPort

#: Ports and connections that Twisted's protocols open in addition to their port.
_BESIDE = {
    "twisted.protocols.ftp.FTPFactory": "the connections for files (PASV, PORT)",
    "twisted.protocols.socks.SOCKSv4Factory": "the ports for BIND, and the connections to others",
    "twisted.conch.ssh.factory.SSHFactory": "the ports that its users forward",
}

_log = Logger(namespace="netsvc")


class Ports:
    """The ports of one tree. `label` names them in the log; datagram ports have `udp` after it.

    `opened` is called with the label and each port that has opened, `failed` with the failure of each that has not.
    """

    def __init__(self, guard: Guard, label: str, level: Any, reactor: Any, passed: Sockets | None = None) -> None:
        self.guard = guard
        self.label = label
        self.reactor = reactor
        self.opened: Callable[[str, OpenPort], None] = lambda label, listening: None
        self.failed: Callable[[Failure], None] = lambda failure: None
        #: The number of endpoints that are still opening.
        self.pending = 0
        #: Why the last datagram port could not be opened.
        self.datagrams_refused: CannotListenError | None = None
        self._level = level
        #: The sockets that another process has passed.
        self.passed = passed
        self._open: list[tuple[str, OpenPort]] = []
        self._held: list[Factory] = []

    def open(self) -> list[tuple[str, OpenPort]]:
        """Return the open ports with their labels."""
        for _, listening in self._open:
            if not getattr(listening.port, "connected", True) and (tally := self._tally(listening)) is not None:
                tally.closed = True
        self._open = [each for each in self._open if getattr(each[1].port, "connected", True)]
        return list(self._open)

    def release(self) -> None:
        """Stop the factories whose ports are closed."""
        while self._held:
            self._held.pop().doStop()

    def stream(self, factory: IProtocolFactory, limits: Limits | None = None) -> GuardedFactory:
        """Return a guarded factory around `factory`."""
        return self.guard.wrap(factory, self.label, self._level, limits)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Guard all ports that are opened in the block, by any means."""
        before = self._listening()
        try:
            with offered(self.passed, self.reactor):
                yield
        finally:
            for port in self._listening() - before - {listening.port for _, listening in self._open}:
                self._adopt(port)

    def _listening(self) -> set[Any]:
        readers: Iterable[Any] = getattr(self.reactor, "getReaders", list)()
        return {reader for reader in readers if IListeningPort.providedBy(reader)}

    def _adopt(self, port: Any) -> None:
        label, listening = self.label, OpenPort(port)
        if isinstance(port, UDPPort):
            label = f"{label} udp"
            port.sessions = self.guard.sessions(label, self._level, port=port.getHost().port)
        elif isinstance(getattr(port, "factory", None), Factory):
            self._hold(port.factory)
            lengthen_backlog(port)
            port.factory = self.stream(port.factory)
            port.factory.outermost = True
            port.factory.listens_on(port)
        else:
            _log.warn(
                "{label}: what listens on {place} has no limits, and is not drained",
                label=label,
                place=place_of(listening),
            )
        self._take(label, listening)

    def _hold(self, factory: IProtocolFactory) -> None:
        if isinstance(factory, Factory):
            # A factory stops with its last port, and may close its log. Keep it started while connections drain.
            factory.doStart()
            self._held.append(factory)

    def took(self, port: IListeningPort, guarded: GuardedFactory) -> IListeningPort:
        """Add an open port."""
        self._hold(guarded.factory)
        pause_when_full(port)
        stand_outside(port, guarded)
        # The port of `stdio:` is its one connection: that is drained, and there is no port to close.
        if hasattr(port, "stopListening"):
            self._take(self.label, OpenPort(port))
        return port

    def datagrams(self, port: Any, path: str | None = None) -> Any:
        """Open a datagram port with the limits."""
        label = f"{self.label} udp"
        if self.passed is not None and path is None:
            port._preexistingSocket = self.passed.take("datagram", asked_port(port.interface, port.port))
        port.protocol.noisy = False
        port.sessions = self.guard.sessions(label, self._level, port=port.port)
        try:
            quietly(port.startListening)
        except CannotListenError as error:
            self.datagrams_refused = error
            raise
        self._take(label, OpenPort(port, path))
        return port

    def _tally(self, listening: OpenPort) -> Any:
        """Return the counters of a port; None if it has no limits."""
        port: Any = listening.port
        gated = getattr(port, "sessions", None) or guarded_factory(getattr(port, "factory", None))
        return None if gated is None else gated.gate.tally

    def bound_unix_datagram(self, path: Any, mode: int) -> socket.socket:
        """Return a UNIX datagram socket, passed or new. Raises `OSError`."""
        passed = self.passed and self.passed.take("datagram", asked_path(path))
        return passed or bind_unix_datagram(path, mode)

    def _take(self, label: str, listening: OpenPort) -> None:
        if self.passed is not None and self.passed.has_given(listening.port):
            listening.share()
        self._open.append((label, listening))
        tally = self._tally(listening)
        if tally is not None:
            tally.place = place_of(listening)
        self.opened(label, listening)


def place_of(listening: OpenPort) -> str:
    """Return the address of a port as text, for any type of address."""
    try:
        return listening.place()
    except AttributeError:
        # An address of an endpoint plugin, with neither a host nor a path.
        return f"a {type(listening.port.getHost()).__name__}"


def _through(endpoint: Any, ports: Ports) -> Any:
    """Return a copy of `endpoint` that listens with a `PortReactor`; `endpoint` itself if its type is unknown."""
    made = copy(endpoint)
    if isinstance(endpoint, TCP4ServerEndpoint | TCP6ServerEndpoint | SSL4ServerEndpoint | UNIXServerEndpoint):
        made._reactor = PortReactor(endpoint._reactor, ports.passed)
    elif hasattr(endpoint, "_wrappedEndpoint"):
        # A wrapper such as the endpoint of `haproxy:`.
        made._wrappedEndpoint = _through(endpoint._wrappedEndpoint, ports)
    else:
        return endpoint
    return made


@implementer(IStreamServerEndpoint)
class _Endpoint:
    """Replaces the endpoint of a service by a guarded one."""

    def __init__(self, ports: Ports, endpoint: Any) -> None:
        # A `guard:` endpoint in its arguments has the limits of this listener, in addition to the process's.
        within = isinstance(endpoint, GuardedEndpoint)
        self._endpoint: IStreamServerEndpoint = _through(endpoint.endpoint if within else endpoint, ports)
        self._limits: Limits | None = endpoint.limits if within else None
        self._ports = ports

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        ports = self._ports
        guarded = ports.stream(factory, self._limits)
        # Twisted logs "starting on" before the start is certain, and with less than our own line.
        opening = quietly(self._endpoint.listen, guarded)
        ports.pending += 1
        opening.addBoth(self._answered)
        if not isinstance(self._endpoint, AdoptedStreamServerEndpoint):
            # The backlog of a socket that was passed is decided by the program that passed it.
            opening.addCallback(_lengthened)
        opening.addCallback(ports.took, guarded)
        return opening.addErrback(self._not_opened)

    def _answered(self, result: Any) -> Any:
        self._ports.pending -= 1
        return result

    def _not_opened(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError):
            self._ports.failed(failure)
        # The only failure that services do not log.
        return Failure(CancelledError())


def _lengthened(port: Any) -> Any:
    lengthen_backlog(port)
    return port


class _GuardedReactor(PortReactor):
    """A reactor for a service: the ports that it opens are guarded."""

    def __init__(self, ports: Ports, reactor: Any) -> None:
        super().__init__(reactor, ports.passed)
        self._ports = ports

    def listenTCP(self, port: Any, factory: Any, *others: Any, **named: Any) -> Any:
        """Listen for TCP connections; see `IReactorTCP`."""
        return self._guarded(super().listenTCP, port, factory, *others, **named)

    def listenSSL(self, port: Any, factory: Any, *others: Any, **named: Any) -> Any:
        """Listen for TLS connections; see `IReactorSSL`."""
        return self._guarded(super().listenSSL, port, factory, *others, **named)

    def listenUNIX(self, address: Any, factory: Any, *others: Any, **named: Any) -> Any:
        """Listen for UNIX connections; see `IReactorUNIX`."""
        return self._guarded(super().listenUNIX, address, factory, *others, **named)

    def _guarded(self, listen: Callable[..., Any], place: Any, factory: Any, *others: Any, **named: Any) -> Any:
        guarded = self._ports.stream(factory)
        return self._ports.took(quietly(listen, place, guarded, *others, **named), guarded)

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
    """A guarded UDP port that can join multicast groups."""


class _Adding:
    """Replaces `addService` of a collection: services that are added later are guarded, too."""

    def __init__(self, ports: Ports, original: Callable[[Any], None]) -> None:
        self._ports = ports
        self._original = original

    def __call__(self, service: Any) -> None:
        surround(service, self._ports)
        for line in unreachable(service):
            _log.warn("{label}: {line}", label=self._ports.label, line=line)
        self._original(service)


def surround(service: Any, ports: Ports) -> None:
    """Guard the ports that a service and its descendants will open, as far as they can be known."""
    for each in _below(service):
        if isinstance(each, StreamServerEndpointService):
            each.endpoint = _Endpoint(ports, each.endpoint)
        elif isinstance(each, _AbstractServer):
            each.reactor = _GuardedReactor(ports, each.reactor or ports.reactor)
        elif isinstance(each, MultiService):
            each.addService = _Adding(ports, each.addService)  # type: ignore[method-assign]


def stop_services(service: Any) -> list[Deferred[Any]]:
    """Stop a service and its descendants, the last first; return Deferreds that fire when each has stopped, or fail.

    Twisted's own collections report a failure only when it is garbage-collected.
    """
    if getattr(type(service), "stopService", None) is not MultiService.stopService:
        return [maybeDeferred(service.stopService)]
    service.running = 0
    return [stopping for each in reversed(list(service)) for stopping in stop_services(each)]


def _below(service: Any) -> Iterator[Any]:
    """Yield the services of a tree, from its root."""
    yield service
    if IServiceCollection.providedBy(service):
        for each in service:
            yield from _below(each)


def has_datagrams(service: Any) -> bool:
    """Return whether a tree listens for datagrams."""
    return any(
        isinstance(each, _AbstractServer) and each.method in ("UDP", "Multicast", "UNIXDatagram")
        for each in _below(service)
    )


def addresses(service: Any) -> list[Address]:
    """Return the addresses that a tree will bind, as far as they can be known before the start."""
    found = []
    for each in _below(service):
        if isinstance(each, StreamServerEndpointService):
            found += _endpoint_addresses(each.endpoint)
        elif isinstance(each, _AbstractServer) and each.method in _INTERFACES:
            place, position = each.args[0], _INTERFACES[each.method]
            interface = each.kwargs.get("interface") or "".join(each.args[position : position + 1])
            found += _addresses(each.method, place, interface)
    return found


#: Which argument of a listening method of the reactor is the interface.
_INTERFACES = {"TCP": 3, "SSL": 4, "UDP": 2, "Multicast": 2, "UNIX": 99, "UNIXDatagram": 99}


def _endpoint_addresses(endpoint: Any) -> list[Address]:
    while inner := getattr(endpoint, "_wrappedEndpoint", None) or getattr(endpoint, "_endpoint", None):
        endpoint = inner
    if isinstance(endpoint, TCP4ServerEndpoint | TCP6ServerEndpoint | SSL4ServerEndpoint):
        return _addresses("TCP", endpoint._port, endpoint._interface)
    return _addresses("UNIX", endpoint._address, "") if isinstance(endpoint, UNIXServerEndpoint) else []


def _addresses(method: str, place: Any, interface: str) -> list[Address]:
    kind: Kind = "stream" if method in ("TCP", "SSL", "UNIX") else "datagram"
    scheme = "unix" if kind == "stream" else "unixgram"
    if method in ("UNIX", "UNIXDatagram"):
        text = join_endpoint([scheme, os.fsdecode(place)], {})
        return [Address(text, kind, scheme, arguments={"path": os.fsdecode(place)})]
    scheme = "tcp" if kind == "stream" else "udp"
    host = interface or "0.0.0.0"
    text = join_endpoint([scheme, str(place)], {"interface": interface} if interface else {})
    # As a stream endpoint of Twisted: every IPv6 interface includes IPv4.
    return [Address(text, kind, "tcp", host, place)] if isinstance(place, int) else []


def unreachable(service: Any) -> list[str]:
    """Return a line for each service in a tree that may accept connections without limits or drain."""
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
    """Return the names of the methods in which a service may open ports."""
    if isinstance(service, StreamServerEndpointService):
        return ()
    if isinstance(service, _AbstractServer):
        return ("_getPort",)
    return ("privilegedStartService", "startService")


def _is_twisteds(kind: type, method: str) -> bool:
    """Return whether a method is defined by Twisted, whose ports are all known."""
    defining = next((base for base in kind.__mro__ if method in vars(base)), kind)
    return defining.__module__.startswith("twisted.")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
