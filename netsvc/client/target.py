"""Where a download goes: a file that appears when it is complete, or not at all; or standard output."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from netsvc.client.failure import ClientError, reason
from netsvc.client.screen import SafeText
from netsvc.client.terminal import Terminal
from netsvc.text import escape

__all__ = ["FileTarget", "OutputTarget", "Target", "check_target"]

#: What a file system without hard links (FAT, some network ones) answers to link(2).
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def _named(path: Path) -> str:
    return escape(str(path), 4096)


def check_target(path: Path, force: bool) -> None:
    """Raise `ClientError` if `path` could not become the download: it exists, or its directory does not."""
    if not path.parent.is_dir():
        raise ClientError(f"{_named(path.parent)}: there is no such directory")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClientError(f"{_named(path)}: {reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise ClientError(f"{_named(path)} is a directory; name the file with -o")
    if not force:
        raise _exists(path)
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        # A rename would replace /dev/null itself by the download.
        raise ClientError(f"{_named(path)} is no regular file, and is not replaced; use -o - and redirect it")


def _exists(path: Path) -> ClientError:
    return ClientError(f"{_named(path)} exists already; choose another -o FILE, or replace it with --force")


class Target(Protocol):
    """Takes a download in parts; it counts only when it was told to `keep` it."""

    def write(self, data: bytes) -> None:
        """Append. Raises `ClientError`."""

    def keep(self) -> None:
        """Finish: all of it has arrived. Raises `ClientError`."""


class OutputTarget:
    """Standard output: the bytes as they are, or made safe where it is a terminal, which would obey them."""

    def __init__(self, terminal: Terminal, encoding: str) -> None:
        self._terminal = terminal
        self._safe = SafeText(encoding) if terminal.on_screen else None

    def __enter__(self) -> OutputTarget:
        return self

    def __exit__(self, *failure: object) -> None:
        self._terminal.end_line()

    def write(self, data: bytes, final: bool = False) -> None:
        """Write through. Raises `ClientError` or `OutputClosedError`."""
        if self._safe is not None:
            data = self._safe.feed(data, final).encode(self._terminal.encoding, "backslashreplace")
        self._terminal.write(data)

    def keep(self) -> None:
        """Write what was held back."""
        self.write(b"", final=True)


class FileTarget:
    """A file of another name in the same directory, until `keep` gives it its own.

    A context manager: on leaving the block without `keep`, however that happens, nothing is left. Every
    method raises `ClientError` for what the file system refuses.
    """

    def __init__(self, path: Path, force: bool, link: Callable[[Path, Path], None] = os.link) -> None:
        self._path = path
        self._force = force
        self._link = link
        # In the same directory, so that it is on the same file system. A long name has no room for a suffix.
        self._partial = path.parent / f".netsvc-{secrets.token_hex(8)}.part"
        self._descriptor = -1

    def __enter__(self) -> FileTarget:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._partial, flags, 0o666)
        except OSError as error:
            raise self._failure(error) from None
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()
        with suppress(OSError):
            self._partial.unlink()

    def write(self, data: bytes) -> None:
        """Append to the file."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise self._failure(error) from None

    def keep(self) -> None:
        """Give the file its name, when all of it is on the disk. One that exists is replaced only with `force`."""
        try:
            os.fsync(self._descriptor)
            self._close()
            if self._force:
                self._partial.replace(self._path)
            else:
                self._give_new_name()
        except FileExistsError:
            raise _exists(self._path) from None
        except OSError as error:
            raise self._failure(error) from None
        self._sync_directory()

    def _give_new_name(self) -> None:
        # rename(2) replaces whatever has appeared under that name since the check; link(2) does not.
        try:
            self._link(self._partial, self._path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without links: take the name, which fails if it is taken, and then replace our own empty file.
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            self._partial.replace(self._path)

    def _sync_directory(self) -> None:
        # The name is there; some file systems cannot sync a directory, and no download fails for that.
        with suppress(OSError):
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _failure(self, error: OSError) -> ClientError:
        return ClientError(f"cannot write {_named(self._path)}: {reason(error)}")
