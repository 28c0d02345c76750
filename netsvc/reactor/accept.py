"""Stops accepting for a moment when file descriptors run out; connections wait in the kernel meanwhile.

Twisted closes such connections if it can. If it cannot, accept(2) fails, the connections stay in the queue, and the
reactor retries in a busy loop.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from contextlib import suppress
from math import inf
from typing import Any

from twisted.internet import tcp
from twisted.logger import Logger
from twisted.python import log

#: The backlog: connections that may wait for accept(2). Twisted's default of 50 refuses clients in a burst; the kernel
#: reduces this to net.core.somaxconn.
BACKLOG = 4096
#: Seconds for which a port stops accepting.
ACCEPT_PAUSE = 0.1
#: Descriptors that are kept free for files and for the administration ports; an eighth of the limit if that is less.
RESERVED_DESCRIPTORS = 64
#: Seconds between two warnings.
WARN_INTERVAL = 60.0

#: Errors that accept(2) reports for a connection that was lost before it was accepted.
_GONE = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "ETIMEDOUT", "ECONNRESET"),
        *("ENETDOWN", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH"),
    )
    if hasattr(errno, name)
)
_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
#: SO_LINGER of socket(7) with a time of 0: closing resets the connection, and the kernel frees its data.
RESET = struct.pack("ii", 1, 0)
#: Errors of a descriptor that is not a listening socket any more; waiting would not help.
_CLOSED = frozenset((errno.EBADF, errno.ENOTSOCK))

#: Larger than any descriptor.
_NO_CEILING = 1 << 31

_log = Logger(namespace="netsvc.listen")


class AcceptMixin(tcp.Port):
    """Accepts the connections of a stream port.

    If it `pauses_when_full`, and accept(2) fails or returns one of the last descriptors (`RESERVED_DESCRIPTORS`), the
    port stops accepting for `ACCEPT_PAUSE` seconds, repeatedly until descriptors are free. A warning is logged at most
    once in `WARN_INTERVAL` seconds. Without `pauses_when_full` it behaves like Twisted's ports.
    """

    socket: Any
    reactor: Any
    #: The type of the sockets of `accept`. With SOCK_NONBLOCK, they do not block already.
    accepted_type: int = socket.SOCK_STREAM
    #: Set by `pause_when_full`.
    pauses_when_full = False
    #: The first descriptor that it may not use.
    _ceiling = _NO_CEILING
    # The delayed call that resumes accepting.
    _resume_call: Any = None
    _warned_at = -inf

    def startReading(self) -> None:
        """Accept connections, unless the port is paused."""
        if self._resume_call is None:
            super().startReading()

    def stopReading(self) -> None:
        """Stop accepting connections."""
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        super().stopReading()

    def accept(self) -> tuple[int, Any]:
        """Accept a connection; return its descriptor and address. Raises `OSError`; see accept(2)."""
        # `socket.accept` would make a system call for the type of each socket.
        return self.socket._accept()  # type: ignore[no-any-return]

    def doRead(self) -> None:
        """Accept and serve the waiting connections."""
        accepted = 0
        try:
            while accepted < self.numberAccepts:
                descriptor, peer = self.accept()
                accepted += 1
                # The kernel assigns the lowest free number, so all lower ones are in use.
                is_last = descriptor >= self._ceiling
                self._serve(descriptor, peer)
                if is_last and self.connected:
                    self._pause(errno.EMFILE)
                if is_last or not self.connected:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if not self.pauses_when_full:
                super().doRead()
                return
            if error.errno in _CLOSED:
                log.err()
            elif error.errno not in _GONE:
                self._pause(error.errno)
        # More may be waiting than were accepted.
        self.numberAccepts = self.numberAccepts + 20 if accepted == self.numberAccepts else max(1, accepted)

    def _serve(self, descriptor: int, peer: Any) -> None:
        connection = socket.socket(self.addressFamily, self.accepted_type, 0, descriptor)
        if type(peer) is tuple and len(peer) == 4 and peer[3]:
            # Add the interface name to a scoped IPv6 address.
            host, _ = socket.getnameinfo(peer, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
            peer = (host, *peer[1:])
        protocol = None
        try:
            address = self._buildAddr(peer)
            protocol = self.factory.buildProtocol(address)  # type: ignore[union-attr]
            if protocol is not None:
                number = self.sessionno
                self.sessionno = number + 1
                transport: Any = self.transport(connection, protocol, peer, self, number, self.reactor)
                if type(peer) is tuple:
                    # The same for whoever asks.
                    transport.peer = address
                protocol.makeConnection(transport)
        except BaseException:  # noqa: BLE001  (an error of one connection must not stop the port)
            log.err()
        if protocol is None:
            # In some protocols an orderly end without a byte is an answer. Twisted's ports end in order all the same.
            if getattr(self.factory, "resets_refused", False):
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()

    def _pause(self, number: int | None) -> None:
        self.stopReading()
        self._warn(number)
        self._resume_call = self.reactor.callLater(ACCEPT_PAUSE, self._resume_if_room)

    def _warn(self, number: int | None) -> None:
        now = self.reactor.seconds()
        # The clock may be set back.
        if not 0 <= now - self._warned_at < WARN_INTERVAL:
            self._warned_at = now
            _log.warn(
                "{place}: not accepting for now: {reason}{cure}",
                place=self._getLogPrefix(self.factory),
                reason=os.strerror(number or 0).lower(),
                cure="; raise ulimit -n" if number in _DESCRIPTORS else "",
            )

    def _resume_if_room(self) -> None:
        if self._ceiling != _NO_CEILING:
            self._ceiling = _ceiling()
        if not self._has_room():
            self._resume_call = self.reactor.callLater(ACCEPT_PAUSE, self._resume_if_room)
            return
        self._resume_call = None
        self.startReading()

    def _has_room(self) -> bool:
        try:
            probe = os.dup(self.socket.fileno())
        except OSError:
            return False
        os.close(probe)
        return probe < self._ceiling


def _ceiling() -> int:
    """Return the descriptor limit without the reserved ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _NO_CEILING if soft == resource.RLIM_INFINITY else soft - min(RESERVED_DESCRIPTORS, soft // 8)


def pause_when_full(port: Any, *, use_reserved: bool = False) -> None:
    """Make a port stop accepting while descriptors run out, if it can. `use_reserved`: it may use the last ones."""
    if isinstance(port, AcceptMixin):
        port.pauses_when_full = True
        port._ceiling = _NO_CEILING if use_reserved else _ceiling()
