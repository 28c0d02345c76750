"""A log file: appended to, rotated at its size, and reopened when another program has moved it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from netsvc.base.paths import open_path
from netsvc.base.text import escape
from netsvc.log.output import Output, complain_on_stderr
from netsvc.log.queued import QueuedOutput, may_block

#: Bytes at which a file is rotated, and the number of older files that are kept: 288 MiB in all, at most.
ROTATED_AT = 32 << 20
KEPT = 8


class LogFile(Output):
    """Appends whole lines to the file at `path`, and rotates it.

    At `rotated_at` bytes it is renamed to `path.1`, an existing `path.1` to `path.2`, and so on, up to `kept` files.
    Call `reopen` after another program has moved the file. If it cannot be rotated or reopened, writing continues in
    the open file, with a line that reports it. A new file belongs to `owner`, a user and group, if given and allowed.
    A FIFO or a terminal is written by a thread. Raises `OSError` if it cannot be opened at first.
    """

    def __init__(
        self,
        path: str,
        notice: Callable[[str], str],
        *,
        rotated_at: int = ROTATED_AT,
        kept: int = KEPT,
        owner: tuple[int, int] | None = None,
        complain: Callable[[str], None] = complain_on_stderr,
    ) -> None:
        self.path = os.path.abspath(path)
        super().__init__(_open(self.path, owner=owner), f"log file {escape(path)}", notice, complain=complain)
        self._rotated_at = rotated_at
        self._kept = kept
        self._queue: QueuedOutput | None = None
        self._measure()

    def _measure(self) -> None:
        status = os.fstat(self._descriptor)
        self._size = status.st_size
        # Not a terminal, a pipe or /dev/null.
        self._has_size = stat.S_ISREG(status.st_mode)
        self._limit = self._rotated_at
        if may_block(self._descriptor):
            # The descriptor is its own from now on.
            self._queue = QueuedOutput(self._descriptor, self.name, self.notice, complain=self._complain)

    @property
    def lost(self) -> int:
        """The number of lost lines."""
        return self._lost + (self._queue.lost if self._queue else 0)

    def write(self, text: str) -> None:
        """Write lines, each with its end; rotate the file first if it is full."""
        if self._queue is not None:
            self._queue.write(text)
            return
        with self._lock:
            if self._size >= self._limit and self._has_size:
                self._measure()
                if self._size >= self._limit:
                    self._rotate()
            super().write(text)

    def _put(self, data: bytes) -> int:
        count = super()._put(data)
        self._size += count
        return count

    def _rotate(self) -> None:
        # Rotate the target of a symbolic link, not the link.
        path = os.path.realpath(self.path)
        try:
            if self._is_at(path):
                for number in range(self._kept - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        os.rename(f"{path}.{number}", f"{path}.{number + 1}")
                os.rename(path, f"{path}.1")
            self._reopen()
        except OSError as error:
            # Do not try again for every line.
            self._limit = self._size + self._rotated_at
            self._report(f"{self.name} cannot be rotated: {_reason(error)}; it keeps growing")

    def _is_at(self, path: str) -> bool:
        """Return whether the open file still has this path: another process may have rotated it."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def reopen(self) -> None:
        """Open the file at the path now, or create it. If that fails, keep the open one."""
        with self._lock:
            try:
                if self._queue is not None and self._is_at(self.path):
                    # A FIFO or a terminal that is still there is not opened a second time.
                    return
                self._reopen()
            except OSError as error:
                self._report(f"{self.name} cannot be reopened: {_reason(error)}; writing continues in the old file")

    def _reopen(self) -> None:
        descriptor = _open(self.path, os.fstat(self._descriptor).st_mode)
        if self._rest:
            # It belongs to a line in the old file.
            self._rest = b""
            self._lose(b"\n")
        self._release()
        self._descriptor = descriptor
        self._measure()

    def _release(self) -> None:
        """Close the descriptor, after what is queued for it."""
        if self._queue is None:
            os.close(self._descriptor)
        else:
            self._queue.close()
            self._lost += self._queue.lost
            self._queue = None

    def settle(self) -> None:
        """Write what is pending, if possible."""
        if self._queue is not None:
            self._queue.settle()
        super().settle()

    def close(self) -> None:
        """Write what is pending, if possible, and close the file."""
        self.settle()
        self._release()

    def _report(self, text: str) -> None:
        if self._queue is not None:
            self._queue.write(self.notice(text))
        else:
            super().write(self.notice(text))


def _open(path: str, mode: int | None = None, owner: tuple[int, int] | None = None) -> int:
    """Open a file for appending. A new one gets the permissions of `mode`, if given, and the owner."""
    # Without O_NONBLOCK, opening a FIFO without a reader would block for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = open_path(path, flags)
    except FileNotFoundError:
        try:
            # Only a file created here may change its owner below: other users may be able to write in the directory.
            descriptor = open_path(path, flags | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            # Another process created it first.
            descriptor = open_path(path, flags)
        else:
            with suppress(OSError):
                if mode is not None:
                    os.fchmod(descriptor, stat.S_IMODE(mode))
                if owner is not None:
                    os.fchown(descriptor, *owner)
    os.set_blocking(descriptor, True)
    return descriptor


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
