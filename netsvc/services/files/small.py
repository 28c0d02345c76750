"""Keeps small files that were sent whole in memory, with the heads of their answers.

A file is opened safely once (`netsvc.services.files.root`). After that, its status shows whether the name still leads
to the same file, unchanged. The name is resolved below the root again: one of its directories may have been moved out
and replaced by a link, and then leads to the same file outside.
"""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Any, NamedTuple

from netsvc.http.connection import WholeAnswer
from netsvc.services.files.root import Root

#: Bytes of all files, and their number.
MOST_BYTES, MOST_FILES = 32 * 1024 * 1024, 4096


class SentRecord(NamedTuple):
    """The access line of a file that was sent whole, but for the client and the time.

    `event` is what all events of it share, `before` and `after` what the line has around the seconds.
    """

    size: int
    event: dict[str, Any]
    before: str
    after: str


class SmallFile(NamedTuple):
    """The answer with the content of a file, and its access line."""

    identity: tuple[int, ...]
    answer: WholeAnswer
    record: SentRecord


class SmallFiles:
    """Small files by their paths below a root; those kept longest are forgotten first."""

    def __init__(self) -> None:
        self._files: dict[bytes, SmallFile] = {}
        self._bytes = 0

    def get(self, root: Root, path: bytes) -> SmallFile | None:
        """Return a file that is kept and has not changed."""
        kept = self._files.get(path)
        if kept is None:
            return None
        try:
            if _identity(root.status(path)) == kept[0]:
                return kept
        except OSError:
            pass
        self.forget(path)
        return None

    def add(self, path: bytes, file: SmallFile) -> None:
        """Keep a file."""
        self.forget(path)
        self._files[path] = file
        self._bytes += file.record.size
        while len(self._files) > MOST_FILES or self._bytes > MOST_BYTES:
            self.forget(next(iter(self._files)))

    def forget(self, path: bytes) -> None:
        """Forget a file, if it is kept."""
        kept = self._files.pop(path, None)
        if kept is not None:
            self._bytes -= kept.record.size


_identity = attrgetter("st_ino", "st_dev", "st_ctime_ns", "st_mtime_ns", "st_size")


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what is different for another file, and for the same one after a change of content or rights."""
    found: tuple[int, ...] = _identity(status)
    return found
