"""A buffer of received bytes, from which complete messages are taken. It knows no transport."""

from __future__ import annotations


class LimitError(ValueError):
    """A message is longer than its limit."""


class Buffer(bytearray):
    """Received bytes that are not taken yet; append to it with `add`.

    The work is linear in the bytes, however they are cut into pieces.
    """

    # How many bytes are known not to begin the delimiter that was searched for last.
    _searched = 0
    _searched_for = b""
    #: What is to be dropped as it arrives: so many bytes, or everything up to a delimiter.
    skips: int | bytes = 0
    # What has arrived of that delimiter.
    _part = b""

    def add(self, data: bytes) -> None:
        """Append received bytes, without those that `skip` drops."""
        self += data
        if self.skips:
            self._skip()

    def skip(self, what: int | bytes) -> None:
        """Drop so many bytes, or everything up to and including a delimiter; `add` drops what has not arrived."""
        self.skips, self._part = what, b""
        self._skip()

    def _skip(self) -> None:
        what, self._searched = self.skips, 0
        if isinstance(what, int):
            self.skips = max(0, what - len(self))
            del self[:what]
            return
        self[:0], self._part = self._part, b""
        end = self.find(what)
        if end >= 0:
            self.skips = 0
            del self[: end + len(what)]
        else:
            self._part = bytes(self[max(0, len(self) - len(what) + 1) :])
            self.clear()

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

        Raises `LimitError` if there are more than `limit` bytes before it, as soon as `limit` bytes and the length of a
        delimiter have arrived. The message is dropped up to its delimiter, also what arrives later: the next call takes
        the next message.
        """
        if delimiter != self._searched_for:
            self._searched, self._searched_for = 0, delimiter
        end = self.find(delimiter, self._searched, limit + len(delimiter))
        if end >= 0:
            taken = self.take(end)
            del self[: len(delimiter)]
            return taken
        if len(self) >= limit + len(delimiter):
            self.skip(delimiter)
            raise LimitError(f"more than {limit} bytes before {delimiter!r}")
        # The delimiter may have arrived in part.
        self._searched = max(0, len(self) - len(delimiter) + 1)
        return None
