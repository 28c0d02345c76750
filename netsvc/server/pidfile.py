"""The pid file: written atomically, taken over by an upgrade, and removed only by the process that it names."""

from __future__ import annotations

import errno
import os

from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.base.files import read_file, write_atomic
from netsvc.base.paths import parent_directory
from netsvc.base.processes import may_be_netsvc
from netsvc.base.text import escape

#: Bytes. A longer file is no pid file.
_LONGEST = 32
#: Every user may read it.
_MODE = 0o644

_log = Logger(namespace="netsvc")


class PidFile:
    """The file at `path` with the pid of the serving process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._place = f"pid file {escape(path)}"

    def check(self) -> None:
        """Raise `UserError` if the file names another running netsvc or is not a pid file. A stale file is valid."""
        try:
            pid = self._read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError([f"{self._place}: {_reason(error)}; give --pidfile another name"]) from error
        except ValueError:
            raise UserError([f"{self._place} contains no pid; remove it, or give --pidfile another name"]) from None
        if pid != os.getpid() and may_be_netsvc(pid):
            raise UserError(
                [f"{self._place} belongs to the running process {pid}; stop it, or give --pidfile another name"]
            )

    def write(self) -> None:
        """Write the pid of this process. Raises `UserError`."""
        try:
            write_atomic(self.path, f"{os.getpid()}\n", _MODE)
        except OSError as error:
            raise UserError([f"{self._place} cannot be written: {_reason(error)}; give --pidfile another name"]) from (
                error
            )

    def remove(self) -> None:
        """Remove the file if it still names this process."""
        try:
            if self._read() == os.getpid():
                with parent_directory(self.path) as (directory, name):
                    os.unlink(name, dir_fd=directory)
        except (FileNotFoundError, ValueError):
            return
        except OSError as error:
            # After --uid the directory may not be writable; the next start overwrites the stale file.
            _log.warn("{file} is left behind: {reason}", file=self._place, reason=_reason(error))

    def refusal(self) -> str:
        """Return the reason why a process of this user cannot take the file over; an empty string if it can."""
        directory = os.path.dirname(self.path)
        if os.access(directory, os.W_OK, effective_ids=True):
            return ""
        return (
            f"{self._place} could not be replaced, as user {os.geteuid()} may not write in {escape(directory)}; "
            "put it into a directory that this user may write"
        )

    def _read(self) -> int:
        try:
            content = read_file(self.path, _LONGEST)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EFBIG):
                raise ValueError("not a pid file") from None
            raise
        if not content.strip().isdigit():
            raise ValueError("no number")
        return int(content)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
