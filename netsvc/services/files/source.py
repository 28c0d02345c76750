"""An open file as a source of bytes. Knows no wire."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["BusyError", "CutError", "OpenFile", "RefusedError"]


class RefusedError(Exception):
    """The file is not sent. Its text says why, in a word or two: it is the result in the access line."""


class BusyError(RefusedError):
    """The file may be sent at another time. To close with no bytes would be to say that there is none."""


class CutError(Exception):
    """The file cannot be read to the size it had when it was opened. Its text says why, in a word or two."""


class OpenFile:
    """A regular file that is read once, from its beginning to the size it had when it was opened.

    A file that grows is read to its old size. `moved` is called when it is read, `closed` once, when it is closed.
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

    def read(self, limit: int) -> bytes:
        """Read the next bytes, `limit` at most; none are left when this returns none.

        Raises `CutError` if the file has become shorter, or the disk does not give it.
        """
        try:
            data = os.pread(self.descriptor, min(limit, self.left), self.offset)
        except OSError as error:
            raise CutError(f"read error ({error.strerror})") from error
        if not data and self.left:
            raise CutError("file shrank")
        self.offset += len(data)
        self._moved(self)
        return data

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            # It refers to the wire, and the wire to the file.
            self.give_way = _stay
            self._closed(self)


def _stay() -> None:
    """Stand in for a wire that has not said how its download ends, or need not any more."""
