"""Where the log is written: a descriptor or a file, which may be full or broken and must not stop the server.

Descriptors whose writes may block, as of pipes and terminals, are written by `netsvc.log.queued`.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import RLock

#: Bytes of the rest of a half-written line that are kept until they can be written.
LONGEST_REST = 1 << 16


def complain_on_stderr(text: str) -> None:
    """Print a line on stderr, where the user may see it; errors are ignored."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"netsvc: {text}", file=sys.__stderr__, flush=True)


class Output:
    """Writes lines to a descriptor at once. Never raises. Thread-safe.

    Lines that cannot be written (a full disk, no reader any more) are dropped and counted in `lost`. The first loss
    is reported with `complain`; when writing works again, the number of lost lines is written as a line of its own,
    which `notice` makes from a text. The rest of a half-written line is written before anything else. All writing
    happens in `_put`.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        notice: Callable[[str], str],
        *,
        encoding: str = "utf-8",
        complain: Callable[[str], None] = complain_on_stderr,
    ) -> None:
        self.name = name
        #: Makes a line of the log from a text.
        self.notice = notice
        self._descriptor = descriptor
        self._encoding = encoding
        self._complain = complain
        self._complained = False
        self._lock = RLock()
        self._lost = 0
        #: The rest of a half-written line, and the number of lost lines that have not been reported.
        self._rest = b""
        self._unreported = 0
        self._error = ""

    @property
    def lost(self) -> int:
        """The number of lost lines."""
        return self._lost

    def write(self, text: str) -> None:
        """Write lines, each with its end."""
        self.put(self.encode(text))

    def put(self, data: bytes) -> None:
        """Write bytes: lines, and possibly a part of a line at the end."""
        with self._lock:
            if not (self._rest or self._unreported) or self._catch_up():
                self._write(data)
            else:
                self._lose(data)

    def encode(self, text: str) -> bytes:
        """Encode a text; characters that the output's encoding lacks are escaped."""
        return text.encode(self._encoding, "backslashreplace")

    def settle(self) -> None:
        """Write what is pending, if possible."""
        with self._lock:
            self._catch_up()

    def close(self) -> None:
        """Write what is pending, if possible, and close the descriptor."""
        with self._lock:
            self._catch_up()
            os.close(self._descriptor)

    def _put(self, data: bytes) -> int:
        """Write a part and return its size, 0 if nothing can be written."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # Another process that shares the descriptor has set O_NONBLOCK.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self._error = (error.strerror or str(error)).lower()
                return 0

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            count = self._put(data[written:] if written else data)
            if not count:
                if data[:written].endswith(b"\n") or not written:
                    self._lose(data[written:])
                else:
                    end = data.find(b"\n", written) + 1 or len(data)
                    self._rest = data[written:end]
                    if len(self._rest) > LONGEST_REST:
                        self._rest = self._rest[:LONGEST_REST] + b"...\n"
                    self._lose(data[end:])
                return
            written += count

    def _catch_up(self) -> bool:
        """Write what comes before the next line; return whether all of it was written."""
        while True:
            while self._rest:
                count = self._put(self._rest)
                if not count:
                    return False
                self._rest = self._rest[count:]
            if not self._unreported:
                return True
            notice = self._notice_of(self._unreported, self._error)
            count = self._put(notice)
            if not count:
                return False
            self._unreported, self._rest = 0, notice[count:]

    def _notice_of(self, count: int, reason: str) -> bytes:
        lines = "1 line was" if count == 1 else f"{count} lines were"
        return self.encode(self.notice(f"{lines} lost here: cannot write to {self.name}: {reason}"))

    def _lose(self, data: bytes) -> None:
        """Count the lines of `data` as lost."""
        count = data.count(b"\n")
        self._lost += count
        self._unreported += count
        self._report_once(self._error)

    def _report_once(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"{self.name} cannot be written: {reason}; log lines are lost until it can be")
