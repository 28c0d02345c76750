"""An open file as a source of bytes. Knows no wire."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["BusyError", "CutError", "OpenFile", "RefusedError"]

#: Asks preadv2(2) for what is in the page cache, and nothing else. Linux has it.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
#: Bytes between two looks into the page cache.
STRIDE = 512 * 1024


class RefusedError(Exception):
    """The file is not sent. Its text says why, in a word or two: it is the result in the access line."""


class BusyError(RefusedError):
    """The file may be sent at another time. To close with no bytes would be to say that there is none."""


class CutError(Exception):
    """The file cannot be read to the size it had when it was opened. Its text says why, in a word or two."""


class OpenFile:
    """A regular file that is read once, from its beginning to the size it had when it was opened.

    A file that grows is read to its old size. `moved` is called when a part is read that is not the last, `closed`
    once, when it is closed.
    """

    __slots__ = ("_closed", "_moved", "descriptor", "give_way", "offset", "size")

    def __init__(
        self,
        descriptor: int,
        size: int,
        moved: Callable[[OpenFile], None],
        closed: Callable[[OpenFile], None],
    ) -> None:
        self.descriptor = descriptor
        self.size = size
        self.offset = 0
        self._moved = moved
        self._closed = closed
        #: Ends the download and closes the file, when another needs the place; a wire puts its own here.
        self.give_way: Callable[[], None] = _stay

    @property
    def left(self) -> int:
        """The bytes still to be read."""
        return self.size - self.offset

    def cached(self, count: int) -> bool:
        """Tell whether the next `count` bytes are in memory, as far as a look at some of them shows.

        True as well where that cannot be known: then the disk may have to be waited for.
        """
        if _NOWAIT is None:
            return True
        last = self.offset + count - 1
        try:
            for place in (*range(self.offset, last, STRIDE), last):
                os.preadv(self.descriptor, [_ONE_BYTE], place, _NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            # Not every filesystem can be asked (EOPNOTSUPP); of any other error the reading itself will tell.
            return True
        return True

    def read(self, limit: int) -> bytes:
        """Read the next bytes, `limit` at most; none are left when this returns none.

        Raises `CutError` if the file has become shorter, or the disk does not give it.
        """
        try:
            data = os.pread(self.descriptor, min(limit, self.left), self.offset)
        except OSError as error:
            raise CutError(f"read error ({error.strerror})") from error
        self.move(len(data))
        return data

    def read_cached(self, buffer: bytearray) -> bytes | None:
        """Read all that is left, if it is in memory; None if the disk, or an error, is to be met with `read`.

        `buffer` is where it is put on its way, and must have room for it.
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
        """Note that the next `count` bytes were taken. Raises `CutError` for none, if there should be some."""
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
            # It refers to the wire, and the wire to the file.
            self.give_way = _stay
            self._closed(self)


#: What a look finds is of no interest.
_ONE_BYTE = bytearray(1)


def _stay() -> None:
    """Stand in for a wire that has not said how its download ends, or need not any more."""
