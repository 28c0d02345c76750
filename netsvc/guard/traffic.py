"""How many bytes a connection has taken and sent, at its socket. Of TCP on Linux the kernel has counted them.

So nothing of it runs when bytes come or go. Of any other socket, a UNIX one mostly, they are counted where Twisted
takes them from it and hands them to it.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, NamedTuple

from twisted.internet.tcp import Server
from twisted.internet.unix import Server as UNIXServer

__all__ = ["Counted", "Traffic", "count", "traffic"]

_TCP_INFO: Any = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None

#: Of `struct tcp_info` in linux/tcp.h: the state, bytes received, bytes not sent yet, and bytes sent, of which some
#: were sent again. A kernel before 4.19 gives less.
_FIELDS = struct.Struct("=B127xQ8xI52xQQ")

#: States of a connection whose peer has ended its side (RFC 9293, section 3.3.2, in the kernel's numbers).
_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT = 8, 9, 11, 6
#: What both sides have ended, or one has broken off, is closed.
_CLOSED = 7
#: The end of the stream counts as a byte received.
_ENDED = frozenset((_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT))


class Traffic(NamedTuple):
    """Bytes each way; what was written counts once the kernel has it. `peer_first`: the peer was the first to end.

    `received` is one more where a connection is `closed`, if its peer has ended it in order.
    """

    received: int
    sent: int
    peer_first: bool | None = None
    closed: bool = False


_NOTHING = Traffic(0, 0)


def traffic(lowest: Any) -> Traffic:
    """Return what a transport that has a socket has taken and sent so far; nothing for one that does not say."""
    try:
        state, received, unsent, sent, again = _FIELDS.unpack(
            lowest.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)
        )
    except (AttributeError, OSError, TypeError, struct.error):
        counted = getattr(lowest, "traffic", None)
        return counted.so_far() if isinstance(counted, Counted) else _NOTHING
    peer_first = state in (_CLOSE_WAIT, _LAST_ACK)
    return Traffic(received - (state in _ENDED), sent - again + unsent, peer_first, state == _CLOSED)


class Counted:
    """Counts the bytes of a transport whose socket does not."""

    __slots__ = ("_end", "_lowest", "_receive", "_send", "peer_first", "received", "sent")

    def __init__(self, lowest: Any) -> None:
        self.received = self.sent = 0
        self.peer_first: bool | None = None
        self._lowest = lowest
        self._receive, self._send = lowest._dataReceived, lowest.writeSomeData
        self._end = getattr(lowest, "readConnectionLost", None)
        lowest._dataReceived, lowest.writeSomeData = self._received, self._write
        lowest.readConnectionLost = self._ended
        lowest.traffic = self

    def so_far(self) -> Traffic:
        """Return what was counted."""
        return Traffic(self.received, self.sent, self.peer_first)

    def _received(self, data: bytes) -> Any:
        self.received += len(data)
        return self._receive(data)

    def _write(self, data: Any) -> Any:
        sent = self._send(data)
        # An exception in place of a number says that the connection is lost.
        if sent.__class__ is int:
            self.sent += sent
        return sent

    def _ended(self, reason: Any) -> Any:
        lowest = self._lowest
        self.peer_first = not (getattr(lowest, "disconnecting", False) or getattr(lowest, "_writeDisconnected", False))
        return self._end(reason) if self._end is not None else None

    def clear(self) -> None:
        """Count no more: this and the transport refer to each other."""
        lowest = self._lowest
        del lowest._dataReceived, lowest.writeSomeData, lowest.readConnectionLost, lowest.traffic


def count(lowest: Any) -> None:
    """See to it that `traffic` can tell of a transport."""
    if isinstance(lowest, Server) and not isinstance(lowest, UNIXServer) and _TCP_INFO is not None:
        return
    if hasattr(lowest, "writeSomeData") and hasattr(lowest, "_dataReceived"):
        Counted(lowest)
