"""Ports that several processes serve: bound once, held open by one process that serves none of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet import tcp, udp, unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import directlyProvides, providedBy

from netsvc.address import Address
from netsvc.hush import hushed
from netsvc.listeners.handed import HandedPort
from netsvc.listeners.inherited import Inherited, SharedPort
from netsvc.listeners.opening import ListenError, Listening, listen
from netsvc.listeners.paths import note_file
from netsvc.listeners.sockets import BACKLOG
from netsvc.udp import make_room
from netsvc.workers.steering import steer, unsteer

__all__ = ["HeldPort", "hold"]

_INET = (socket.AF_INET, socket.AF_INET6)


class HeldPort:
    """The bound sockets of one listener, for each of several workers.

    Each worker has TCP and UDP sockets of its own, among which the kernel divides connections and peers by
    their addresses (socket(7), SO_REUSEPORT): a UDP peer stays with one. UNIX sockets and the streams of systemd
    are shared. As this process holds them all, what comes for a worker that is gone waits for the next one.
    """

    def __init__(self, listening: Listening, workers: int) -> None:
        self.listening = listening
        self._workers = workers
        #: For each socket of the address, the sockets that were bound beside it; none, if all share the one.
        self._beside: list[tuple[Any, list[socket.socket]]] = []
        self._common: list[Any] = []

    def share(self, port: Any) -> None:
        """Let all workers have the socket of a port."""
        # What is shut down is so for every process.
        port._shouldShutdown = False
        self._beside.append((port, []))
        self._common.append(port)

    def divide(self, port: Any) -> None:
        """Bind a socket beside that of a port for each further worker. Raises `OSError`."""
        port._shouldShutdown = False
        beside: list[socket.socket] = []
        self._beside.append((port, beside))
        # Not before the port is bound, and listens: until then nobody else may have it, and a second netsvc of the
        # same user, which would be let in, is told that it is in use.
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(1, self._workers):
            beside.append(_bound_beside(port.socket, getattr(port, "backlog", None) or BACKLOG))

    def firsts(self) -> list[Any]:
        """List the sockets of the address, without those beside them."""
        return [port.socket for port, _ in self._beside]

    def handed(
        self, name: str, address: Address, key_files: Mapping[str, str], let_go: Callable[[], None]
    ) -> HandedPort:
        """Return it as another process may take it over."""
        return HandedPort(
            "listener",
            name,
            address.kind,
            address.place,
            [[port.socket, *beside] for port, beside in self._beside],
            self.listening.files(),
            dict(key_files),
            let_go=let_go,
            own=self.listening.own,
        )

    def let_go(self) -> None:
        """Close it in this process only: another one has it."""
        copies = [copy for port, beside in self._beside for copy in (port.socket, *beside)]
        hushed(self.listening.let_go)
        for copy in copies:
            copy.close()

    def adopt(self, beside: Sequence[Sequence[int]]) -> None:
        """Take these sockets, by their descriptors, for further workers: for each of the address, those beside it."""
        for (port, mine), descriptors in zip(self._beside, beside, strict=False):
            if port not in self._common:
                mine += [socket.socket(fileno=descriptor) for descriptor in descriptors]
                self._workers = 1 + len(mine)

    def steer(self, workers: int) -> None:
        """Have what comes new go to the sockets of so many workers; of all, if that is how many there are."""
        for port, beside in self._beside:
            # Without it a few connections are lost.
            with suppress(OSError):
                if beside and workers <= len(beside):
                    steer(port.socket, workers)
                elif beside:
                    unsteer(port.socket)

    def grow(self, workers: int) -> None:
        """Bind sockets for so many workers. They take nothing before `resize`. Raises `OSError`."""
        for port, beside in self._beside:
            while port not in self._common and len(beside) < workers - 1:
                beside.append(_bound_beside(port.socket, None))

    def resize(self, workers: int) -> None:
        """Have sockets for so many workers, which `grow` has bound, and no others."""
        for port, beside in self._beside:
            if port not in self._common and port.socket.type == socket.SOCK_STREAM:
                if workers > self._workers:
                    # It would get nothing by a program that knows of fewer.
                    with suppress(OSError):
                        unsteer(port.socket)
                for bound in beside[self._workers - 1 : workers - 1]:
                    bound.listen(getattr(port, "backlog", None) or BACKLOG)
            while len(beside) > workers - 1:
                beside.pop().close()
        self._workers = workers

    def descriptors(self, worker: int) -> list[int]:
        """List the descriptors that one worker, counted from 0, shall inherit."""
        return [(beside[worker - 1] if beside and worker else port.socket).fileno() for port, beside in self._beside]

    def close(self) -> None:
        """Hold the port no more, at once, and remove its socket file. It is open until the last worker closes it."""
        copies = [copy for port, beside in self._beside for copy in (port.socket, *beside)]
        self.listening.abandon()
        # Where the file could not be removed, the port is still open.
        for copy in copies:
            copy.close()


def _bound_beside(first: socket.socket, backlog: int | None) -> socket.socket:
    bound = socket.socket(first.family, first.type)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        if first.type == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            # What comes from now on waits for the worker.
            make_room(bound)
        bound.bind(first.getsockname())
        if first.type == socket.SOCK_STREAM and backlog is not None:
            bound.listen(backlog)
    except OSError:
        bound.close()
        raise
    return bound


def hold(
    reactor: Any,
    address: Address,
    workers: int,
    inherited: Inherited | None = None,
    beside: Sequence[Sequence[int]] | None = None,
) -> HeldPort:
    """Bind the sockets of one address for several workers. Raises `ListenError`.

    With `inherited`, the first is there already. So are those in `beside`, if that is given; then what there is more
    takes nothing before `resize`.
    """
    idle = _Idle(reactor)
    protocol: Any = Factory() if address.kind == "stream" else DatagramProtocol()
    protocol.noisy = False
    results: list[Any] = []
    # Twisted's "starting on" would be wrong here: this process serves nothing.
    opening = hushed(listen, idle, address, protocol, inherited)
    opening.addBoth(results.append)
    if not results:
        opening.cancel()
        raise ListenError("it takes its time to open, and cannot be shared by several workers")
    if not isinstance(results[0], Listening):
        raise results[0].value
    note_file(results[0], address.text)
    held = HeldPort(results[0], workers if beside is None else 1)
    passed = address.scheme == "systemd" and address.kind == "stream"
    try:
        for port in idle.ports or [held.listening.port]:
            _hold(held, port, address, shared=port in idle.passed and (inherited is None or passed))
        if beside is not None:
            held.adopt(beside)
    except ListenError:
        held.close()
        raise
    return held


def _hold(held: HeldPort, port: Any, address: Address, *, shared: bool) -> None:
    bound = getattr(port, "socket", None)
    if bound is None:
        raise ListenError("it is no socket that several workers could share")
    if bound.family not in _INET or (shared and address.scheme != "inet"):
        held.share(port)
        return
    try:
        held.divide(port)
    except OSError as error:
        if address.scheme == "systemd":
            raise ListenError(
                "this user may bind no more sockets beside the one of systemd, and one cannot be shared, "
                "for a peer must stay with one worker; give udp:PORT, or leave out --workers"
            ) from error
        raise ListenError(
            f"it cannot be bound at {held.listening.place()} for every worker: {error.strerror}"
        ) from error


class _Idle:
    """A reactor on which ports are opened, and never read."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.ports: list[Any] = []
        #: Those of `ports` whose stream sockets were bound by somebody else.
        self.passed: list[Any] = []
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def addReader(self, reader: Any) -> None:
        """Read nothing."""

    def removeReader(self, reader: Any) -> None:
        """Read nothing, as before."""

    def removeWriter(self, writer: Any) -> None:
        """Write nothing, as before."""

    def _open(self, port: Any) -> Any:
        port.startListening()
        self.ports.append(port)
        return port

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        return self._open(tcp.Port(port, factory, backlog, interface, self))  # type: ignore[no-any-return]

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def listenUNIX(
        self, address: Any, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        return self._open(unix.Port(address, factory, backlog, mode, self, wantPID))  # type: ignore[no-any-return]

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory) -> IListeningPort:
        if addressFamily == socket.AF_UNIX:
            port: Any = SharedPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            port = tcp.Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        self.passed.append(port)
        return self._open(port)  # type: ignore[no-any-return]

    def adoptDatagramPort(
        self, fileDescriptor: int, addressFamily: int, protocol: Any, maxPacketSize: int = 8192
    ) -> IListeningPort:
        return self._open(  # type: ignore[no-any-return]
            udp.Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, protocol, maxPacketSize)
        )
