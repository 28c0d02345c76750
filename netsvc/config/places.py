"""Finds the line on which each key of a TOML document stands; `tomllib` tells what it reads, and not where."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

__all__ = ["Path", "Places", "find_places"]

#: Keys and, for what stands in an array, its place there from 0.
Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t\n\r]++|\#[^\n]*+)
  | (?P<text>
        \"{3}(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}     # up to two quotation marks may stand before the end
      | '{3}(?:[^']++|'{1,2}(?!'))*+'{3,5}
      | "(?:[^"\\\n]++|\\.)*+"
      | '[^'\n]*+'
    )
  | (?P<mark>[][{}=.,])
  | (?P<bare>[^][{}=.,"'\#\s]++)
    """,
    re.X | re.S,
)


class Places:
    """The lines of a document's keys, from 1."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self.lines = lines

    def line(self, path: Path) -> int:
        """Return the line of a key, or of the nearest key around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def find_places(text: str) -> Places:
    """Find where the keys stand of a text that `tomllib` has read without an error; of others it tells nonsense.

    The work grows with the length of the text, and with nothing else.
    """
    text = text.replace("\r\n", "\n")
    return Places(_Scan(text).lines())


class _Scan:
    """Goes once over the tokens; `_kind`, `_word` and `_start` are of the present one, and "" after the last."""

    def __init__(self, text: str) -> None:
        self._ends = [match.start() for match in re.finditer("\n", text)]
        # The end of a line ends a value that is not within brackets; other blanks mean nothing.
        self._tokens = (match for match in _TOKEN.finditer(text) if match.lastgroup != "blank" or "\n" in match[0])
        self._lines: dict[Path, int] = {}
        #: How many tables each array of tables has so far.
        self._counts: dict[Path, int] = {}
        self._advance()

    def _advance(self) -> None:
        token = next(self._tokens, None)
        self._kind, self._word, self._start = (token.lastgroup, token[0], token.start()) if token else ("", "", 0)

    def lines(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self._word == "[":
                table = self._header()
            else:
                self._value(self._key(table))
        return self._lines

    def _header(self) -> Path:
        """Read `[a.b]` or `[[a.b]]`: the table that the keys after it belong to."""
        self._advance()
        several = self._word == "["
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

    def _last(self, path: Path, line: int) -> Path:
        """Return the table that a path means: of an array of tables, the last."""
        if path in self._counts:
            path = (*path, self._counts[path] - 1)
            self._lines.setdefault(path, line)
        return path

    def _descend(self, path: Path, parts: list[str], line: int) -> Path:
        for part in parts:
            path = (*path, part)
            self._lines.setdefault(path, line)
            path = self._last(path, line)
        return path

    def _key(self, table: Path) -> Path:
        """Read `a.b =`."""
        line = self._line()
        path = self._descend(table, self._key_parts(), line)
        self._advance()
        return path

    def _key_parts(self) -> list[str]:
        """Read up to what ends a key: `=` or `]`."""
        parts = []
        while self._word not in ("=", "]", ""):
            if self._kind == "text":
                # Escapes are tomllib's to read.
                parts.append(tomllib.loads(f"key = {self._word}")["key"])
            elif self._kind == "bare":
                parts.append(self._word)
            self._advance()
        return parts

    def _value(self, path: Path) -> None:
        """Read a value, and what is in it."""
        # The path of each open array or inline table, and the place of the next item; None in a table.
        around: list[tuple[Path, int | None]] = []
        while True:
            if self._word in ("[", "{"):
                around.append((path, 0 if self._word == "[" else None))
                self._advance()
            else:
                self._pass_scalar(",]}" if around else "")
            path = ()
            while around and not path:
                self._skip_blank()
                container, place = around[-1]
                if self._word in ("]", "}"):
                    around.pop()
                    self._advance()
                elif self._word == ",":
                    self._advance()
                elif place is None:
                    path = self._key(container)
                else:
                    path = (*container, place)
                    around[-1] = (container, place + 1)
                    self._lines[path] = self._line()
            if not around:
                return

    def _pass_scalar(self, ends: str) -> None:
        while self._kind not in ("blank", "") and not (self._kind == "mark" and self._word in ends):
            self._advance()

    def _skip_blank(self) -> bool:
        while self._kind == "blank":
            self._advance()
        return self._kind != ""

    def _line(self) -> int:
        return bisect_left(self._ends, self._start) + 1
