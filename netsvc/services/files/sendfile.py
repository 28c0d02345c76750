"""Sends a file without reading it: the kernel takes it from the page cache to the socket (sendfile(2))."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.tcp import Server

from netsvc.services.files.source import OpenFile

__all__ = ["LEAST", "MOST", "STOCK", "Shares", "can_sendfile", "send_share"]

#: Bytes that all downloads together may send in one turn of the event loop, about a third of a millisecond; a
#: single one, when nobody else waits, may send them all.
MOST = 2 * 1024 * 1024
#: Less is not worth the call.
LEAST = 128 * 1024
#: The share on a reactor that does not tell how many wait.
STOCK = 256 * 1024

#: The client has gone. The transport finds out by itself, and knows better how to end.
_GONE = (errno.EPIPE, errno.ECONNRESET)


class Shares:
    """How much each download may send in one turn, so that none of the others waits long for its own."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        #: The downloads that will send again in the next turn, though nothing happens to their sockets.
        self.eager = 0

    def next(self) -> int:
        """Return the share of a download that sends now, in bytes."""
        ready: int | None = getattr(self._reactor, "ready", None)
        return STOCK if ready is None else max(LEAST, MOST // max(1, ready + self.eager))


def can_sendfile(transport: Any) -> bool:
    """Tell whether what is put into the transport's socket now is what the client gets next, as it is.

    That is so for Twisted's own connections over TCP and UNIX sockets, as long as they neither encrypt nor hold
    back what was written before. It may be another answer at each turn: a protocol can start TLS at any time, and
    a file in the socket of such a connection would go out in plain text.
    """
    return (
        isinstance(transport, Server)
        and not transport.TLS
        and not transport.dataBuffer
        and not transport._tempDataBuffer
        and not getattr(transport, "_sendmsgQueue", None)
    )


def send_share(file: OpenFile, transport: Any, share: int) -> bool:
    """Send up to `share` bytes, and have the transport's producer called again when it can go on.

    Returns whether that will be in the next turn, because the kernel took the whole share. Raises `CutError` if the
    file has become shorter, and `OSError` if it cannot be sent in this way.
    """
    share = min(share, file.left)
    # A socket that keeps a limit of bytes a second counts these as well.
    metered = getattr(transport.socket, "send_file", None)
    try:
        if metered is None:
            sent = os.sendfile(transport.fileno(), file.descriptor, file.offset, share)
        else:
            sent = metered(file.descriptor, file.offset, share)
    except BlockingIOError:
        sent = -1
    except OSError as error:
        if error.errno not in _GONE:
            raise
        sent = -1
    if sent >= 0:
        file.move(sent)
        if (counted := getattr(transport, "traffic", None)) is not None:
            counted.sent += sent
    if sent >= share:
        transport.startWriting()
        return True
    # With Twisted's reactors that is the same; with ours, who starts writing is called in any case, full or not.
    getattr(transport, "wait_to_write", transport.startWriting)()
    return False
