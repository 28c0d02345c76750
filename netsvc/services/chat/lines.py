"""Splits what a client sends into lines. Knows no transport: bytes in, lines out."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal

from netsvc.services.chat.telnet import TelnetFilter

__all__ = ["OVERLONG", "LineSplitter", "Overlong"]

#: Lines of nothing but what `bytes.strip` takes away.
_BLANK_LINES = re.compile(rb"(?:[ \t\r\v\f]*+\n)+")


class Overlong(Enum):
    """Stands for a line that was too long to keep."""

    OVERLONG = "overlong"


OVERLONG: Literal[Overlong.OVERLONG] = Overlong.OVERLONG


class LineSplitter:
    """Gives out one line at a time, so that its user may stop between two.

    A line ends at LF, CR LF, or CR NUL, which is what a telnet client in character mode sends for Enter
    (RFC 854, page 11). Blank lines are left out. A line of more than `limit` bytes, its end not counted, is
    given out as `OVERLONG`, once, as soon as it is known to be one; the rest of it is not kept. So what is
    held is what was fed since the last `take` that returned None, and at most `limit` + 1 bytes besides.

    `telnet` removes telnet's sequences first; it must be off for encodings in which 255 is a letter.
    """

    def __init__(self, limit: int, *, telnet: bool = True) -> None:
        self._limit = limit
        self._telnet = TelnetFilter() if telnet else None
        self._buffer = b""
        self._start = 0
        self._after_return = False
        self._skipping = False
        self._finished = False
        #: Whether the client ends its lines with CR LF.
        self.ends_with_return = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes that came. Returns the bytes that telnet wants answered."""
        answers = b""
        if self._telnet is not None:
            data, answers = self._telnet.feed(data)
        if data:
            if self._after_return and data[0] == 0:
                data = b"\n" + data[1:]
            self._after_return = data.endswith(b"\r")
            self._buffer = self._buffer[self._start :] + data.replace(b"\r\0", b"\r\n")
            self._start = 0
        return answers

    @property
    def flooded(self) -> bool:
        """Whether the client sent more telnet commands at once than any has to."""
        return self._telnet is not None and self._telnet.flooded

    def waiting(self) -> int:
        """Count the lines that have come and were not taken."""
        return self._buffer.count(b"\n", self._start)

    def finish(self) -> None:
        """Take note that no more bytes will come: what is left is a line, without an end."""
        self._finished = True

    def take(self) -> bytes | Literal[Overlong.OVERLONG] | None:
        """Return the next line, without its end; `OVERLONG`; or None if there is none yet."""
        while (end := self._buffer.find(b"\n", self._start)) >= 0:
            line = self._buffer[self._start : end]
            self._start = end + 1
            if self._skipping:
                self._skipping = False
                continue
            if line.endswith(b"\r"):
                self.ends_with_return = True
                line = line[:-1]
            if len(line) > self._limit:
                return OVERLONG
            if line.strip():
                return line
            # Whoever sends nothing but blank lines shall not keep us busy.
            if more := _BLANK_LINES.match(self._buffer, self._start):
                self._start = more.end()
        rest = self._buffer[self._start :]
        self._start = 0
        # One byte more may turn out to be the CR of the line's end.
        if self._skipping or self._finished or len(rest) > self._limit + 1:
            self._buffer = b""
            return self._take_rest(rest)
        self._buffer = rest
        return None

    def _take_rest(self, rest: bytes) -> bytes | Literal[Overlong.OVERLONG] | None:
        if self._skipping:
            return None
        line = rest.removesuffix(b"\r")
        if len(line) > self._limit:
            self._skipping = True
            return OVERLONG
        return line if line.strip() else None
