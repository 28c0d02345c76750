"""Sockets that a worker inherited, and a reactor that opens them in place of new ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.endpoints import _SystemdParser
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from netsvc.listeners.sockets import adopt
from netsvc.text import escape
from netsvc.transports import UNIXPort

__all__ = ["Inherited", "SharedMixin", "SharedPort"]


class Inherited:
    """The sockets of one listener, by their descriptors, in the order in which they are opened."""

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._descriptors = list(descriptors)

    def adopt(self, reactor: Any, protocol: Any) -> IListeningPort:
        """Give the next socket to the reactor. Other processes have it open as well, and are not disturbed."""
        bound = socket.socket(fileno=self._descriptors.pop(0))
        if bound.family != socket.AF_UNIX or bound.type != socket.SOCK_STREAM:
            return adopt(reactor, bound, protocol)
        with bound:
            # Only a reactor that flushes can have the ports whose connections are flushed.
            kind = _SharedFlushedPort if hasattr(reactor, "flushes") else SharedPort
            port: Any = kind._fromListeningDescriptor(reactor, bound.fileno(), protocol)
        port.startListening()
        return port  # type: ignore[no-any-return]

    @contextmanager
    def over(self, reactor: Any) -> Iterator[Any]:
        """Offer a reactor that opens these sockets when an endpoint asks it to listen anywhere."""
        # An endpoint of systemd's looks here for its socket, and closes it; others are to find those of systemd again.
        passed = _SystemdParser._sddaemon
        _SystemdParser._sddaemon = _Passed(self._descriptors)  # type: ignore[assignment]
        try:
            yield _Opening(reactor, self)
        finally:
            _SystemdParser._sddaemon = passed


class _Passed:
    """Stands in for `ListenFDs`: whatever is asked for, it is the next of these descriptors."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    def __getitem__(self, _wanted: object) -> int:
        return os.dup(self._descriptors[0])

    def inheritedDescriptors(self) -> _Passed:
        return self

    def inheritedNamedDescriptors(self) -> _Passed:
        return self


class _Opening:
    """A reactor's methods to listen, over sockets that are bound already; the rest is the reactor's."""

    def __init__(self, reactor: Any, inherited: Inherited) -> None:
        self._reactor = reactor
        self._inherited = inherited
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _open(self, factory: IProtocolFactory) -> IListeningPort:
        return self._inherited.adopt(self._reactor, factory)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        return self._open(factory)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        return self._open(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        return self._open(factory)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory) -> IListeningPort:
        return self._open(factory)


class SharedMixin:
    """Leaves alone what Twisted takes for its own: the file of the socket, its mode, and its backlog."""

    _preexistingSocket: Any
    _shouldShutdown: bool
    factory: Any
    startReading: Any
    getHost: Any

    def startListening(self) -> None:
        """Accept connections."""
        tcp._reservedFD.reserve()
        # To shut a listening socket down would end it for every process that has it.
        self._shouldShutdown = False
        self.factory.doStart()
        self.socket, self._preexistingSocket = self._preexistingSocket, None
        self.fileno = self.socket.fileno
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close this process's descriptor."""
        tcp.Port.connectionLost(self, reason)  # type: ignore[arg-type]

    def _logConnectionLostMsg(self) -> None:
        # Twisted's has a name that begins with a NUL, which makes a log a binary file to whoever searches it.
        log.msg(f"(UNIX Port {escape(self.getHost().name or '', 1000)} Closed)")


class SharedPort(SharedMixin, unix.Port):  # type: ignore[misc]
    """A UNIX port over a socket that belongs to others as well, on any reactor."""


class _SharedFlushedPort(SharedMixin, UNIXPort):  # type: ignore[misc]
    """The same on the fast reactor."""
