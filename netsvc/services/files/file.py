"""An open file: its bytes from memory, and its reading ahead from the disk in threads. Knows no wire form."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

#: Bytes that are read for one download at a time, and as many again that the system is asked to read next.
AHEAD = 2 * 1024 * 1024
#: Files that are read at once. The reactor's pool has ten threads, and others need it: names are resolved there.
THREADS = 4
#: Bytes of one read in a thread.
_PIECE = 128 * 1024

#: Makes preadv2(2) read from the page cache only. Linux has it.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
#: Bytes between two probes of the page cache.
STRIDE = 512 * 1024


class FileRefusedError(Exception):
    """The file is not sent. The text is the reason in a word or two: the result in the access line."""


class FileBusyError(FileRefusedError):
    """The file cannot be sent now, but perhaps later. Closing with no bytes would mean that it does not exist."""


class DirectoryError(FileRefusedError):
    """The name is that of a directory."""


class CutError(Exception):
    """The file cannot be read to the size it had when it was opened. The text is the reason in a word or two."""


class OpenFile:
    """A regular file that is read once, from its beginning to the size it had when it was opened, or a part of it.

    `modified` is the time of its last change, in nanoseconds. `moved` is called after each read but the last, `closed`
    once, when the file is closed.
    """

    __slots__ = ("_closed", "_moved", "descriptor", "evict", "modified", "offset", "size")

    def __init__(
        self,
        descriptor: int,
        size: int,
        moved: Callable[[OpenFile], None],
        closed: Callable[[OpenFile], None],
        modified: int = 0,
    ) -> None:
        self.descriptor = descriptor
        self.modified = modified
        self.size = size
        self.offset = 0
        self._moved = moved
        self._closed = closed
        #: Ends the download when another one needs its place; set by the protocol.
        self.evict: Callable[[], None] = _no_download

    @property
    def left(self) -> int:
        """The bytes that have not been read."""
        return self.size - self.offset

    def select(self, start: int, stop: int) -> None:
        """Read the bytes from `start` to before `stop` next, and no more."""
        self.offset, self.size = start, stop

    def cached(self, count: int) -> bool:
        """Return whether the next `count` bytes are in memory, judging by samples; True if it cannot be known."""
        if _NOWAIT is None:
            return True
        last = self.offset + count - 1
        try:
            for place in (*range(self.offset, last, STRIDE), last):
                os.preadv(self.descriptor, [_ONE_BYTE], place, _NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            # Not every filesystem supports it (EOPNOTSUPP); any other error will be met when reading.
            return True
        return True

    def read(self, limit: int) -> bytes:
        """Read up to `limit` bytes; b"" at the end. Raises `CutError` if the file has shrunk or the disk fails."""
        data = self._read(min(limit, self.left))
        self.move(len(data))
        return data

    def fill(self, buffers: Sequence[memoryview]) -> None:
        """Read the next bytes into buffers, without moving. Raises `CutError` if there are fewer or the disk fails."""
        try:
            count = os.preadv(self.descriptor, buffers, self.offset) if buffers else 0
        except OSError as error:
            raise CutError(f"read error ({error.strerror})") from error
        if count < sum(map(len, buffers)):
            raise CutError("file shrank")

    def fill_cached(self, buffers: Sequence[memoryview]) -> bool:
        """Read the next bytes into buffers if all are in memory; return whether they were, or it cannot be known."""
        if _NOWAIT is not None and buffers:
            try:
                return os.preadv(self.descriptor, buffers, self.offset, _NOWAIT) == sum(map(len, buffers))
            except BlockingIOError:
                return False
            except OSError:
                # Not every filesystem supports it (EOPNOTSUPP).
                pass
        self.fill(buffers)
        return True

    def glance(self, count: int) -> bytes:
        """Return the first `count` bytes at most if they are in memory, without moving; else nothing."""
        start = bytearray(count)
        try:
            return bytes(start[: os.preadv(self.descriptor, [start], 0, _NOWAIT)]) if _NOWAIT is not None else b""
        except OSError:
            return b""

    def _read(self, count: int) -> bytes:
        try:
            return os.pread(self.descriptor, count, self.offset)
        except OSError as error:
            raise CutError(f"read error ({error.strerror})") from error

    def read_cached(self, buffer: bytearray) -> bytes | None:
        """Read the rest of the file if it is in memory, else return None: `read` gets it from the disk, or the error.

        `buffer` is scratch space of at least that size.
        """
        left = self.left
        if not left:
            return b""
        if _NOWAIT is None:
            return None
        try:
            count = os.preadv(self.descriptor, [memoryview(buffer)[:left]], self.offset, _NOWAIT)
        except OSError:
            return None
        if count != left:
            return None
        self.move(count)
        return bytes(memoryview(buffer)[:count])

    def move(self, count: int) -> None:
        """Advance by `count` bytes. Raises `CutError` if that is 0 before the end."""
        if not count and self.left:
            raise CutError("file shrank")
        self.offset += count
        if self.offset < self.size:
            self._moved(self)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            # It refers to the protocol, which refers to this file.
            self.evict = _no_download
            self._closed(self)


#: Where probes of the page cache are read to.
_ONE_BYTE = bytearray(1)


def _no_download() -> None:
    """Do nothing: the file is not being sent."""


class ReadAhead:
    """Reads files into the page cache in the reactor's threads, so that no other connection waits for the disk.

    `THREADS` files are read at once, the rest in turn.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        #: In the order of the requests.
        self._waiting: dict[OpenFile, Callable[[], None]] = {}
        self._reading: dict[OpenFile, Callable[[], None]] = {}
        #: Busy threads, including those that read files closed meanwhile.
        self.busy = 0

    def fetch(self, file: OpenFile, ready: Callable[[], None]) -> bool:
        """Read the next `AHEAD` bytes of a file, then call `ready` in the reactor's thread, unless it was forgotten.

        Returns False and does nothing if the reactor has no threads.
        """
        if not hasattr(self._reactor, "callInThread"):
            return False
        self._waiting[file] = ready
        self._begin()
        return True

    def forget(self, file: OpenFile) -> None:
        """Forget a file that is closed. A thread that is reading it has a descriptor of its own."""
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
                # Out of descriptors: this once, the reactor itself will wait for the disk.
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
    """Read `AHEAD` bytes into the page cache. An error is ignored here: it will be met when they are sent."""
    piece = bytearray(_PIECE)
    try:
        os.posix_fadvise(descriptor, offset, 2 * AHEAD, os.POSIX_FADV_WILLNEED)
        for place in range(offset, offset + AHEAD, _PIECE):
            os.preadv(descriptor, [piece], place)
    except OSError:
        pass
