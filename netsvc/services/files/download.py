"""Puts an open file on the wire, a share at a time, whatever its size and however slow the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer, ISSLTransport
from zope.interface import implementer

from netsvc.services.files.ahead import AHEAD, ReadAhead
from netsvc.services.files.direct import write
from netsvc.services.files.sendfile import Shares, can_sendfile, send_share
from netsvc.services.files.source import CutError, OpenFile

__all__ = ["BLOCK", "SMALL", "Download"]

#: Up to here a file is read and written at once: to register a producer would cost more than the file.
SMALL = 64 * 1024
#: What Twisted hands the kernel in one turn (`FileDescriptor.SEND_LIMIT`): a smaller block costs turns, and
#: of a larger one a part waits in memory.
BLOCK = 128 * 1024

_buffer = bytearray(SMALL)


@implementer(IPullProducer)
class Download:
    """Sends one file over one transport.

    Over a plain TCP or UNIX connection the kernel sends it (`netsvc.services.files.sendfile`); over any other
    transport, TLS above all, it is read and written in blocks. What is not in memory is read by a thread first.

    `ended(None)` is called when the transport has been given the last byte (it may not have sent it yet), or
    `ended(reason)` when the file cannot be read to its end. Neither is called when the connection is lost first.
    `last` says that `ended` ends the stream in either case.
    """

    #: How far a thread has read the file.
    _fetched = 0
    #: Whether a thread is to read on first, and whether we are a push producer until then.
    _waits = False
    _aside = False
    #: Whether we are counted in `Shares.eager`.
    _eager = False
    #: Whether the kernel has refused to send this file.
    _by_blocks = False

    def __init__(
        self,
        file: OpenFile,
        transport: Any,
        ended: Callable[[str | None], None],
        ahead: ReadAhead,
        shares: Shares,
        *,
        last: bool = False,
    ) -> None:
        self._last = last
        self._file = file
        self._transport = transport
        self._ended = ended
        self._ahead = ahead
        self._shares = shares

    def start(self) -> None:
        """Begin to send; a small file is on its way when this returns, if it is in memory."""
        if self._file.size <= SMALL:
            data = self._file.read_cached(_buffer)
            if data is not None:
                write(self._transport, data, more=self._last)
                self._end(None)
                return
            if self._file.cached(self._file.size):
                self._read_small()
                return
        # Calls resumeProducing at once. A connection with a producer is not ended in order before that has finished,
        # so a file that waits for the disk is safe from a drain.
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
        """Send the next share: all that was written before is with the kernel."""
        if self._waits:
            if not self._aside and ISSLTransport.providedBy(self._transport):
                self._step_aside()
            return
        plain = not self._by_blocks and can_sendfile(self._transport)
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
        """Let go of the file: the connection is lost."""
        self._settle()
        self._file.close()

    def _send(self, share: int) -> None:
        try:
            self._eager = send_share(self._file, self._transport, share)
        except OSError:
            # The filesystem cannot do it (EINVAL), or the disk fails: reading will tell.
            self._by_blocks = True
            self._transport.write(self._file.read(BLOCK))
        self._shares.eager += self._eager

    def _settle(self) -> None:
        self._shares.eager -= self._eager
        self._eager = False

    def _go_on(self) -> None:
        self._waits = False
        self._fetched = self._file.offset + AHEAD
        if not self._aside:
            self.resumeProducing()
        elif _is_closing(self._transport):
            self._finish("cut off")
        else:
            self._aside = False
            self._transport.unregisterProducer()
            self._transport.registerProducer(self, False)

    def _step_aside(self) -> None:
        """Become a push producer, which nobody asks for more: TLS asks a pull producer again and again, for 10 ms."""
        if _is_closing(self._transport):
            # To unregister would end the connection in order, and the part be taken for the whole.
            self._finish("cut off")
        else:
            self._transport.unregisterProducer()
            self._aside = True
            self._transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Do nothing: a push producer we are only while there is nothing to send."""

    def _finish(self, reason: str | None) -> None:
        self._settle()
        self._transport.unregisterProducer()
        self._end(reason)

    def _end(self, reason: str | None) -> None:
        self._file.close()
        self._ended(reason)


def _is_closing(transport: Any) -> bool:
    return bool(transport.disconnecting or (getattr(transport, "TLS", False) and transport.protocol.disconnecting))
