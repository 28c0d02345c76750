"""Messages of IRC: lines to messages, and back. Knows no transport."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "LONGEST_LINE",
    "LONGEST_TAGS",
    "IrcMessage",
    "IrcMessageError",
    "MessageSplitter",
    "escape_tag",
    "format_message",
    "join_tags",
    "parse_message",
    "with_tag",
]

#: Bytes of a line without its tags, with its end (RFC 1459, section 2.3).
LONGEST_LINE = 512
#: Bytes of the tags that a client may send, without the @ before and the space after them (message-tags).
LONGEST_TAGS = 4094
#: Bytes of any line.
_LONGEST = 8191

_ESCAPES = {";": "\\:", " ": "\\s", "\\": "\\\\", "\r": "\\r", "\n": "\\n"}
_UNESCAPES = {escaped[1]: plain for plain, escaped in _ESCAPES.items()}
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_TAG = re.compile(r"\+?(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9-]+", re.ASCII)
_COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_]*|[0-9]{3}", re.ASCII)


class IrcMessageError(Exception):
    """A line is no message. The text says why; `code` is `too long`, `encoding` or `form`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class IrcMessage(NamedTuple):
    """One message: its command in capitals, and what comes with it. `tags` has the values unescaped."""

    command: str
    params: tuple[str, ...] = ()
    tags: Mapping[str, str] = _NO_TAGS
    source: str = ""


class MessageSplitter:
    """Cuts what arrives into lines, which end in LF or CR LF. It holds no more than one line that is not complete.

    Of a line that is too long nothing is kept; None is in its place.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skips = False
        self._lines: deque[bytes | None] = deque()

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._skips:
                self._skips = False
            elif line.strip(b"\r\0 "):
                self._lines.append(line.removesuffix(b"\r") if len(line) < _LONGEST else None)
        if self._skips:
            rest = b""
        elif len(rest) > _LONGEST:
            self._lines.append(None)
            self._skips, rest = True, b""
        self._rest = rest

    def finish(self) -> None:
        """Take what is left as the last line."""
        self.feed(b"\n")

    def __len__(self) -> int:
        """Return the number of lines that are complete."""
        return len(self._lines)

    def take(self) -> bytes | None:
        """Return the next line; None if it was too long. Raises `IndexError` if there is none."""
        return self._lines.popleft()


def parse_message(line: bytes | None) -> IrcMessage:
    """Return the message that a client has sent in a line without its end. Raises `IrcMessageError`."""
    if line is None:
        raise IrcMessageError("too long", "Input line was too long")
    tags, rest = b"", line
    if line[:1] == b"@":
        tags, _, rest = line[1:].partition(b" ")
        rest = rest.lstrip(b" ")
    if len(tags) > LONGEST_TAGS or len(rest) > LONGEST_LINE - 2:
        raise IrcMessageError("too long", "Input line was too long")
    try:
        text, written = rest.decode(), tags.decode()
    except UnicodeDecodeError:
        raise IrcMessageError("encoding", "Message rejected, as it is not valid UTF-8") from None
    source = ""
    if text[:1] == ":":
        source, _, text = text[1:].partition(" ")
    # Some clients end a line at a CR alone: none may get to others.
    head, colon, last = text.replace("\0", "").replace("\r", "").partition(" :")
    command, *params = [word for word in head.split(" ") if word] or [""]
    if not _COMMAND.fullmatch(command):
        raise IrcMessageError("form", "this is no IRC message")
    if colon:
        params.append(last)
    return IrcMessage(command.upper(), tuple(params[:15]), _parse_tags(written) if written else _NO_TAGS, source)


def _parse_tags(text: str) -> dict[str, str]:
    tags = {}
    for tag in text.split(";"):
        key, _, value = tag.partition("=")
        if _TAG.fullmatch(key):
            tags[key] = _ESCAPED.sub(lambda found: _UNESCAPES.get(found[1], found[1]), value)
    return tags


def escape_tag(value: str) -> str:
    """Return the value of a tag as it is written."""
    return "".join(_ESCAPES.get(each, each) for each in value)


def join_tags(tags: Mapping[str, str]) -> str:
    """Return tags as they are written, without the @."""
    return ";".join(f"{key}={escape_tag(value)}" if value else key for key, value in tags.items())


def format_message(command: str, *params: str, source: str = "", tags: str = "") -> str:
    """Return a line without its end. Only the last parameter may be empty, have spaces, or begin with a colon."""
    head = f"@{tags} " if tags else ""
    if source:
        head += f":{source} "
    if not params:
        return head + command
    *middle, last = params
    colon = ":" if not last or " " in last or last[0] == ":" else ""
    return " ".join((head + command, *middle, colon + last))


def with_tag(lines: Iterable[bytes], tag: str) -> list[bytes]:
    """Return lines with one more tag."""
    added = tag.encode()
    return [b"@" + added + (b";" + line[1:] if line[:1] == b"@" else b" " + line) for line in lines]
