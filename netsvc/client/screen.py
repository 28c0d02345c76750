"""Makes what a server sent fit for a screen, however it was cut into segments."""

from __future__ import annotations

import codecs

from netsvc.text import is_unsafe

__all__ = ["PIECE", "Lines", "SafeText", "make_safe"]

#: Characters. A line that is longer is shown in pieces of this length.
PIECE = 65536


def make_safe(text: str) -> str:
    r"""Return `text` with every character that a terminal may act on as an escape (`\x1b`).

    Newline and tab stay, and CRLF becomes a newline.
    """
    text = text.replace("\r\n", "\n")
    # No unsafe character is printable, so most text needs no look at each of its characters.
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in "\n\t" and is_unsafe(character)
        else character
        for character in text
    )


class SafeText:
    r"""Decodes a stream and makes it safe. A character or CRLF that two segments share comes out whole.

    Bytes that do not decode are shown as escapes (`\xff`). Holds back a few bytes at most.
    """

    def __init__(self, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """Return what can be shown now. Never raises."""
        try:
            text = self._held + self._decoder.decode(data, final)
        except UnicodeError:
            # Some decoders (UTF-16 without a byte order mark) have no way to go on but to begin again.
            self._decoder.reset()
            text = self._held + data.decode("ascii", "backslashreplace")
        self._held = "\r" if text.endswith("\r") and not final else ""
        return make_safe(text.removesuffix(self._held))


class Lines:
    """Holds back the line that is not complete yet, for a screen where each line stands above a prompt."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    @property
    def holding(self) -> bool:
        """Whether there is a part of a line."""
        return self._size > 0

    def feed(self, text: str) -> str:
        """Return the complete lines, and complete pieces of a line that is too long."""
        head, newline, tail = text.rpartition("\n")
        complete = self._take() + head + "\n" if newline else ""
        pieces = []
        while self._size + len(tail) >= PIECE:
            room = PIECE - self._size
            pieces.append(self._take() + tail[:room] + "\n")
            tail = tail[room:]
        if tail:
            self._parts.append(tail)
            self._size += len(tail)
        return complete + "".join(pieces)

    def flush(self) -> str:
        """Return the part of a line as a line of its own, or nothing."""
        return self._take() + "\n" if self.holding else ""

    def _take(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        self._size = 0
        return text
