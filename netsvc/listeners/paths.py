"""Sees when the file of a UNIX socket is gone, and makes it again: without it nobody finds the socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from netsvc.listeners.certificates import shown
from netsvc.listeners.opening import Listening
from netsvc.listeners.sockets import BACKLOG

__all__ = ["LOOK_INTERVAL", "Paths", "SocketFile", "note_file"]

#: Seconds between two looks at the files.
LOOK_INTERVAL = 5.0

#: What the system says of a path where there is nothing.
_NOTHING = (errno.ENOENT, errno.ENOTDIR)

_log = Logger(namespace="netsvc.listeners")


class SocketFile:
    """The file of a UNIX socket that is open here. `problem` is a line that says what is wrong with it, if anything.

    When it is gone, the socket is bound anew behind the same port, unless other processes have the socket as well:
    connections, limits and certificates are not touched, and who waits at the old socket is served first.
    """

    def __init__(self, listening: Listening, label: str, name: bytes) -> None:
        self.problem = ""
        self._listening = listening
        self._label = label
        self._name = name
        self._identity: tuple[int, int] | None = None
        try:
            self._identity = _identity(name)
            # What a port knows of it need not be so: another process may have made it.
            self._mode = stat.S_IMODE(os.lstat(name).st_mode)
        except OSError:
            self._identity = None

    @property
    def is_visible(self) -> bool:
        """Whether there was a file when this was made."""
        return self._identity is not None

    def is_there(self) -> bool:
        """Tell whether it is the one that was made for this socket; or whether that cannot be known."""
        try:
            return _identity(self._name) == self._identity
        except OSError:
            return True

    def look(self) -> None:
        """Look whether it is there, and make it again if it is not, and nothing else is in its place."""
        try:
            found = _identity(self._name)
        except OSError:
            # It cannot be seen from here; so nothing is known.
            return
        if found == self._identity:
            self._tell("")
        elif found is not None:
            self._tell("its file has been replaced by another; stop what uses that path, and remove it")
        elif not self._listening.files():
            self._tell("its file is gone; start netsvc anew, as several processes have the socket open")
        else:
            try:
                self._make()
            except OSError as error:
                self._tell(f"its file is gone, and cannot be made again: {(error.strerror or str(error)).lower()}")
            else:
                self._tell("")

    def _tell(self, problem: str) -> None:
        place = shown(os.fsdecode(self._name))
        problem = problem and f"{place}: {problem}"
        if problem != self.problem:
            self.problem = problem
            if problem:
                _log.error("{label} cannot be reached at {problem}", label=self._label, problem=problem)
            else:
                _log.info("{label} can be reached at {place} again", label=self._label, place=place)

    def _make(self) -> None:
        port: Any = self._listening.port
        _lock(port)
        with socket.socket(port.socket.family, port.socket.type) as bound:
            bound.setblocking(False)
            bound.bind(self._name)
            try:
                os.chmod(self._name, self._mode)
                if bound.type == socket.SOCK_STREAM:
                    bound.listen(getattr(port, "backlog", BACKLOG))
                self._listening.take_waiting()
                made = _identity(self._name)
                if made is None:
                    raise FileNotFoundError(errno.ENOENT, "it is gone again")
            except OSError:
                # The next look would take it for another's.
                with suppress(FileNotFoundError):
                    os.unlink(self._name)
                raise
            self._identity = made
            reads = port in port.reactor.getReaders()
            # The reactor knows the descriptor, and the kernel what it stood for.
            port.reactor.removeReader(port)
            os.dup2(bound.fileno(), port.fileno(), inheritable=False)
            if reads:
                port.reactor.addReader(port)
        _log.warn(
            "{label}: the file of {place} was gone, and is made again",
            label=self._label,
            place=shown(os.fsdecode(self._name)),
        )


def note_file(listening: Listening, label: str) -> None:
    """Have a port know its file, if it is a UNIX socket that has one and that can be seen."""
    if listening.file is None and (name := _file_name(listening)):
        file = SocketFile(listening, label, name)
        if file.is_visible:
            listening.file = file


def _identity(name: bytes) -> tuple[int, int] | None:
    """Tell a file from every other one; None if there is none. Raises `OSError` if that cannot be known."""
    try:
        status = os.lstat(name)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    return status.st_dev, status.st_ino


def _lock(port: Any) -> None:
    """Make the lock of a port again as well, if it has one. Raises `OSError` if it is another's now."""
    lock = getattr(port, "lockFile", None)
    if lock is None:
        return
    try:
        if os.fsdecode(os.readlink(lock.name)) == str(os.getpid()):
            return
    except FileNotFoundError:
        pass
    if not lock.lock():
        raise BlockingIOError(errno.EAGAIN, "its lock belongs to another process")


class Paths:
    """Looks at the files of all UNIX sockets of a process every `LOOK_INTERVAL` seconds, if it has any.

    `listeners` returns the ports, each with what it is called. One whose file cannot be seen when it is noted (a root
    that has been changed since) is left alone.
    """

    def __init__(self, clock: Any, listeners: Callable[[], Iterable[tuple[str, Listening]]]) -> None:
        self._clock = clock
        self._listeners = listeners
        self._call: Any = None

    def note(self) -> None:
        """Take note of the files of ports that have been opened."""
        for label, listening in self._listeners():
            note_file(listening, label)
        if self._call is None and any(listening.file for _, listening in self._listeners()):
            self._call = self._clock.callLater(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        self._call = None
        for _, listening in self._listeners():
            if listening.file is not None:
                listening.file.look()
        self.note()

    def close(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


def _file_name(listening: Listening) -> bytes:
    """Return the path of a UNIX socket as it was bound; empty for any other."""
    port: Any = listening.port
    if getattr(getattr(port, "socket", None), "family", None) != socket.AF_UNIX:
        return b""
    name = port.getHost().name or b""
    name = os.fsencode(name)
    return b"" if name.startswith(b"\0") else name
