"""Open ports: their address, how they are closed or handed on, and the ports of UNIX sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet import tcp, udp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock

from netsvc.base.processes import may_be_netsvc
from netsvc.listen.certificates import escape_path
from netsvc.listen.quiet import quietly
from netsvc.listen.sockets import bind_unix
from netsvc.listen.tls import Certificates
from netsvc.plan.address import written_path
from netsvc.reactor.accept import BACKLOG
from netsvc.reactor.datagrams import LONGEST_DATAGRAM, UDPPort, UNIXDatagramPort
from netsvc.reactor.streams import PlainUNIXPort, UNIXPort, adopt_tcp_port

_log = Logger(namespace="netsvc.listen")


class OpenPort:
    """The open port of one address.

    `path` is a socket file to remove when it is closed; `certificates` has the certificates of a `tls:` address.
    """

    def __init__(self, port: IListeningPort, path: str | None = None, certificates: Certificates | None = None) -> None:
        self.port = port
        self.certificates = certificates
        self.datagrams = isinstance(port, udp.Port)
        self._files = [path] if path else []
        #: The watched file of a UNIX socket, a `netsvc.listen.socket_file.SocketFile`, if any.
        self.file: Any = None
        #: Whether another process serves the waiting connections and datagrams.
        self.shared = False

    @property
    def socket(self) -> Any:
        """The listening socket; None for a port without one."""
        return getattr(self.port, "socket", None)

    def place(self) -> str:
        """Return the address with the real port number; `*` is every interface, IPv4 and IPv6."""
        host: Any = self.port.getHost()
        name = getattr(host, "name", None)
        if name is not None:
            return escape_path(written_path(os.fsdecode(name)))
        # A listener for every interface has this address, and serves IPv4 through the same socket.
        name = "*" if host.host == "::" and self._serves_ipv4() else host.host
        return f"[{name}]:{host.port}" if ":" in name else f"{name}:{host.port}"

    def _serves_ipv4(self) -> bool:
        try:
            return not self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        except (AttributeError, OSError):
            return True

    def pause(self) -> None:
        """Stop accepting and receiving until `resume`; connections and datagrams wait in the kernel."""
        if hasattr(self.port, "stopReading"):
            self.port.stopReading()

    def resume(self) -> None:
        """Accept and receive again."""
        if hasattr(self.port, "startReading"):
            self.port.startReading()

    def take_waiting(self) -> None:
        """Accept the connections and read the datagrams that wait in the kernel, as closing the port drops them."""
        if self.shared:
            return
        port: Any = self.port
        if hasattr(port, "numberAccepts"):
            # Twisted accepts as many at once as in the last burst; here it must accept all that can wait.
            port.numberAccepts = BACKLOG
        getattr(port, "read_waiting" if self.datagrams else "doRead", lambda: None)()

    def stop(self) -> Deferred[Any]:
        """Close the port. The Deferred fires when it is closed; a failure to close is logged."""
        port: Any = self.port
        if hasattr(port, "stopReading") and getattr(port, "connected", False):
            # In the next turn, as Twisted does, which would log it.
            port.stopReading()
            return deferLater(port.reactor, 0, quietly, self.abandon)
        self._spare_file()
        stopping = maybeDeferred(self.port.stopListening)
        stopping.addCallback(self._remove_files)
        return stopping.addErrback(self._not_closed)

    def abandon(self) -> None:
        """Close the port at once, even before the reactor runs; a process that fails to start leaves no file."""
        self._spare_file()
        port: Any = self.port
        if hasattr(port, "stopReading"):
            port.stopReading()
            try:
                port.connectionLost(Failure(ConnectionDone()))
                self._remove_files(None)
            except (OSError, ValueError):
                self._not_closed(Failure())
        else:
            self.stop()

    def release(self) -> None:
        """Close this process's descriptor only: another process has the socket, its connections and its files."""
        port: Any = self.port
        self.share()
        port.stopReading()
        port._shouldShutdown = False
        if isinstance(port, unix.Port):
            # Twisted's own removes the file and the lock.
            tcp.Port.connectionLost(port, Failure(ConnectionDone()))
        else:
            port.connectionLost(Failure(ConnectionDone()))

    def share(self) -> None:
        """Leave the waiting connections and datagrams, and the files, to another process."""
        self.shared = True
        self._files = []

    def own(self, files: Sequence[str]) -> None:
        """Make this process the only owner of the port, which removes these files when it closes the port."""
        self.shared = False
        self._files = list(files)

    def files(self) -> list[str]:
        """List the absolute paths of the files that are removed with the port: its socket, then its lock."""
        port: Any = self.port
        if not isinstance(port, unix.Port) or isinstance(port, _AdoptedMixin):
            return [os.path.abspath(file) for file in self._files]
        bound = os.fsdecode(port._bindPath)
        # A name in the abstract namespace is no file.
        if bound.startswith("\0"):
            return []
        return [os.path.abspath(bound), *([os.path.abspath(f"{bound}.lock")] if port.lockFile is not None else [])]

    def _spare_file(self) -> None:
        """Keep a file that was not created for this socket: another program listens there now."""
        if self.file is not None and not self.file.is_there():
            self._files = []
            if isinstance(self.port, unix.Port):
                # Twisted removes any file at the path, unless the name is in the abstract namespace.
                self.port._bindPath = b"\0" + self.port._bindPath

    def _not_closed(self, failure: Failure) -> None:
        error = failure.value
        port: Any = self.port
        if isinstance(port, unix.Port) and port.connected:
            # Twisted removes the file and the lock first, and stops if it cannot remove one.
            _release_lock(port)
            tcp.Port.connectionLost(port, Failure(ConnectionDone()))
            if isinstance(error, FileNotFoundError):
                return
        if isinstance(error, PermissionError):
            # After --uid the directory of a socket file may not be writable; the next start replaces the file.
            _log.warn(
                "{path} is left behind: {reason}", path=escape_path(os.fsdecode(error.filename)), reason=error.strerror
            )
        else:
            _log.failure("a port failed to close", failure)

    def _remove_files(self, _result: object) -> None:
        for file in self._files:
            Path(file).unlink(missing_ok=True)


