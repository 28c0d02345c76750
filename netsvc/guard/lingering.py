"""Keeps the socket of a closed connection until its peer has acknowledged everything.

Otherwise the kernel would keep the data for minutes, and outside of every limit: the sockets of peers that do not read
what they have requested could fill the memory of the machine.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from netsvc.guard.tcp import TCPInfo, Traffic, read_tcp_info, traffic
from netsvc.reactor.accept import RESET

_MOST_READ = 65536


class Lingering:
    """A socket that is shut down for writing, in place of the transport that it belonged to.

    What the peer sends is read and dropped. `ended` is called once, when the peer has acknowledged everything or the
    connection is reset, with the kernel's last counts and whether we have reset it.
    """

    #: Transports with `disconnecting` have been closed.
    disconnecting = True

    def __init__(self, kept: socket.socket, reactor: Any, ended: Callable[[Traffic, bool], None]) -> None:
        self.socket = kept
        self._ended = ended
        self._is_over = False
        self._reactor = reactor
        #: Whether the reactor reports acknowledgements; otherwise `look` must be called from time to time.
        self.is_notified = False
        if hasattr(reactor, "add_edges"):
            # The kernel limits the number of watched descriptors.
            with suppress(OSError):
                reactor.add_edges(self)
                self.is_notified = True

    def fileno(self) -> int:
        """Return the descriptor; -1 when it is over."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """Return the name in Twisted's log lines."""
        return "a closed connection"

    def doRead(self) -> None:
        """Drop what the peer sends."""
        try:
            if self.socket.recv(_MOST_READ):
                self._reactor.add_edges(self)
        except OSError:
            # Nothing to read, or the peer has reset the connection.
            pass

    def doWrite(self) -> None:
        """See whether the peer has acknowledged everything."""
        self.look()

    def connectionLost(self, reason: object = None) -> None:
        """End it: both sides have closed the connection, or the reactor stops."""
        self.look()
        self.abortConnection()

    def look(self) -> TCPInfo | None:
        """End it if the peer has acknowledged everything; otherwise return the kernel's counts."""
        if self._is_over:
            return None
        info = read_tcp_info(self)
        if info is not None and not info.is_settled:
            return info
        self._end(info, False)
        return None

    def loseConnection(self) -> None:
        """Do nothing: the connection has been closed in order."""

    def abortConnection(self) -> None:
        """Reset the connection, and discard what is not acknowledged."""
        if not self._is_over:
            info = read_tcp_info(self)
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._end(info, True)

    def _end(self, info: TCPInfo | None, was_reset: bool) -> None:
        self._is_over = True
        if self.is_notified:
            self._reactor.remove_edges(self)
        self.socket.close()
        self._ended(Traffic(0, 0) if info is None else traffic(info), was_reset)
