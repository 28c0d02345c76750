"""Reads the lines that a client sends: telnet sequences, line ends, UTF-16. Knows no transport."""

from __future__ import annotations

import codecs
import re
from enum import Enum
from typing import Any, Literal

__all__ = ["ALIVE", "COMMANDS_AT_ONCE", "OVERLONG", "LineSplitter", "Overlong", "TelnetFilter"]

#: Telnet commands in one piece of input. A client sends a dozen when it begins; each costs us far more than a byte.
COMMANDS_AT_ONCE = 200

#: The answer to "are you there".
ALIVE = b"* yes, the chat is here\r\n"

_IAC, _DONT, _DO, _WONT, _WILL, _SB, _SE = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb", b"\xfa", b"\xf0"
_INTERRUPT, _ARE_YOU_THERE, _ERASE_CHARACTER, _ERASE_LINE = b"\xf4", b"\xf6", b"\xf7", b"\xf8"
#: A command: about an option, or another. Cut short at the end of a segment, the last groups are missing.
_COMMAND = re.compile(rb"\xff(?:([\xfb-\xfe])(.)?|(.))?", re.DOTALL)
#: What may end a subnegotiation. In it, IAC and any one byte belong together.
_PAIR = re.compile(rb"\xff(.)?", re.DOTALL)
#: We have no option: what the client offers or asks for is refused. A refusal is never answered, so none is in turn.
_ANSWERS = {_DO: _IAC + _WONT, _WILL: _IAC + _DONT}
#: The commands that edit the line, as the keys DEL and Ctrl-U do. Who interrupts gives up the line being typed.
_EDITS = {_ERASE_CHARACTER: b"\x7f", _ERASE_LINE: b"\x15", _INTERRUPT: b"\x15"}

#: A line ends at each of them; so CR LF and CR NUL end it once, and have a blank line between them.
_ENDS = bytes.maketrans(b"\r\0", b"\n\n")
#: Lines of nothing but what `bytes.strip` removes.
_BLANK_LINES = re.compile(rb"(?:[ \t\v\f]*+\n)+")
#: Lines that are not empty.
_FULL_LINE = re.compile(rb"[^\n]\n")

_WIDE = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Overlong(Enum):
    """Stands for a line that was too long to keep."""

    OVERLONG = "overlong"


OVERLONG: Literal[Overlong.OVERLONG] = Overlong.OVERLONG


class TelnetFilter:
    """Removes the telnet protocol's own sequences (RFC 854), however they are cut, and refuses every option.

    An answer matters: after Ctrl-C a telnet client shows nothing until its DO TIMING-MARK has one. Erase Character,
    Erase Line and Interrupt become the keys that edit a line; Are You There is answered. The byte 255 as data (IAC IAC)
    is removed; no text in UTF-8 or GBK has it. At most two bytes are kept.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._in_subnegotiation = False
        #: Whether the client has sent a command: it speaks telnet.
        self.used = False
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
        self.used = True
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
                elif other == _ARE_YOU_THERE:
                    answers.append(ALIVE)
                elif other in _EDITS:
                    kept.append(_EDITS[other])
            if not complete:
                self._pending = data[start:]
                break
        return b"".join(kept), b"".join(answers)


class LineSplitter:
    """Gives out one line at a time, so that its user may stop between two.

    A line ends at LF, CR or NUL, and so also at CR LF, at CR NUL, which a telnet client in character mode sends for
    Enter (RFC 854, page 11), and at the zero that ends a text in C. Blank lines are left out. A line of more than
    `limit` bytes, its end not counted, is given out as `OVERLONG`, once and as soon as it is known to be one; the rest
    of it is dropped. So what is held is what was fed since the last `take` that returned None, and at most `limit`
    bytes besides.

    Input that begins with the byte order mark of UTF-16 is converted: its lines are UTF-8, and `wide` names its
    encoding. `telnet` removes telnet's sequences. Both must be off for encodings in which 255 is a letter.
    """

    def __init__(self, limit: int, *, telnet: bool = True) -> None:
        self._limit = limit
        self._telnet = TelnetFilter() if telnet else None
        #: The first bytes, until it is known whether they are a byte order mark.
        self._head: bytes | None = b"" if telnet else None
        self._decoder: Any = None
        self._buffer = b""
        self._start = 0
        self._skipping = False
        self._finished = False
        #: The encoding of wide input, or None.
        self.wide: str | None = None
        #: Whether the client has ended a line, a blank one too; and how: the line end to answer it with. Until that is
        #: known, and to telnet, it is that of a terminal on a network (RFC 854, page 11).
        self.ended = False
        self.line_end: str | None = None
        #: Whether what was fed after the last line end came one character at a time: someone is typing it.
        self.typed = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return the bytes to answer, telnet's."""
        answers = b""
        if self._head is not None:
            data = self._head + data
            if data in (b"", b"\xff", b"\xfe"):
                self._head = data
                return b""
            self._head = None
            self.wide = _WIDE.get(data[:2])
            if self.wide is not None:
                self._telnet = None
                self._decoder = codecs.getincrementaldecoder(self.wide)("replace")
                data = data[2:]
        if self._decoder is not None:
            data = self._decoder.decode(data).encode()
        elif self._telnet is not None:
            data, answers = self._telnet.feed(data)
        if data:
            self._append(data)
        return answers

    def _append(self, data: bytes) -> None:
        rest = self._buffer[self._start :]
        if b"\r" in data or (self._telnet is not None and self._telnet.used):
            self.line_end = "\r\n"
        elif self.line_end is None and b"\n" in data:
            self.line_end = "\n"
        data = data.translate(_ENDS)
        if not self.ended:
            self.typed = (self.typed or not rest) and _is_key(data)
            self.ended = b"\n" in data
        self._buffer = rest + data
        self._start = 0

    @property
    def flooded(self) -> bool:
        """Whether the client sent more telnet commands at once than any has to."""
        return self._telnet is not None and self._telnet.flooded

    @property
    def unended(self) -> bool:
        """Whether there is a part of a line, after a `take` that returned None."""
        return bool(self._buffer)

    def waiting(self) -> int:
        """Return the number of lines that were fed and not taken."""
        return sum(1 for _ in _FULL_LINE.finditer(self._buffer, self._start))

    def end_line(self) -> None:
        """Take what was fed for a whole line: its client does not end lines."""
        if not self._skipping:
            self._buffer += b"\n"

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
            if len(line) > self._limit:
                return OVERLONG
            if line.strip():
                return line
            # A client that sends nothing but blank lines must not keep us busy.
            if more := _BLANK_LINES.match(self._buffer, self._start):
                self._start = more.end()
        rest = self._buffer[self._start :]
        self._start = 0
        if not (self._skipping or self._finished or len(rest) > self._limit):
            self._buffer = rest
            return None
        self._buffer = b""
        if self._skipping:
            return None
        if len(rest) > self._limit:
            self._skipping = True
            return OVERLONG
        return rest if rest.strip() else None


def _is_key(data: bytes) -> bool:
    """Return whether these bytes are what one key sends: a character, a part of one, or a sequence of the terminal."""
    return len(data) == 1 or data[0] == 0x1B or len(data.decode("utf-8", "replace")) == 1
