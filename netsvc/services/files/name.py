"""Reads a file name from the bytes that a client sends. Touches neither a transport nor a file."""

from __future__ import annotations

from netsvc.services.files.source import RefusedError

__all__ = ["NameReader", "whole_name"]


def whole_name(data: bytes, limit: int) -> bytes | None:
    """Return the name that `data`, the first that came, holds to its end; None if that takes a `NameReader`."""
    end = data.find(b"\n", 0, limit + 1)
    return None if end < 0 else data[:end].removesuffix(b"\r")


class NameReader:
    """Collects one name that ends at LF or CRLF. It keeps at most `limit` bytes and two more, whatever comes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    @property
    def name(self) -> bytes:
        """What has come so far, without a CR at its end: the whole name, if no more comes."""
        return bytes(self._kept.removesuffix(b"\r"))

    def feed(self, data: bytes) -> bool:
        """Take the next bytes and tell whether `name` is complete; what follows its end is dropped.

        Raises `RefusedError` as soon as the name is longer than the limit.
        """
        end = data.find(b"\n")
        # Room for the CR before the LF, and for the one byte that shows that a name is too long.
        room = self._limit + 2 - len(self._kept)
        self._kept += data[: room if end < 0 else min(end, room)]
        if len(self.name) > self._limit:
            raise RefusedError("name too long")
        return end >= 0
