"""Where lines go: a descriptor that may be full, broken or slow, and must not stop the server."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import RLock

__all__ = ["PATIENCE", "Output", "room_of", "say_on_stderr"]

#: Seconds that a reader may take to make room, once: then lines are lost until it has.
PATIENCE = 1.0
#: Bytes for which a pipe that has room at all has room (pipe(7), PIPE_BUF).
_AT_ONCE = select.PIPE_BUF

#: Bytes of a line of which a part was written, and whose rest is kept until it can be.
LONGEST_REST = 1 << 16


def say_on_stderr(text: str) -> None:
    """Say a line where whoever started the process may see it, if anybody can."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"netsvc: {text}", file=sys.__stderr__, flush=True)


class Output:
    """Writes whole lines to a descriptor, each at once. Nothing that goes wrong there is raised.

    Lines that cannot be written (a full disk, a reader that is gone, or that has not read for `patience` seconds) are
    counted in `lost`, and dropped. That is said once with `complain`; and when it can write again, how many
    were lost is a line of its own, which `notice` makes of a text. Of a line of which a part was written, the rest is
    written before anything else. It may be called by several threads at once.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        notice: Callable[[str], str],
        *,
        encoding: str = "utf-8",
        complain: Callable[[str], None] = say_on_stderr,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        #: Lines that were never written.
        self.lost = 0
        self._descriptor = descriptor
        self._notice = notice
        self._encoding = encoding
        self._complain = complain
        self._has_complained = False
        self._lock = RLock()
        #: What must come first, to end a line that was begun; and of the lost lines, those of which nothing was said.
        self._rest = b""
        self._unsaid = 0
        self._fault = ""
        #: What tells whether there is room where writing would wait for it; and whether there has been none for long.
        self._room = room_of(descriptor)
        self._patience = patience
        self._is_stuck = False

    def write(self, text: str) -> None:
        """Write lines, each with its end."""
        data = self.encode(text)
        with self._lock:
            if not (self._rest or self._unsaid) or self._catch_up():
                self._write(data)
            else:
                self._lose(data)

    def encode(self, text: str) -> bytes:
        """Return the bytes of a text; what has none in the encoding of the output is escaped."""
        return text.encode(self._encoding, "backslashreplace")

    def settle(self) -> None:
        """Write what is still to be said, if that can be written now."""
        with self._lock:
            self._catch_up()

    def close(self) -> None:
        """Settle, and close the descriptor."""
        with self._lock:
            self._catch_up()
            os.close(self._descriptor)

    def _put(self, data: bytes) -> int:
        """Write a part. Returns how much was written, 0 if nothing can be."""
        if self._room is not None:
            if not self._has_room(self._room):
                self._fault = "nobody reads it"
                return 0
            data = data[:_AT_ONCE]
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            self._fault = (error.strerror or str(error)).lower()
            return 0

    def _has_room(self, room: select.poll) -> bool:
        # A server must not stand still because somebody has stopped its terminal, or does not read its pipe.
        ready = bool(room.poll(0)) or (not self._is_stuck and bool(room.poll(self._patience * 1000)))
        self._is_stuck = not ready
        return ready

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            count = self._put(data[written:] if written else data)
            if not count:
                if data[:written].endswith(b"\n") or not written:
                    self._lose(data[written:])
                else:
                    end = data.index(b"\n", written) + 1
                    self._rest = data[written:end]
                    if len(self._rest) > LONGEST_REST:
                        self._rest = self._rest[:LONGEST_REST] + b"...\n"
                    self._lose(data[end:])
                return
            written += count

    def _catch_up(self) -> bool:
        """Write what comes before the next line; return whether all of it was."""
        while True:
            while self._rest:
                count = self._put(self._rest)
                if not count:
                    return False
                self._rest = self._rest[count:]
            if not self._unsaid:
                return True
            lines = "1 line was" if self._unsaid == 1 else f"{self._unsaid} lines were"
            notice = self.encode(self._notice(f"{lines} lost here: {self.name} could not be written: {self._fault}"))
            count = self._put(notice)
            if not count:
                return False
            self._unsaid, self._rest = 0, notice[count:]

    def _lose(self, data: bytes) -> None:
        """Count the lines of what cannot be written."""
        count = data.count(b"\n")
        self.lost += count
        self._unsaid += count
        if not self._has_complained:
            self._has_complained = True
            self._complain(f"{self.name} cannot be written: {self._fault}; lines are lost until it can be")


def room_of(descriptor: int) -> select.poll | None:
    """Return what tells whether a descriptor has room; None of a file, which always has, or fails."""
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:
        return None
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(descriptor)):
        return None
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    return room
