"""Reads what is not in memory yet, in threads, so that no other connection waits for the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from netsvc.services.files.source import OpenFile

__all__ = ["AHEAD", "THREADS", "ReadAhead"]

#: Bytes that are read for one download at a time, and as many again that the system is asked to read next.
AHEAD = 2 * 1024 * 1024
#: How many files are read at once. The pool has ten threads, and others need it: names are resolved there.
THREADS = 4
#: Bytes of one read: a thread needs no more memory than this.
_PIECE = 128 * 1024


class ReadAhead:
    """Has the threads of the reactor's pool read files into the page cache, `THREADS` at once, the rest in turn.

    A reactor without threads has none read.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        #: In the order in which they asked.
        self._waiting: dict[OpenFile, Callable[[], None]] = {}
        self._reading: dict[OpenFile, Callable[[], None]] = {}
        #: The threads at work: also for files that were closed meanwhile.
        self.busy = 0

    def fetch(self, file: OpenFile, ready: Callable[[], None]) -> bool:
        """Read the next `AHEAD` bytes of a file, then call `ready`, in the reactor's thread.

        It is not called for a file that was forgotten by then. Returns False, and does nothing, where no thread
        can be had.
        """
        if not hasattr(self._reactor, "callInThread"):
            return False
        self._waiting[file] = ready
        self._begin()
        return True

    def forget(self, file: OpenFile) -> None:
        """Leave a file alone, which is closed now. A thread that reads it reads a descriptor of its own."""
        self._waiting.pop(file, None)
        self._reading.pop(file, None)

    def _begin(self) -> None:
        while self._waiting and self.busy < THREADS:
            file = next(iter(self._waiting))
            self._reading[file] = self._waiting.pop(file)
            self.busy += 1
            try:
                descriptor = os.dup(file.descriptor)
            except OSError:
                # No descriptor is left. So the loop itself will have to wait for the disk, this once.
                self._reactor.callLater(0, self._done, file)
                continue
            self._reactor.callInThread(self._read, file, descriptor, file.offset)

    def _read(self, file: OpenFile, descriptor: int, offset: int) -> None:
        try:
            _load(descriptor, offset)
        finally:
            os.close(descriptor)
            self._reactor.callFromThread(self._done, file)

    def _done(self, file: OpenFile) -> None:
        self.busy -= 1
        ready = self._reading.pop(file, None)
        self._begin()
        if ready is not None:
            ready()


def _load(descriptor: int, offset: int) -> None:
    """Bring `AHEAD` bytes into the page cache. An error is left for whoever reads them from there to meet."""
    piece = bytearray(_PIECE)
    try:
        os.posix_fadvise(descriptor, offset, 2 * AHEAD, os.POSIX_FADV_WILLNEED)
        for place in range(offset, offset + AHEAD, _PIECE):
            os.preadv(descriptor, [piece], place)
    except OSError:
        pass
