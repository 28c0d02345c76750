"""Where the downloads of `netsvc get` are written to."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Sink"]


class Sink(Protocol):
    """Where a download is written, from `position` on. Methods raise `ClientError`, or `OSError`."""

    position: int
    #: The value for If-Range, and the whole size, if both are known: it can be resumed.
    validator: str | None
    size: int | None

    def start_over(self, url: str, validator: str | None, size: int | None) -> None:
        """Begin at the first byte, for what these identify."""

    def write(self, data: bytes) -> None:
        """Append."""

    def sha256(self) -> str:
        """Return the SHA-256 of all of it."""

    def discard(self) -> None:
        """Remove what was written, as it is wrong."""

    def keep(self) -> None:
        """Finish."""
