"""A buffer of received bytes, from which complete messages are taken. It knows no transport."""

from __future__ import annotations


class LimitError(ValueError):
    """A message is longer than its limit."""


class Buffer(bytearray):
    """Received bytes that are not taken yet; append to it.

    The work is linear in the bytes, however they are cut into pieces.
    """

    # How many bytes are known not to begin the delimiter that was searched for last.
    _searched = 0
    _searched_for = b""

    def take(self, most: int) -> bytes:
        """Take up to `most` bytes, none if there are none."""
        taken = bytes(self) if most >= len(self) else bytes(memoryview(self)[:most])
        del self[: len(taken)]
        self._searched = 0
        return taken

    def exactly(self, size: int) -> bytes | None:
        """Take `size` bytes; None, and nothing is taken, if there are fewer."""
        return self.take(size) if len(self) >= size else None

    def until(self, delimiter: bytes, limit: int) -> bytes | None:
        """Take the bytes before the next delimiter, and drop the delimiter; None if it has not arrived.

        Raises `LimitError`, and takes nothing, if there are more than `limit` bytes before it, as soon as `limit` bytes
        and the length of a delimiter have arrived.
        """
        if delimiter != self._searched_for:
            self._searched, self._searched_for = 0, delimiter
        end = self.find(delimiter, self._searched, limit + len(delimiter))
        if end >= 0:
            taken = self.take(end)
            del self[: len(delimiter)]
            return taken
        if len(self) >= limit + len(delimiter):
            raise LimitError(f"more than {limit} bytes before {delimiter!r}")
        # The delimiter may have arrived in part.
        self._searched = max(0, len(self) - len(delimiter) + 1)
        return None
