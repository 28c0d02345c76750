"""A log file: kept to a size by rotation, and opened anew when somebody else has moved it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from netsvc.log.output import Output, room_of, say_on_stderr
from netsvc.text import escape

__all__ = ["KEPT", "ROTATED_AT", "LogFile"]

#: Bytes at which a file is rotated, and how many older ones there are besides it: 288 MiB in all, at most.
ROTATED_AT = 32 << 20
KEPT = 8


class LogFile(Output):
    """Appends whole lines to the file at `path`.

    At `rotated_at` bytes it is renamed to `path.1`, what was there to `path.2`, and so on; the last of `kept` is
    dropped. `reopen` is for a file that was moved by somebody else. A file that cannot be rotated or opened anew goes
    on as it is, and a line in it says so. One that is made belongs to `owner`, a user and a group, if that is given and
    allowed. Raises `OSError` if it cannot be opened at first.
    """

    def __init__(
        self,
        path: str,
        notice: Callable[[str], str],
        *,
        rotated_at: int = ROTATED_AT,
        kept: int = KEPT,
        owner: tuple[int, int] | None = None,
        complain: Callable[[str], None] = say_on_stderr,
    ) -> None:
        self.path = os.path.abspath(path)
        super().__init__(_open(self.path, owner=owner), f"log file {escape(path)}", notice, complain=complain)
        self._rotated_at = rotated_at
        self._kept = kept
        self._measure()

    def _measure(self) -> None:
        status = os.fstat(self._descriptor)
        self._size = status.st_size
        # A terminal, a pipe or /dev/null is none.
        self._has_size = stat.S_ISREG(status.st_mode)
        self._limit = self._rotated_at

    def write(self, text: str) -> None:
        """Write lines, each with its end, and rotate the file before that if it is time."""
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
        # A link stays where it is.
        path = os.path.realpath(self.path)
        try:
            if self._is_at(path):
                for number in range(self._kept - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        os.rename(f"{path}.{number}", f"{path}.{number + 1}")
                os.rename(path, f"{path}.1")
            self._open_anew()
        except OSError as error:
            # Not for every line from now on.
            self._limit = self._size + self._rotated_at
            self._say(f"{self.name} cannot be rotated: {_reason(error)}; it grows")

    def _is_at(self, path: str) -> bool:
        """Tell whether the file is still what has this path: another process may have rotated it."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def reopen(self) -> None:
        """Open what is at the path now, or make it. If that fails, go on with the file that is open."""
        with self._lock:
            try:
                self._open_anew()
            except OSError as error:
                self._say(f"{self.name} cannot be opened anew: {_reason(error)}; the log goes on where it was")

    def _open_anew(self) -> None:
        descriptor = _open(self.path, os.fstat(self._descriptor).st_mode)
        if self._rest:
            # It ends a line that is not in the new file.
            self._rest = b""
            self._lose(b"\n")
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._room = room_of(descriptor)
        self._measure()

    def _say(self, text: str) -> None:
        super().write(self._notice(text))


def _open(path: str, mode: int | None = None, owner: tuple[int, int] | None = None) -> int:
    """Open a file to append to it; a new one has the permissions of `mode`, or the usual ones, and the owner."""
    # Without O_NONBLOCK, a FIFO that nobody reads would hold up the start for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        try:
            # What is given away below must be what was made here, whoever else may write in the directory.
            descriptor = os.open(os.path.realpath(path), flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            # Another process was quicker.
            descriptor = os.open(path, flags)
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
