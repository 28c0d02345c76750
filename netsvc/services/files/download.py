"""Sends an open file over a connection, a share at a time, whatever its size and however slow the client."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer, ISSLTransport
from zope.interface import implementer

from netsvc.services.files.file import AHEAD, CutError, OpenFile, ReadAhead
from netsvc.services.files.transport import begin_bulk, can_sendfile, end_bulk, is_plain, write

#: Files up to this size are read and written at once: registering a producer would cost more than the file.
SMALL = 64 * 1024
#: What Twisted gives the kernel in one turn (`FileDescriptor.SEND_LIMIT`): a smaller block costs turns, and part of
#: a larger one waits in memory.
BLOCK = 128 * 1024

#: Bytes that all downloads together may send in one turn of the event loop, about a third of a millisecond.
MOST = 2 * 1024 * 1024
#: The smallest share of one download.
LEAST = 128 * 1024
#: The share on a reactor that does not say how many descriptors are ready.
STOCK = 256 * 1024

#: The client has gone. The transport will notice by itself.
_GONE = (errno.EPIPE, errno.ECONNRESET)

_buffer = bytearray(SMALL)


class Shares:
    """Divides a turn of the event loop among the downloads, so that none waits long for the others."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        #: Downloads that will send again in the next turn, without an event of their socket.
        self.eager = 0

    def next(self) -> int:
        """Return how many bytes a download may send now."""
        ready: int | None = getattr(self._reactor, "ready", None)
        return STOCK if ready is None else max(LEAST, MOST // max(1, ready + self.eager))


def send_share(file: OpenFile, transport: Any, share: int) -> bool:
    """Send up to `share` bytes with sendfile(2); the transport's producer is called again when it can continue.

    Returns whether that will be in the next turn without an event of the socket, because the kernel took the whole
    share. Raises `CutError` if the file has shrunk, and `OSError` if it cannot be sent in this way.
    """
    share = min(share, file.left)
    # A transport with a limit of bytes a second counts these as well.
    send_file = getattr(transport, "send_file", None)
    try:
        if send_file is None:
            sent = os.sendfile(transport.fileno(), file.descriptor, file.offset, share)
        else:
            sent = send_file(file.descriptor, file.offset, share)
    except BlockingIOError:
        sent = -1
    except OSError as error:
        if error.errno not in _GONE:
            raise
        sent = -1
    if sent >= 0:
        file.move(sent)
    if sent >= share:
        transport.startWriting()
        return not getattr(transport, "waiting", False)
    # The same with Twisted's reactors; with ours, `startWriting` calls back even if the socket is full.
    getattr(transport, "wait_to_write", transport.startWriting)()
    return False


@implementer(IPullProducer)
class Download:
    """Sends one file over one transport.

    Over a plain TCP or UNIX connection the kernel sends it (sendfile(2)); over any other transport, such as TLS, it is
    read and written in blocks. What is not in memory is read by a thread first.

    `ended(None)` is called when the transport has been given the last byte (it may not have sent it yet),
    `ended(reason)` when the file cannot be read to its end; neither when the connection is lost first. `last`: in
    either case the caller then ends the stream. The file is closed, unless it is sent whole and `closes` is false.
    """

    __slots__ = (
        *("_ahead", "_by_blocks", "_closes", "_eager", "_ended", "_fetched", "_file", "_is_bulk", "_is_push", "_last"),
        *("_shares", "_transport", "_waits"),
    )

    def __init__(
        self,
        file: OpenFile,
        transport: Any,
        ended: Callable[[str | None], None],
        ahead: ReadAhead,
        shares: Shares,
        *,
        last: bool = False,
        closes: bool = True,
    ) -> None:
        self._last = last
        self._closes = closes
        self._file = file
        self._transport = transport
        self._ended = ended
        self._ahead = ahead
        self._shares = shares
        #: How far a thread has read the file.
        self._fetched = 0
        #: Whether a thread reads on first, and whether this is a push producer until then.
        self._waits = self._is_push = False
        #: Whether this download is counted in `Shares.eager`.
        self._eager = False
        #: Whether the kernel has refused to send this file.
        self._by_blocks = False
        #: Whether the socket is prepared for many blocks.
        self._is_bulk = False

    def start(self) -> None:
        """Begin to send. A small file that is in memory has been written when this returns."""
        if self._file.left <= SMALL:
            data = self._file.read_cached(_buffer)
            if data is not None:
                write(self._transport, data, more=self._last)
                self._end(None)
                return
            if self._file.cached(self._file.left):
                self._read_small()
                return
        # Calls resumeProducing at once. A connection is not closed in order while it has a producer: so a drain does
        # not cut a file that waits for the disk.
        self._transport.registerProducer(self, False)

    def _read_small(self) -> None:
        try:
            while self._file.left:
                self._transport.write(self._file.read(SMALL))
        except CutError as cut:
            self._end(str(cut))
        else:
            self._end(None)

    def resumeProducing(self) -> None:
        """Send the next share: everything written before has reached the kernel."""
        if self._waits:
            if not self._is_push and ISSLTransport.providedBy(self._transport):
                self._stop_pulling()
            return
        plain = not self._by_blocks and is_plain(self._transport)
        if plain and not can_sendfile(self._transport):
            # What was written before goes first, such as a head. A block behind it would wait in memory, if the client
            # does not read.
            self._transport.startWriting()
            return
        share = min(self._shares.next() if plain else BLOCK, self._file.left)
        self._settle()
        if self._file.offset + share > self._fetched and not self._file.cached(share):
            self._waits = self._ahead.fetch(self._file, self._go_on)
            if self._waits:
                return
        try:
            if plain:
                self._send(share)
            else:
                self._transport.write(self._file.read(share))
        except CutError as cut:
            self._finish(str(cut))
            return
        if not self._file.left:
            self._finish(None)

    def stopProducing(self) -> None:
        """Close the file: the connection is lost."""
        self._settle()
        self._file.close()

    def _send(self, share: int) -> None:
        if not self._is_bulk and share < self._file.left:
            self._is_bulk = True
            begin_bulk(self._transport)
        try:
            self._eager = send_share(self._file, self._transport, share)
        except OSError:
            # The filesystem does not support it (EINVAL), or the disk fails: reading will show which.
            self._by_blocks = True
            self._transport.write(self._file.read(BLOCK))
        self._shares.eager += self._eager

    def _settle(self) -> None:
        self._shares.eager -= self._eager
        self._eager = False

    def _go_on(self) -> None:
        self._waits = False
        self._fetched = self._file.offset + AHEAD
        if not self._is_push:
            self.resumeProducing()
        elif _is_closing(self._transport):
            self._finish("cut off")
        else:
            self._is_push = False
            self._transport.unregisterProducer()
            self._transport.registerProducer(self, False)

    def _stop_pulling(self) -> None:
        """Become a push producer while a thread reads: TLS would ask a pull producer again and again, for 10 ms."""
        if _is_closing(self._transport):
            # Unregistering would close the connection in order, and the client would take the part for the whole.
            self._finish("cut off")
        else:
            self._transport.unregisterProducer()
            self._is_push = True
            self._transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Do nothing: this is a push producer only while there is nothing to send."""

    def _finish(self, reason: str | None) -> None:
        self._settle()
        if self._is_bulk and is_plain(self._transport):
            end_bulk(self._transport)
        self._transport.unregisterProducer()
        self._end(reason)

    def _end(self, reason: str | None) -> None:
        if self._closes or reason is not None:
            self._file.close()
        self._ended(reason)


def _is_closing(transport: Any) -> bool:
    # With startTLS, TLS is in place of the protocol.
    started = transport.protocol if getattr(transport, "TLS", False) else None
    return bool(transport.disconnecting or getattr(started, "disconnecting", False))
