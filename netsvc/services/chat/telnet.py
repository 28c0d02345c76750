"""Takes the telnet protocol's own sequences out of a stream of bytes (RFC 854)."""

from __future__ import annotations

import re

__all__ = ["COMMANDS_AT_ONCE", "TelnetFilter"]

#: Commands in one piece of input. A telnet client sends a dozen when it begins; each costs us far more than a byte.
COMMANDS_AT_ONCE = 200

_IAC, _DONT, _DO, _WONT, _WILL, _SB, _SE = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb", b"\xfa", b"\xf0"
#: A command: about an option, or another. Cut short at the end of a segment, the last groups are missing.
_COMMAND = re.compile(rb"\xff(?:([\xfb-\xfe])(.)?|(.))?", re.DOTALL)
#: What may end a subnegotiation. In it, IAC and any one byte belong together.
_PAIR = re.compile(rb"\xff(.)?", re.DOTALL)
#: We have no option: what the client offers or asks for is answered so. The rest needs no answer.
_ANSWERS = {_DO: _IAC + _WONT, _WILL: _IAC + _DONT}


class TelnetFilter:
    """Removes commands, however they are cut into segments, and refuses every option.

    An answer matters: after Ctrl-C a telnet client shows nothing until its DO TIMING-MARK has one. The byte
    255 as data (IAC IAC) is removed too; no text in UTF-8 or GBK has it. At most two bytes are kept.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._in_subnegotiation = False
        #: Whether more commands came than any client has to send; the input that held them was dropped.
        self.flooded = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes that came; return those that are not telnet's, and the bytes to answer."""
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
