"""What a chat client remembers of a conversation, to continue it over another connection. Does no input or output."""

from __future__ import annotations

import re
from collections import deque

__all__ = ["Recall"]

#: Lines that are remembered, and commands.
_LINES = 1000
_COMMANDS = 50

_NAMED = re.compile(r"\* (?:welcome to the chat; you are|you are now) (\S+)$")
_JOINED = re.compile(r"\* (?:you joined|you now talk in) ([^\s;]+)")
_LEFT = re.compile(r"\* you left ([^\s;]+);(?: you now talk in (\S+))?")
#: A line of history: when it was, and the line as it was then.
_PAST = re.compile(r"\([^()]*\) (\[.*)$")
_STOPPING = "* the server is stopping, goodbye"
#: Commands whose effect ends with the connection, besides those that the server confirms in a line of its own.
_SETTINGS = ("login", "time", "quiet", "ignore", "unignore")


class Recall:
    """Knows the user's name, rooms and settings, and which lines were shown.

    `first` are the lines that were sent at the beginning. The name and the rooms are read from the server's lines,
    which begin with an asterisk; those of members do not.
    """

    def __init__(self, first: list[str]) -> None:
        self._first = first
        self._settings: dict[str, None] = {}
        self._name: str | None = None
        #: The rooms, the current one last; None: it is not known whether the server has joined one.
        self._rooms: dict[str, None] = {}
        self._entered: str | None = None
        self._seen: deque[str] = deque(maxlen=_LINES)
        #: Whether lines of history are lines that may have been shown.
        self._again = False
        self._last = ""

    @property
    def dismissed(self) -> bool:
        """Whether the server has ended the conversation on purpose: its last line said goodbye, and not for all."""
        return self._last.endswith("goodbye") and self._last != _STOPPING

    def sent(self, line: str) -> None:
        """Remember a line of the user's."""
        word, _, rest = line.partition(" ")
        if line.startswith("/") and not line.startswith("//"):
            if word[1:].lower() in _SETTINGS:
                self._settings.pop(line, None)
                self._settings[line] = None
                if len(self._settings) > _COMMANDS:
                    del self._settings[next(iter(self._settings))]
            elif word.lower() == "/me":
                self._say(f"* {self._name} {rest.strip()}")
        elif line.strip():
            self._say(f"{self._name}: {line[1:] if line.startswith('//') else line}")

    def _say(self, text: str) -> None:
        if self._rooms:
            self._seen.append(f"[{next(reversed(self._rooms))}] {text}")

    def opening(self) -> list[str]:
        """Return the lines to send on a new connection: those at first; later those that restore what was."""
        if self._entered is None:
            return self._first
        self._again = True
        lines = list(self._settings)
        if self._name is not None:
            lines.append(f"/nick {self._name}")
        lines += [f"/join {room}" for room in self._rooms if room != self._entered]
        if self._entered not in self._rooms:
            lines.append(f"/leave {self._entered}")
        elif next(reversed(self._rooms)) == self._entered and len(self._rooms) > 1:
            lines.append(f"/join {self._entered}")
        self._name, self._rooms, self._entered = None, {}, None
        return lines

    def received(self, text: str) -> str:
        """Remember lines of the server's; return those that have not been shown before."""
        shown: list[str] = []
        past: list[str] = []
        for line in text.splitlines(keepends=True):
            if _PAST.match(line.rstrip("\n")):
                past.append(line)
                continue
            shown += self._unseen(past)
            past = []
            self._note(line.rstrip("\n"))
            shown.append(line)
        return "".join(shown + self._unseen(past))

    def _unseen(self, past: list[str]) -> list[str]:
        """Return the lines of history after those that were shown last, and remember them."""
        if not past:
            return []
        lines = [_PAST.match(line.rstrip("\n"))[1] for line in past]  # type: ignore[index]
        known = 0
        if self._again:
            room = lines[0].partition(" ")[0]
            seen = [line for line in self._seen if line.partition(" ")[0] == room]
            known = max(
                (
                    count
                    for count in range(1, len(lines) + 1)
                    if (both := min(count, len(seen))) and lines[count - both : count] == seen[-both:]
                ),
                default=0,
            )
        self._seen += lines[known:]
        return past[known:]

    def _note(self, line: str) -> None:
        if line:
            self._last = line
        if line.startswith("["):
            self._seen.append(line)
        elif found := _NAMED.match(line):
            self._name = found[1]
        elif found := _JOINED.match(line):
            self._entered = self._entered or found[1]
            self._rooms.pop(found[1], None)
            self._rooms[found[1]] = None
        elif found := _LEFT.match(line):
            self._rooms.pop(found[1], None)
            if found[2]:
                self._rooms.pop(found[2], None)
                self._rooms[found[2]] = None
