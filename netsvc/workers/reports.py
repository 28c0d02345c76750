"""What a worker tells the process that started it: lines of JSON, and the text that it prints.

A report is a list whose first element says what it is: `["ready"]`, `["failed", line, …]`, or
`["log", level, namespace, system, text]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel, eventAsText

from netsvc.text import plain

__all__ = ["LONGEST_LINE", "LONGEST_REPORT", "LineCutter", "log_report", "read_report", "relay", "relay_line", "report"]

#: Characters of one event's text, its traceback included.
LONGEST_TEXT = 16384
#: Bytes of a report. JSON writes a character in 12 bytes at most.
LONGEST_REPORT = 12 * LONGEST_TEXT + 4096
#: Bytes of a line that a worker prints.
LONGEST_LINE = 8192


class LineCutter:
    """Cuts what comes through a pipe into lines of at most `limit` bytes; of longer ones the rest is dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes in, and return the lines that they complete, without their ends."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._add(part)
            yield self._take()
        self._add(rest)

    def end(self) -> Iterator[bytes]:
        """Return the line that was never ended, if there is one."""
        if self._line:
            yield self._take()

    def _add(self, part: bytes) -> None:
        room = self._limit - len(self._line)
        self._line += part[:room]
        self._dropped += max(0, len(part) - room)

    def _take(self) -> bytes:
        line = bytes(self._line) + (b"... (%d more)" % self._dropped if self._dropped else b"")
        self._line.clear()
        self._dropped = 0
        return line


def report(*words: str) -> bytes:
    """Write a report."""
    return json.dumps(words).encode("ascii") + b"\n"


def log_report(event: LogEvent) -> bytes:
    """Write the report of an event; nothing for one that has no text, which logs leave out."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    if not text:
        return b""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT} more)"
    level = event.get("log_level", LogLevel.info)
    return report("log", level.name, str(event.get("log_namespace", "-")), str(event.get("log_system", "")), text)


def read_report(line: bytes) -> tuple[str, ...]:
    """Read a report. What is none is `("",)`: the process died as it wrote, or printed into its pipe."""
    try:
        words = json.loads(line)
    except ValueError:
        return ("",)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return ("",)
    if words[0] == "log" and (len(words) != 5 or words[1] not in (level.name for level in LogLevel.iterconstants())):
        return ("",)
    return tuple(words)


def relay(worker: int, level: str, namespace: str, system: str, text: str) -> None:
    """Log an event of a worker's as our own, with its number."""
    fields: dict[str, Any] = {"log_system": system} if system else {}
    Logger(namespace=namespace).emit(
        LogLevel.lookupByName(level), "[worker {worker}] {text}", worker=worker, text=text, **fields
    )


def relay_line(worker: int, line: bytes, *, error: bool) -> None:
    """Log a line that a worker printed."""
    text = plain(line.decode("utf-8", "backslashreplace"))
    relay(worker, "error" if error else "info", "stderr" if error else "stdout", "", text)
