"""Keeps small files that were sent whole in memory, with the heads of their answers.

A file is opened safely once (`netsvc.services.files.root`). After that, its status shows whether the name still leads
to the same file, unchanged. The name is resolved below the root again: one of its directories may have been moved out
and replaced by a link, and then leads to the same file outside.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from netsvc.services.files.root import Root

#: Bytes of all files, and their number.
MOST_BYTES, MOST_FILES = 32 * 1024 * 1024, 4096


class SmallFile(NamedTuple):
    """The content of a file, and the headers that it is sent with."""

    identity: tuple[int, ...]
    data: bytes
    headers: bytes


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
            if identity(root.status(path)) == kept.identity:
                return kept
        except OSError:
            pass
        self.forget(path)
        return None

    def add(self, path: bytes, file: SmallFile) -> None:
        """Keep a file."""
        self.forget(path)
        self._files[path] = file
        self._bytes += len(file.data)
        while len(self._files) > MOST_FILES or self._bytes > MOST_BYTES:
            self.forget(next(iter(self._files)))

    def forget(self, path: bytes) -> None:
        """Forget a file, if it is kept."""
        kept = self._files.pop(path, None)
        if kept is not None:
            self._bytes -= len(kept.data)


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what is different for another file, and for the same one after a change of content or rights."""
    return (status.st_ino, status.st_dev, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
