"""Writes to a connection's socket and closes it, without a turn through the event loop where nothing is lost by that.

A transport keeps what is written until its reactor comes by, and half-closes after that. For a small file that is as
much work as all the rest; and the file leaves together with the end of the stream, in one segment, if both are sent
at once.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.tcp import Server

#: Tells the kernel that more follows at once, so that it does not send a partial segment. Linux has it.
_MORE: int = getattr(socket, "MSG_MORE", 0)
#: Lets the kernel hold a partial segment; bounds the bytes that the kernel keeps before it sends them. Linux has both.
_CORK: int | None = getattr(socket, "TCP_CORK", None)
_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)

#: Bytes of a large file that wait in a socket. The reactor comes by when half of them have been sent.
UNSENT = 256 * 1024

#: Seconds that a client has to close after we have. Less than the 4 s that a drain gives connections.
LINGER = 2.0


def can_sendfile(transport: Any) -> bool:
    """Return whether bytes put into the transport's socket now are what the client gets next, unchanged.

    True for Twisted's own connections over TCP and UNIX sockets, as long as they neither encrypt nor hold bytes that
    were written before. Ask before every write: a protocol can start TLS at any time, and a file put into the socket
    of such a connection would go out in plain text.
    """
    return is_plain(transport) and not (transport.dataBuffer or transport._tempDataBuffer)


def is_plain(transport: Any) -> bool:
    """Return whether `can_sendfile` is true as soon as the bytes that were written before have been sent."""
    # A descriptor is sent together with bytes.
    return isinstance(transport, Server) and not transport.TLS and not getattr(transport, "_sendmsgQueue", None)


def write(transport: Any, data: bytes, *, more: bool = False) -> None:
    """Write bytes as `ITransport.write` does, at once if possible. `more`: the caller ends the stream right after it.

    A lost connection is left for the transport to notice: nothing is called back from here.
    """
    if can_sendfile(transport) and transport.producer is None and transport.connected:
        # A transport with a limit of bytes a second counts these as well.
        send = getattr(transport, "send_now", None) or transport.socket.send
        try:  # noqa: SIM105  (as below)
            data = data[send(data, _MORE if more else 0) :]
        except OSError:
            pass
    if data:
        transport.write(data)


def begin_bulk(transport: Any) -> None:
    """Prepare the socket of a transport that `is_plain` for a file that takes more than one sendfile(2).

    Each of them would end with a partial segment, and the acknowledgements, processed by the client's core where both
    are on one machine, would send what waits in the socket. Together that halved the throughput over loopback.
    """
    _set(transport, _CORK, 1)
    _set(transport, _LOWAT, UNSENT)


def end_bulk(transport: Any) -> None:
    """Send the last partial segment, which would wait for 200 ms."""
    _set(transport, _CORK, 0)


def _set(transport: Any, option: int | None, value: int) -> None:
    if option is not None:
        # A UNIX socket has neither.
        with suppress(OSError):
            transport.socket.setsockopt(socket.IPPROTO_TCP, option, value)


def half_close(transport: Any) -> bool:
    """End our direction now if everything has been sent, and return whether it has ended.

    Nothing is called back from here, not even `writeConnectionLost`.
    """
    if (
        not can_sendfile(transport)
        or transport.producer is not None
        or not transport.connected
        or transport.disconnecting
        or transport._writeDisconnected
    ):
        return False
    # What `FileDescriptor.doWrite` does after the last byte. It must not run any more: sending nothing is an error
    # now, and it would take the connection for lost.
    transport.stopWriting()
    transport._writeDisconnected = True
    try:  # noqa: SIM105  (this is run for each small file, and takes half the time)
        transport.socket.shutdown(socket.SHUT_WR)
    except OSError:
        # The client is gone; the transport will notice when it reads.
        pass
    return True


class HalfClosed:
    """Connections that the client should close now; those that it leaves open are closed after `LINGER` seconds.

    One timer serves all.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        #: When each is due, in order.
        self._due: dict[Any, float] = {}
        self._timer: Any = None

    def add(self, transport: Any) -> None:
        """Close a connection after `LINGER` seconds, unless it is removed by then."""
        self._due[transport] = self._clock.seconds() + LINGER
        if self._timer is None:
            self._timer = self._clock.callLater(LINGER, self._close)

    def remove(self, transport: Any) -> None:
        """Forget a connection that is closed."""
        if self._due.pop(transport, None) is not None and not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for transport in [transport for transport, due in self._due.items() if due <= now]:
            del self._due[transport]
            transport.loseConnection()
        if self._due:
            self._timer = self._clock.callLater(next(iter(self._due.values())) - now, self._close)
