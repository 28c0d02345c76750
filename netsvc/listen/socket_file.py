"""The files of open UNIX sockets: checked from time to time, and created again if another program has removed one."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from netsvc.listen.certificates import escape_path
from netsvc.listen.port import OpenPort
from netsvc.listen.sockets import bind_unix
from netsvc.reactor.accept import BACKLOG

#: Seconds between two checks of the files of UNIX sockets.
LOOK_INTERVAL = 5.0

#: Errors of a path where there is no file.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)

_log = Logger(namespace="netsvc.listen")


class SocketFile:
    """The file of an open UNIX socket. `problem` is a line that describes the present problem; empty if there is none.

    If the file was removed, the socket is bound again behind the same port, unless other processes have the socket as
    well. Connections, limits and certificates are unchanged; connections that wait at the old socket are served first.
    """

    def __init__(self, opened: OpenPort, label: str, name: bytes) -> None:
        self.problem = ""
        self._opened = opened
        self._label = label
        self._name = name
        self._identity: tuple[int, int] | None = None
        try:
            self._identity = _identity(name)
            # Another process may have created the file, with a mode that the port does not know.
            self._mode = stat.S_IMODE(os.lstat(name).st_mode)
        except OSError:
            self._identity = None

    @property
    def is_visible(self) -> bool:
        """Whether the file existed when this object was created."""
        return self._identity is not None

    def is_there(self) -> bool:
        """Return whether the file is the one that was created for this socket; True if that cannot be determined."""
        try:
            return _identity(self._name) == self._identity
        except OSError:
            return True

    def look(self) -> None:
        """Check the file, and create it again if it is missing."""
        try:
            found = _identity(self._name)
        except OSError:
            # The path is not accessible.
            return
        if found == self._identity:
            self._report("")
        elif found is not None:
            self._report("its file has been replaced; stop the program that uses this path, and remove the file")
        elif not self._opened.files():
            self._report("its file was removed; restart netsvc, as several processes have the socket open")
        else:
            try:
                self._make()
            except OSError as error:
                self._report(f"its file was removed, and cannot be created: {(error.strerror or str(error)).lower()}")
            else:
                self._report("")

    def _report(self, problem: str) -> None:
        place = escape_path(os.fsdecode(self._name))
        problem = problem and f"{place}: {problem}"
        if problem != self.problem:
            self.problem = problem
            if problem:
                _log.error("{label} is not reachable at {problem}", label=self._label, problem=problem)
            else:
                _log.info("{label} is reachable again at {place}", label=self._label, place=place)

    def _make(self) -> None:
        port: Any = self._opened.port
        _renew_lock(port)
        with socket.socket(port.socket.family, port.socket.type) as bound:
            bound.setblocking(False)
            bind_unix(bound, self._name, self._mode)
            try:
                if bound.type == socket.SOCK_STREAM:
                    bound.listen(getattr(port, "backlog", BACKLOG))
                self._opened.take_waiting()
                made = _identity(self._name)
                if made is None:
                    raise FileNotFoundError(errno.ENOENT, "it was removed again")
            except OSError:
                # The next check would take it for the file of another program.
                with suppress(FileNotFoundError):
                    os.unlink(self._name)
                raise
            self._identity = made
            reads = port in port.reactor.getReaders()
            # The reactor polls by descriptor, but the kernel by socket; so register the new socket.
            port.reactor.removeReader(port)
            os.dup2(bound.fileno(), port.fileno(), inheritable=False)
            if reads:
                port.reactor.addReader(port)
        _log.warn(
            "{label}: the file of {place} was removed, and has been created again",
            label=self._label,
            place=escape_path(os.fsdecode(self._name)),
        )


def watch_file(opened: OpenPort, label: str) -> None:
    """Set the `file` of a port that is a UNIX socket with a visible file."""
    if opened.file is None and (name := _file_name(opened)):
        file = SocketFile(opened, label, name)
        if file.is_visible:
            opened.file = file


def _file_name(opened: OpenPort) -> bytes:
    """Return the path of a UNIX socket as it was bound; empty for other sockets."""
    if getattr(opened.socket, "family", None) != socket.AF_UNIX:
        return b""
    port: Any = opened.port
    name = os.fsencode(port.getHost().name or b"")
    return b"" if name.startswith(b"\0") else name


def _identity(name: bytes) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it does not exist. Raises `OSError` if it is not accessible."""
    try:
        status = os.lstat(name)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    return status.st_dev, status.st_ino


def _renew_lock(port: Any) -> None:
    """Create the lock of a port again, if it has one. Raises `OSError` if another process holds it now."""
    lock = getattr(port, "lockFile", None)
    if lock is None:
        return
    try:
        if os.fsdecode(os.readlink(lock.name)) == str(os.getpid()):
            return
    except FileNotFoundError:
        pass
    if not lock.lock():
        raise BlockingIOError(errno.EAGAIN, "another process holds its lock")


class SocketFiles:
    """Checks the files of all UNIX sockets of a process every `LOOK_INTERVAL` seconds, if it has any.

    `ports` returns the open ports, each with its label. A file that is not visible when `note` is called, for example
    after a change of the root directory, is not watched.
    """

    def __init__(self, clock: Any, ports: Callable[[], Iterable[tuple[str, OpenPort]]]) -> None:
        self._clock = clock
        self._ports = ports
        self._call: Any = None

    def note(self) -> None:
        """Watch the files of newly opened ports."""
        for label, opened in self._ports():
            watch_file(opened, label)
        if self._call is None and any(opened.file for _, opened in self._ports()):
            self._call = self._clock.callLater(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        self._call = None
        for _, opened in self._ports():
            if opened.file is not None:
                opened.file.look()
        self.note()

    def close(self) -> None:
        """Stop watching."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
