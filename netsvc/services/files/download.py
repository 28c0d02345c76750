"""Puts an open file on the wire, a block at a time, whatever its size and however slow the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from netsvc.services.files.source import CutError, OpenFile

__all__ = ["BLOCK", "SMALL", "Download"]

#: Up to here a file is read and written at once: to register a producer would cost more than the file.
SMALL = 64 * 1024
#: What Twisted hands the kernel in one turn (`FileDescriptor.SEND_LIMIT`): a smaller block costs turns, and
#: of a larger one a part waits in memory.
BLOCK = 128 * 1024


@implementer(IPullProducer)
class Download:
    """Sends one file over one transport.

    `ended(None)` is called when the transport has been given the last byte (it may not have sent it yet), or
    `ended(reason)` when the file cannot be read to its end. Neither is called when the connection is lost first.
    """

    def __init__(self, file: OpenFile, transport: Any, ended: Callable[[str | None], None]) -> None:
        self._file = file
        self._transport = transport
        self._ended = ended

    def start(self) -> None:
        """Begin to send; a small file is on its way when this returns."""
        if self._file.size > SMALL:
            # Calls resumeProducing at once.
            self._transport.registerProducer(self, False)
            return
        try:
            while self._file.left:
                self._transport.write(self._file.read(SMALL))
        except CutError as cut:
            self._end(str(cut))
        else:
            self._end(None)

    def resumeProducing(self) -> None:
        """Write the next block: the transport has sent the one before."""
        try:
            self._transport.write(self._file.read(BLOCK))
        except CutError as cut:
            self._transport.unregisterProducer()
            self._end(str(cut))
            return
        if not self._file.left:
            self._transport.unregisterProducer()
            self._end(None)

    def stopProducing(self) -> None:
        """Let go of the file: the connection is lost."""
        self._file.close()

    def _end(self, reason: str | None) -> None:
        self._file.close()
        self._ended(reason)
