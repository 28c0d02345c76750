"""Writes small files whole: whoever reads one sees what was there before, or what is there now, and never a part."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o600) -> None:
    """Put a file with this content, and these permissions, in the place of what is at `path`, if anything is.

    It is written under another name in the same directory, and has reached the disk before it takes its name
    (rename(2)): so neither a full disk nor a power cut leaves half of it, and a link at `path` is replaced, not
    followed. Text is written as UTF-8. It blocks until the disk has it, for milliseconds mostly: it is for files that
    change seldom. Raises `OSError` (a full disk, a directory that is not there or may not be written in); then what
    was there is as it was, and nothing is left beside it.
    """
    target = Path(path)
    content = data.encode() if isinstance(data, str) else data
    # The name is not to be guessed, and the file is nobody else's (mkstemp(3)).
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fchmod(descriptor, mode)
            # Some systems tell only now that the disk is full.
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Have the disk know the new name. The content is there in any case; some file systems cannot do this."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
