"""Reads the lines that a client sends: telnet sequences, line ends, encodings. Knows no transport."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal

from netsvc.services.chat.text import BYTE_ORDER_MARK
from netsvc.services.chat.wording import line_form

__all__ = ["COMMANDS_AT_ONCE", "OVERLONG", "UTF8", "Dialect", "LineSplitter", "Overlong", "TelnetFilter"]

UTF8 = "utf-8"

#: Telnet commands in one piece of input. A client sends a dozen when it begins; each costs us far more than a byte.
COMMANDS_AT_ONCE = 200

_IAC, _DONT, _DO, _WONT, _WILL, _SB, _SE = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb", b"\xfa", b"\xf0"
#: A command: about an option, or another. Cut short at the end of a segment, the last groups are missing.
_COMMAND = re.compile(rb"\xff(?:([\xfb-\xfe])(.)?|(.))?", re.DOTALL)
#: What may end a subnegotiation. In it, IAC and any one byte belong together.
_PAIR = re.compile(rb"\xff(.)?", re.DOTALL)
#: We have no option: what the client offers or asks for is refused. The rest needs no answer.
_ANSWERS = {_DO: _IAC + _WONT, _WILL: _IAC + _DONT}

#: Lines of nothing but what `bytes.strip` removes.
_BLANK_LINES = re.compile(rb"(?:[ \t\r\v\f]*+\n)+")


class Overlong(Enum):
    """Stands for a line that was too long to keep."""

    OVERLONG = "overlong"


OVERLONG: Literal[Overlong.OVERLONG] = Overlong.OVERLONG


class TelnetFilter:
    """Removes the telnet protocol's own sequences (RFC 854), however they are cut, and refuses every option.

    An answer matters: after Ctrl-C a telnet client shows nothing until its DO TIMING-MARK has one. The byte 255 as
    data (IAC IAC) is removed too; no text in UTF-8 or GBK has it. At most two bytes are kept.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._in_subnegotiation = False
        #: Whether more commands came at once than any client has to send; the input that held them was dropped.
        self.flooded = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return those that are not telnet's, and the bytes to answer."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        elif not self._in_subnegotiation and _IAC not in data:
            return data, b""
        if data.count(_IAC) > COMMANDS_AT_ONCE:
            self.flooded = True
            return b"", b""
        kept: list[bytes] = []
        answers: list[bytes] = []
        at = 0
        while True:
            found = (_PAIR if self._in_subnegotiation else _COMMAND).search(data, at)
            start = found.start() if found else len(data)
            if not self._in_subnegotiation:
                kept.append(data[at:start])
            if found is None:
                break
            at = found.end()
            if self._in_subnegotiation:
                complete = found[1] is not None
                self._in_subnegotiation = found[1] != _SE
            else:
                verb, option, other = found.groups()
                complete = option is not None or other is not None
                self._in_subnegotiation = other == _SB
                if complete and verb in _ANSWERS:
                    answers.append(_ANSWERS[verb] + option)
            if not complete:
                self._pending = data[start:]
                break
        return b"".join(kept), b"".join(answers)


class LineSplitter:
    """Gives out one line at a time, so that its user may stop between two.

    A line ends at LF, CR LF, or CR NUL, which a telnet client in character mode sends for Enter (RFC 854, page 11).
    Blank lines are left out. A line of more than `limit` bytes, its end not counted, is given out as `OVERLONG`, once
    and as soon as it is known to be one; the rest of it is dropped. So what is held is what was fed since the last
    `take` that returned None, and at most `limit` + 1 bytes besides.

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
        """Take the next bytes; return the bytes to answer, telnet's."""
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
        """Return the number of lines that were fed and not taken."""
        return self._buffer.count(b"\n", self._start)

    def finish(self) -> None:
        """End the input: what is left is a line, without an end."""
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
            # A client that sends nothing but blank lines must not keep us busy.
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


class Dialect:
    """The encoding and line end of one client, detected from what it sends; `form` is how to answer it.

    It starts with UTF-8 and LF. The first line that is not in the current encoding but is in the other one switches
    to that; the first CR LF switches the line end to CR LF.
    """

    def __init__(self, legacy: str) -> None:
        self._other = legacy
        self._end = "\n"
        self.encoding = UTF8
        self.form = line_form(UTF8, self._end)

    def read(self, line: bytes) -> str:
        """Return the text of a line, without a byte order mark. What is in neither encoding is replaced (U+FFFD)."""
        return self._decode(line).removeprefix(BYTE_ORDER_MARK)

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError:
            pass
        try:
            text = line.decode(self._other)
        except UnicodeDecodeError:
            return line.decode(self.encoding, "replace")
        self.encoding, self._other = self._other, self.encoding
        self.form = line_form(self.encoding, self._end)
        return text

    def end_with_return(self) -> None:
        """Answer with CR LF from now on."""
        if self._end == "\n":
            self._end = "\r\n"
            self.form = line_form(self.encoding, self._end)
