"""Asks the kernel how far a TCP connection has come (`TCP_INFO`, tcp(7)), so that nobody has to count."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, NamedTuple

__all__ = ["Progress", "read_progress", "socket_transport"]

_TCP_INFO: Any = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None

#: Of `struct tcp_info` in linux/tcp.h; other systems lay theirs out otherwise. A kernel before 4.2 gives less.
_FIELDS = struct.Struct("=8xI12xI16xI4xII60xQQ")

#: Wrappers that may stand around a socket's transport: PROXY, TLS, and what a program adds.
_DEEPEST = 8


class Progress(NamedTuple):
    """How far a connection has come."""

    #: Microseconds after which what is not acknowledged would be sent again.
    timeout: int
    #: Segments that are out and not acknowledged.
    outstanding: int
    #: Milliseconds since data was sent, since data was received, and since an acknowledgement of any kind came.
    sent_ago: int
    received_ago: int
    heard_ago: int
    #: Bytes that the peer has acknowledged, and bytes that it has sent; the end of the stream counts as one.
    acknowledged: int
    received: int


def read_progress(transport: Any) -> Progress | None:
    """Ask the kernel about the connection of a socket's transport; None if it does not say."""
    try:
        return Progress._make(
            _FIELDS.unpack(transport.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)),
        )
    except (AttributeError, OSError, TypeError, struct.error):
        # A UNIX socket, a fake, one that is closed, or a system without it.
        return None


def socket_transport(transport: Any) -> Any:
    """Return the transport that owns the socket, below whatever stands around it; None if it is not there yet."""
    for _ in range(_DEEPEST):
        if transport is None or not hasattr(transport, "transport"):
            return transport
        transport = transport.transport
    return None
