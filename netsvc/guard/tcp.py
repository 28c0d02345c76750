"""Reads the kernel's statistics of a TCP connection (`TCP_INFO`, tcp(7)), and sets its pacing rate and keep-alive.

With both in the kernel, none of our code runs when bytes are transferred.
"""

from __future__ import annotations

import math
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, NamedTuple

_TCP_INFO: Any = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None

#: The part of `struct tcp_info` in linux/tcp.h that is used. A kernel before 4.19 returns less.
_FIELDS = struct.Struct("=BxBB4xI12xI16xI4xII60xQQ8xI52xQQ")
#: The errors of a UNIX socket, a fake in a test, a closed socket, or a system without TCP_INFO.
_NO_INFO = (AttributeError, OSError, TypeError, struct.error)
#: The fields of `traffic`, which are read for each connection that ends.
_TRAFFIC_FIELDS = struct.Struct("=B119xQQ8xI52xQQ")

#: States of a connection (RFC 9293, section 3.3.2), by the kernel's numbers: the peer has closed its side.
_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT = 8, 9, 11, 6
_FIN_WAIT_1 = 4
#: The state after both sides have closed, or one has reset the connection.
_CLOSED = 7
_PEER_ENDED = frozenset((_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT))
#: States in which the peer has closed before the server.
_PEER_FIRST = frozenset((_CLOSE_WAIT, _LAST_ACK))
#: States in which our end of the stream waits to be sent or acknowledged; while unsent, it counts as an unsent byte.
_ENDING = frozenset((_FIN_WAIT_1, _LAST_ACK, _CLOSING))

#: Keep-alive probes of which one must be answered.
_PROBES = 4
#: A peer that has answered nothing for this many times `keepalive` is gone.
GONE_AFTER = 1.5
#: Segments, one after the other, that a peer must have left unanswered: a single one can be lost on its way.
_UNANSWERED = 3
#: SO_MAX_PACING_RATE of socket(7); not in Python's socket module.
_MAX_PACING_RATE = 47
_UNSIGNED_LONG = struct.Struct("@L")
#: Segments that the kernel sends before it starts pacing (tcp_update_skb_after_send).
_UNPACED = 10
#: The rate in bytes per second above which pacing costs more than counting: the kernel waits for a timer between the
#: segments of a message, even far below the limit. It halves the throughput of an echo of 64 KiB.
_HIGHEST = 50_000_000
#: The least number of unsent bytes that the kernel may buffer. They use memory, and cannot be taken back.
_LEAST_WAITING = 128 * 1024


class TCPInfo(NamedTuple):
    """Counters and timers of a connection."""

    state: int
    #: Retransmissions, and probes of a closed window, since the peer last acknowledged anything.
    retransmitted: int
    probed: int
    #: The retransmission timeout in microseconds; it is doubled by each retransmission.
    timeout: int
    #: Segments that were sent and not acknowledged.
    outstanding: int
    #: Milliseconds since data was last sent, data last received, and any acknowledgement last received.
    sent_ago: int
    received_ago: int
    heard_ago: int
    #: Bytes acknowledged by the peer, and bytes received from it; the end of the stream counts as one.
    acknowledged: int
    received: int
    #: Bytes not sent yet, bytes sent, and the retransmitted part of these.
    unsent: int
    sent: int
    sent_again: int

    @property
    def is_settled(self) -> bool:
        """Whether the peer has acknowledged everything, also the end of the stream once we have closed."""
        return self.state == _CLOSED or not (self.outstanding or self.unsent)

    @property
    def unanswered(self) -> float:
        """Seconds in which the peer has answered nothing that was sent to it; 0 if it is not known to be silent.

        A live peer that does not read answers the probes of its closed window. The time counts from the first segment
        that was not answered, not from the last that was: nothing may have been sent in between.
        """
        if max(self.retransmitted, self.probed) < _UNANSWERED:
            return 0.0
        silent = self.heard_ago / 1000
        if not self.retransmitted:
            return silent
        # The timeout has doubled each time (RFC 6298, section 5.5), and so tells when the first one began.
        first = self.timeout * 0.5**self.retransmitted
        return min(silent, (self.timeout - first) / 1e6 + self.sent_ago / 1000)


class Traffic(NamedTuple):
    """Bytes in each direction; written bytes count once the kernel has them. `peer_first`: the peer closed first.

    Of a `closed` connection, which both sides have closed or one has reset, `received` is one too high if the peer
    closed in order. `left` of the written bytes are not acknowledged.
    """

    received: int
    sent: int
    peer_first: bool | None = None
    closed: bool = False
    left: int = 0


def read_tcp_info(transport: Any) -> TCPInfo | None:
    """Return the kernel's statistics of a transport's connection; None if there are none."""
    try:
        return TCPInfo._make(_FIELDS.unpack(transport.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)))
    except _NO_INFO:
        return None


def read_traffic(transport: Any) -> Traffic | None:
    """Return what the kernel counted of a transport's connection; None if there is nothing."""
    # For each connection that ends, so with as few calls as possible.
    try:
        fields = _TRAFFIC_FIELDS.unpack(
            transport.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TRAFFIC_FIELDS.size)
        )
    except _NO_INFO:
        return None
    return _traffic(fields)


def traffic(info: TCPInfo) -> Traffic:
    """Return the traffic of a connection by its statistics."""
    return _traffic((info.state, *info[-5:]))


def _traffic(fields: tuple[int, ...]) -> Traffic:
    state, acknowledged, received, unsent, sent, sent_again = fields
    written = sent - sent_again + unsent
    if unsent and state in _ENDING:
        written -= 1
    # The end of the stream is acknowledged like a byte.
    left = written - acknowledged if written > acknowledged else 0
    return Traffic(received - (state in _PEER_ENDED), written, state in _PEER_FIRST, state == _CLOSED, left)


def keep_alive(port: Any, seconds: float | None) -> None:
    """Set the keep-alive of the connections that a TCP port accepts from now on; None turns it off.

    After `seconds` without a segment from the peer, the kernel sends four probes within half of that time again. If
    none is answered, the connection is lost. Any live host answers them, whatever its programs do. There are no probes
    while data is on its way to the peer: see `TCPInfo.unanswered`. Does nothing for other ports, and on systems without
    these options.
    """
    listening: Any = getattr(port, "socket", None)
    if getattr(listening, "family", None) not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
        return
    # Accepted sockets inherit the options of the listening one.
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, seconds is not None)
        if seconds is not None:
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(seconds))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, math.ceil(seconds / (2 * _PROBES)))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def pace(transport: Any, rate: int) -> bool:
    """Limit sending to `rate` bytes per second, headers included, by the kernel; return whether that was possible.

    It is not possible on systems other than Linux, on sockets other than TCP, at a rate so low that the segments before
    pacing starts would exceed it, and at a rate so high that pacing would cost too much. The rate can be set again.
    """
    connection = getattr(transport, "socket", None)
    if sys.platform != "linux" or connection is None or rate > _HIGHEST:
        return False
    try:
        if rate < _UNPACED * connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG):
            return False
        connection.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, _UNSIGNED_LONG.pack(rate))
        # Otherwise the kernel would buffer megabytes for each slow connection.
        waiting = max(_LEAST_WAITING, rate // 4)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, waiting)
    except OSError:
        return False
    return True
