"""Reads a small file whole, and writes a file that appears complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from netsvc.base.paths import open_directory, open_path

#: What a file system without hard links (FAT, some network ones) answers to link(2).
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; see `netsvc.base.paths` for the links in its path.

    Anything else is not opened: to open a FIFO would wait, or let its waiting writer go on and end by SIGPIPE. Raises
    `OSError`, whose `strerror` is the reason.
    """
    try:
        _check_regular(os.stat(path).st_mode)
        # O_NONBLOCK and O_NOCTTY in case that it is replaced now.
        descriptor = open_path(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:
        raise OSError(errno.EINVAL, "not a valid file name") from None
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return content


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")


class AtomicFile:
    """A new file that gets its name when it is complete and on the disk, and is removed otherwise.

    A context manager. Until `commit` it has another name in the same directory, which is opened once; on leaving the
    block without `commit` nothing is left. Every method raises `OSError`.
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o666) -> None:
        self.path = Path(path)
        # In the same directory, so that it is on the same file system. A long name has no room for a suffix.
        self._partial = f".netsvc-{secrets.token_hex(8)}.part"
        self._mode = mode
        self._directory = self._descriptor = -1

    def __enter__(self) -> AtomicFile:
        self._directory = open_directory(self.path.parent)
        try:
            # O_EXCL: an existing file or link is never followed. The mode is subject to the umask.
            self._descriptor = _create(self._partial, self._mode, self._directory)
        except OSError:
            os.close(self._directory)
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()
        with suppress(OSError):
            os.unlink(self._partial, dir_fd=self._directory)
        os.close(self._directory)

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def chmod(self, mode: int) -> None:
        """Set the permissions, whatever the umask is."""
        os.fchmod(self._descriptor, mode)

    def commit(self, replace: bool, link: Callable[..., None] = os.link) -> None:
        """Give the file its name when its content is on the disk.

        With `replace`, a file or link of that name is replaced, and a link not followed. Without it, raises
        `FileExistsError` if there is one. `link` is called like `os.link`.
        """
        # Some file systems report only now that the disk is full.
        os.fsync(self._descriptor)
        self._close()
        give_name(self._partial, self.path.name, self._directory, replace=replace, link=link)
        # The name is there; some file systems cannot sync a directory, and the file is complete all the same.
        with suppress(OSError):
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def start_over(self) -> None:
        """Remove what was written."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _create(name: str, mode: int, directory: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=directory)


def give_name(partial: str, name: str, directory: int, *, replace: bool, link: Callable[..., None] = os.link) -> None:
    """Give a file of a directory its name; without `replace` it may have both afterwards.

    With `replace`, a file or link of that name is replaced. Without it, raises `FileExistsError` if there is one.
    `link` is called like `os.link`. Raises `OSError`.
    """
    if not replace:
        # rename(2) replaces whatever has that name; link(2) does not.
        try:
            link(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        # Without links: create the name, which fails if it exists, and then replace our own empty file.
        os.close(_create(name, 0o666, directory))
    os.replace(partial, name, src_dir_fd=directory, dst_dir_fd=directory)


def write_atomic(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o600) -> None:
    """Write a file with these permissions, replacing a file or link of that name in one step (rename(2)).

    Neither a full disk nor a power failure leaves a partial file. Text is written as UTF-8. It blocks until the data
    is on the disk, mostly for milliseconds: use it for files that change seldom. Raises `OSError`; then the previous
    file is unchanged, and nothing is left beside it.
    """
    with AtomicFile(path, 0o600) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.chmod(mode)
        file.commit(replace=True)
