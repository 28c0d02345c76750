"""The pid file: written whole, handed on in an upgrade, and removed only by the process that it names."""

from __future__ import annotations

import os
import stat

from twisted.logger import Logger

from netsvc.errors import MistakeError
from netsvc.text import escape
from netsvc.whole import write_whole

__all__ = ["PidFile"]

#: Bytes. A file that is longer has no pid.
_LONGEST = 32
#: Anybody may read it.
_MODE = 0o644

_log = Logger(namespace="netsvc")


class PidFile:
    """The file at `path` that has the pid of the process that serves."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._place = f"pid file {escape(path)}"

    def check(self) -> None:
        """Raise `MistakeError` if another process has it, or it is no pid file. One that is left over is fine."""
        try:
            pid = self._read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise MistakeError([f"{self._place}: {_reason(error)}; give --pidfile another name"]) from error
        except ValueError:
            raise MistakeError(
                [f"{self._place} has no process number in it; remove it, or give another name"]
            ) from None
        if pid != os.getpid() and _is_alive(pid):
            raise MistakeError(
                [f"{self._place} is that of process {pid}, which runs; stop that one, or give --pidfile another name"]
            )

    def write(self) -> None:
        """Put this process's pid there. Raises `MistakeError`."""
        try:
            write_whole(self.path, f"{os.getpid()}\n", _MODE)
        except OSError as error:
            raise MistakeError(
                [f"{self._place} cannot be written: {_reason(error)}; give --pidfile another name"]
            ) from (error)

    def remove(self) -> None:
        """Remove it, if it is still this process's."""
        try:
            if self._read() == os.getpid():
                os.unlink(self.path)
        except (FileNotFoundError, ValueError):
            return
        except OSError as error:
            # After --uid its directory may not be ours to change; the next start takes it over.
            _log.warn("{file} is left behind: {reason}", file=self._place, reason=_reason(error))

    def refusal(self) -> str:
        """Say why another process of this user could not take it over, if it could not."""
        directory = os.path.dirname(self.path)
        if os.access(directory, os.W_OK, effective_ids=True):
            return ""
        return (
            f"{self._place} could not be replaced, as user {os.geteuid()} may not write in {escape(directory)}; "
            "put it into a directory of that user's"
        )

    def _read(self) -> int:
        # One that is a FIFO would be waited for.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("no file")
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST or not content.strip().isdigit():
            raise ValueError("no number")
        return int(content)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0