def adopt(reactor: Any, bound: socket.socket, protocol: Any) -> Any:
    """Open a port on a bound socket. The port duplicates the descriptor; `bound` is closed."""
    with bound:
        bound.setblocking(False)
        if bound.family == socket.AF_UNIX:
            if bound.type == socket.SOCK_DGRAM:
                return _started(UNIXDatagramPort(reactor, bound, protocol))
            kind = _AdoptedFlushedUNIXPort if hasattr(reactor, "flushes") else _AdoptedUNIXPort
            return _started(kind._fromListeningDescriptor(reactor, bound.fileno(), protocol))
        if bound.type == socket.SOCK_STREAM:
            return adopt_tcp_port(reactor, bound.fileno(), bound.family, protocol)
        if isinstance(reactor, PosixReactorBase):
            return _started(
                UDPPort._fromListeningDescriptor(reactor, bound.fileno(), bound.family, protocol, LONGEST_DATAGRAM)
            )
        return reactor.adoptDatagramPort(bound.fileno(), bound.family, protocol, LONGEST_DATAGRAM)


def _started(port: Any) -> Any:
    try:
        port.startListening()
    except BaseException:
        # The protocol has raised an exception.
        getattr(port, "socket", port).close()
        raise
    return port


class _AdoptedMixin:
    """Makes a UNIX port on a passed socket leave its file, mode and backlog unchanged."""

    _preexistingSocket: Any
    _shouldShutdown: bool
    factory: Any
    startReading: Any
    getHost: Any

    def startListening(self) -> None:
        """Accept connections."""
        tcp._reservedFD.reserve()
        # shutdown(2) of a listening socket would stop it in every process that has it.
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


class _AdoptedUNIXPort(_AdoptedMixin, PlainUNIXPort):  # type: ignore[misc]
    """A UNIX port on a passed socket, for any reactor."""


class _AdoptedFlushedUNIXPort(_AdoptedMixin, UNIXPort):  # type: ignore[misc]
    """The same for the fast reactor."""


class _CleanMixin:
    """Makes a UNIX port bind its file with the right mode, and release its lock and socket if it cannot listen."""

    _bindPath: bytes
    mode: int
    backlog: int
    factory: Any
    wantPID: Any
    lockFile: Any
    connected: Any
    startReading: Any
    createInternetSocket: Any

    def startListening(self) -> None:
        """Open the port; see `IListeningPort.startListening`. Raises `CannotListenError`."""
        tcp._reservedFD.reserve()
        bound: socket.socket | None = None
        try:
            if self.wantPID:
                self._lock()
            self.factory.doStart()
            bound = self.createInternetSocket()
            bind_unix(bound, self._bindPath, self.mode)
            bound.listen(self.backlog)
        except BaseException as error:
            _release_lock(self)
            if bound is not None:
                bound.close()
            if isinstance(error, OSError):
                raise CannotListenError(None, self._bindPath, error) from error
            raise
        self.socket = bound
        self.fileno = bound.fileno
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def _lock(self) -> None:
        """Take the lock, and remove the file of a process that has ended."""
        path = os.fsdecode(self._bindPath)
        lock = self.lockFile = FilesystemLock(f"{path}.lock")
        is_left = False
        if not _lock(lock):
            is_left = _is_left(lock.name, path)
            if is_left:
                os.unlink(lock.name)
            if not is_left or not _lock(lock):
                raise CannotListenError(None, self._bindPath, "Cannot acquire lock")
        if is_left or not lock.clean:
            with suppress(OSError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)


def _lock(lock: FilesystemLock) -> bool:
    """Take a lock; return whether it was free. Raises `OSError` if it cannot be made."""
    try:
        return bool(lock.lock())
    except PermissionError:
        # Either the process in it is another user's, or nothing may be created there.
        if os.path.islink(lock.name):
            return False
        raise


def _is_left(lock: str, path: str) -> bool:
    """Return whether a lock is left over though the pid in it is alive: another program has it by now."""
    try:
        if may_be_netsvc(int(os.readlink(lock))):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, ValueError):
        return False
    return False


class _CleanUNIXPort(_CleanMixin, unix.Port):
    """A UNIX port for any reactor."""


class _CleanFlushedUNIXPort(_CleanMixin, UNIXPort):
    """The same for the fast reactor."""


def listen_unix(reactor: Any, address: Any, factory: Any, backlog: int, mode: int, *, lock: bool) -> IListeningPort:
    """Open a UNIX port; see `IReactorUNIX.listenUNIX`."""
    if not isinstance(reactor, PosixReactorBase):
        return reactor.listenUNIX(address, factory, backlog, mode, lock)  # type: ignore[no-any-return]
    kind = _CleanFlushedUNIXPort if hasattr(reactor, "flushes") else _CleanUNIXPort
    port: Any = kind(address, factory, backlog, mode, reactor, lock)
    port.startListening()
    return port  # type: ignore[no-any-return]


def _release_lock(port: Any) -> None:
    """Release the lock of a UNIX socket, if it is ours, so that another process can listen there."""
    lock: Any = port.lockFile
    if lock is not None and lock.locked:
        with suppress(OSError, ValueError):
            lock.unlock()
