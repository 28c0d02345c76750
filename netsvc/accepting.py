"""A listening socket that rests while the process has no room for connections: those that come wait in the kernel.

Twisted closes them instead, if it still can; and if not, it asks for them again and again as fast as the machine can,
as accept(2) fails and leaves them where they are.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from math import inf
from typing import Any

from twisted.logger import Logger

__all__ = ["HEADROOM", "REST", "TELL_INTERVAL", "Acceptor", "RestingAcceptor", "accept_by"]

#: Seconds after which a port that rests looks whether there is room.
REST = 0.1
#: Descriptors that connections leave to others, to files and to whoever asks the process to do something; an eighth of
#: all that there may be, where that is less.
HEADROOM = 64
#: Seconds from one line about it to the next.
TELL_INTERVAL = 60.0

#: What a connection has come to before it was accepted: accept(2) passes it on, and takes the connection away.
_GONE = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "ETIMEDOUT", "ECONNRESET"),
        *("ENETDOWN", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH"),
    )
    if hasattr(errno, name)
)
_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
#: The socket is no more, or never was one: to wait would not help.
_CLOSED = frozenset((errno.EBADF, errno.ENOTSOCK))

#: No descriptor has this number.
_NO_CEILING = 1 << 31

_log = Logger(namespace="netsvc.listeners")


class Acceptor(socket.socket):
    """A listening socket that does not ask the system for every connection of what kind it is itself."""

    def __init__(self, listening: socket.socket) -> None:
        self._kind = (listening.family, listening.type, listening.proto)
        super().__init__(*self._kind, fileno=listening.detach())
        self.setblocking(False)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; see accept(2)."""
        descriptor, peer = self._accept()  # type: ignore[attr-defined]
        return socket.socket(*self._kind, fileno=descriptor), peer


class RestingAcceptor(Acceptor):
    """The socket of a stream port, in the place of the one that it has.

    When it cannot accept, or only by taking what is left to others (`HEADROOM`), its port is taken out of the reactor
    for `REST` seconds; when that is over it looks whether there is room again. Whoever starts or stops the port
    meanwhile is listened to. What goes on is logged once in `TELL_INTERVAL` seconds.
    """

    def __init__(self, port: Any) -> None:
        super().__init__(port.socket)
        self._port = port
        self._waking: Any = None
        self._wanted = False
        self._told = -inf
        self._spare = False
        self._ceiling = _ceiling()

    def use_spare(self) -> None:
        """Accept as long as there is any descriptor: this is for those to whom the last ones are left."""
        self._spare = True
        self._ceiling = _NO_CEILING

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises `BlockingIOError` if there is none, and if there is no room for it."""
        if self._waking is not None:
            # It is asked until there is nobody left.
            raise BlockingIOError(errno.EAGAIN, "no room")
        try:
            connection, peer = super().accept()
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _CLOSED:
                raise
            if error.errno in _GONE:
                # Twisted goes on with the next one.
                raise PermissionError(errno.EPERM, "lost before it was accepted") from None
            self._rest(error.errno)
            raise BlockingIOError(errno.EAGAIN, "no room") from None
        if connection.fileno() >= self._ceiling:
            # The kernel gives the lowest number that is free; so all below are taken.
            self._rest(errno.EMFILE)
        return connection, peer

    def _rest(self, number: int | None) -> None:
        port = self._port
        self._wanted = True
        port.startReading, port.stopReading = self._started, self._stopped
        port.reactor.removeReader(port)
        self._tell(number)
        self._waking = port.reactor.callLater(REST, self._wake)

    def _tell(self, number: int | None) -> None:
        now = self._port.reactor.seconds()
        # The clock may be set back.
        if not 0 <= now - self._told < TELL_INTERVAL:
            self._told = now
            _log.warn(
                "{place}: connections have to wait: {reason}{cure}",
                place=self._port._getLogPrefix(self._port.factory),
                reason=os.strerror(number or 0).lower(),
                cure="; is a higher ulimit -n needed?" if number in _DESCRIPTORS else "",
            )

    def _started(self) -> None:
        self._wanted = True

    def _stopped(self) -> None:
        self._wanted = False

    def _wake(self) -> None:
        port = self._port
        if not self._spare:
            self._ceiling = _ceiling()
        if not self._has_room():
            self._waking = port.reactor.callLater(REST, self._wake)
            return
        self._waking = None
        del port.startReading, port.stopReading
        if self._wanted:
            port.startReading()

    def _has_room(self) -> bool:
        try:
            probe = os.dup(self.fileno())
        except OSError:
            return False
        os.close(probe)
        return probe < self._ceiling

    def close(self) -> None:
        """Close the socket, and wait for nothing any more."""
        port, self._port = self._port, None
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
            del port.startReading, port.stopReading
        super().close()


def _ceiling() -> int:
    """Return how many descriptors there may be without those that are left to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _NO_CEILING if soft == resource.RLIM_INFINITY else soft - min(HEADROOM, soft // 8)


def accept_by(port: Any, *, spare: bool = False) -> None:
    """Put a `RestingAcceptor` in the place of the socket of a stream port that is open, on any reactor with sockets.

    `spare`: it is for those to whom `HEADROOM` is left.
    """
    if isinstance(getattr(port, "socket", None), socket.socket) and not isinstance(port.socket, RestingAcceptor):
        port.socket = RestingAcceptor(port)
        # Its descriptor stays the same.
        port.fileno = port.socket.fileno
    if spare and isinstance(getattr(port, "socket", None), RestingAcceptor):
        port.socket.use_spare()
