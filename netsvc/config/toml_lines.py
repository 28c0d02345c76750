"""Finds the line of each key of a TOML document, which `tomllib` does not report, and bounds the work of reading it."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

#: The names of the tables around a key, and its own; an item of an array has its index, from 0.
Key = tuple[str | int, ...]

#: Parts of a dotted key, and levels of nested arrays and tables. `tomllib` needs time in proportion to their square,
#: and a frame of the stack for each level.
DEEPEST = 16
#: Words, texts and marks. `tomllib` and `find_lines` together need up to 20 µs for each.
MOST_TOKENS = 20_000

_TOKEN = re.compile(
    r"""
    (?P<blank>(?:[ \t\n\r]++|\#[^\n]*+)++)
  | (?P<text>
        \"{3}(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}     # up to two quotation marks may stand before the end
      | '{3}(?:[^']++|'{1,2}(?!'))*+'{3,5}
      | "(?!"")(?:[^"\\\n]++|\\.)*+"
      | '(?!'')[^'\n]*+'
    )
  | (?P<mark>[][{}=.,])
  | (?P<bare>[^][{}=.,"'\#\s]++)
  | (?P<open>["'])                                    # a text without an end: no TOML
    """,
    re.X | re.S,
)


class TooComplexError(ValueError):
    """The document exceeds a limit; `line` is where, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def check_complexity(text: str) -> None:
    """Raise `TooComplexError` if `tomllib` could need long for a text. It takes time in proportion to the length."""
    levels = parts = tokens = 0
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup, match[0]
        if kind == "open":
            # tomllib reads no further.
            return
        if kind == "blank":
            if "\n" in piece:
                parts = 0
            continue
        tokens += 1
        if kind != "mark":
            continue
        if piece == ".":
            parts += 1
        else:
            parts = 0
            levels += (piece in "[{") - (piece in "]}" and levels > 0)
        reason = ""
        if parts >= DEEPEST:
            reason = f"a key of more than {DEEPEST} parts; no key needs as many"
        elif levels > DEEPEST:
            reason = f"nested more than {DEEPEST} levels deep; no value needs more than three"
        elif tokens > MOST_TOKENS:
            reason = f"more than {MOST_TOKENS} words, texts and marks; put long lists of networks in files of their own"
        if reason:
            raise TooComplexError(text.count("\n", 0, match.start()) + 1, reason)


def find_lines(text: str) -> dict[Key, int]:
    """Return the line of each key, from 1. The result is meaningless for a text that `tomllib` does not accept.

    It needs time in proportion to the square of the nesting, which `check_complexity` bounds.
    """
    return _Scan(text.replace("\r\n", "\n")).lines()


class _Scan:
    """Reads the tokens once; `_kind`, `_text` and `_start` describe the current one; they are "" after the last."""

    def __init__(self, text: str) -> None:
        self._ends = [match.start() for match in re.finditer("\n", text)]
        # The end of a line ends a value outside of brackets; other blanks mean nothing.
        self._tokens = (match for match in _TOKEN.finditer(text) if match.lastgroup != "blank" or "\n" in match[0])
        self._lines: dict[Key, int] = {}
        #: How many tables each array of tables has so far.
        self._counts: dict[Key, int] = {}
        self._advance()

    def _advance(self) -> None:
        match = next(self._tokens, None)
        self._kind, self._text, self._start = (match.lastgroup, match[0], match.start()) if match else ("", "", 0)

    def lines(self) -> dict[Key, int]:
        table: Key = ()
        while self._skip_blank():
            if self._text == "[":
                table = self._header()
            else:
                self._value(self._key(table))
        return self._lines

    def _header(self) -> Key:
        """Read `[a.b]` or `[[a.b]]`, and return the table that the next keys belong to."""
        self._advance()
        several = self._text == "["
        if several:
            self._advance()
        line = self._line()
        *around, name = self._key_parts()
        self._advance()
        if several:
            self._advance()
        path = (*self._descend((), around, line), name)
        self._lines.setdefault(path, line)
        if several:
            self._counts[path] = self._counts.get(path, 0) + 1
        return self._last(path, line)

    def _last(self, path: Key, line: int) -> Key:
        """Return the table that a path means: the last one of an array of tables."""
        if path in self._counts:
            path = (*path, self._counts[path] - 1)
            self._lines.setdefault(path, line)
        return path

    def _descend(self, path: Key, parts: list[str], line: int) -> Key:
        for part in parts:
            path = (*path, part)
            self._lines.setdefault(path, line)
            path = self._last(path, line)
        return path

    def _key(self, table: Key) -> Key:
        """Read `a.b =`."""
        line = self._line()
        path = self._descend(table, self._key_parts(), line)
        self._advance()
        return path

    def _key_parts(self) -> list[str]:
        """Read up to the end of a key, `=` or `]`."""
        parts = []
        while self._text not in ("=", "]", ""):
            if self._kind == "text":
                # tomllib reads the escapes.
                parts.append(tomllib.loads(f"key = {self._text}")["key"])
            elif self._kind == "bare":
                parts.append(self._text)
            self._advance()
        return parts

    def _value(self, path: Key) -> None:
        """Read a value, and the keys in it."""
        opening = self._text if self._kind == "mark" else ""
        self._advance()
        if opening not in ("[", "{"):
            while self._kind not in ("blank", "") and not (self._kind == "mark" and self._text in ",]}"):
                self._advance()
            return
        index = 0
        while self._skip_blank() and self._text not in ("]", "}"):
            if self._text == ",":
                self._advance()
            elif opening == "{":
                self._value(self._key(path))
            else:
                item = (*path, index)
                self._lines[item] = self._line()
                self._value(item)
                index += 1
        self._advance()

    def _skip_blank(self) -> bool:
        while self._kind == "blank":
            self._advance()
        return self._kind != ""

    def _line(self) -> int:
        return bisect_left(self._ends, self._start) + 1
