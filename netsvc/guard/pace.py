"""Has the kernel keep what a TCP connection sends to so many bytes a second. Nothing of ours runs for a write then."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from netsvc.guard.tcp_info import socket_transport

__all__ = ["pace"]

#: SO_MAX_PACING_RATE of socket(7), which Python has no name for.
_MAX_PACING_RATE = 47
_UNSIGNED_LONG = struct.Struct("@L")
#: Segments of a connection that the kernel sends before it begins to pace (tcp_update_skb_after_send).
_UNPACED = 10
#: Bytes a second above which it costs more than to count: between segments of one message the kernel waits for a timer,
#: also where the message is far from the limit. It halves what an echo of 64 KiB does.
_HIGHEST = 50_000_000
#: Bytes that may wait in the kernel to be paced, at least: they are memory, and the sender has no say in them any more.
_LEAST_WAITING = 128 * 1024


def pace(transport: Any, rate: int) -> bool:
    """Have the kernel send at most `rate` bytes a second, headers included; return whether it will.

    It will not where it is not Linux or not TCP, where so low a rate would be exceeded by what goes before the pacing
    begins, and where so high a one would cost too much. The rate can be set anew.
    """
    connection = getattr(socket_transport(transport), "socket", None)
    if sys.platform != "linux" or connection is None or rate > _HIGHEST:
        return False
    try:
        if rate < _UNPACED * connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG):
            return False
        connection.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, _UNSIGNED_LONG.pack(rate))
        # Otherwise megabytes would wait in the kernel for each slow connection.
        waiting = max(_LEAST_WAITING, rate // 4)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, waiting)
    except OSError:
        return False
    return True
