"""What a worker tells the process that started it: lines of JSON, and the text that it prints.

A report is a list whose first element says what it is: `["ready"]`, `["failed", line, …]`,
`["log", level, namespace, system, text]`, with the traceback behind it if there is one, `["access", lines]`,
`["answer", number, JSON]` of `netsvc.workers.inquiry`, or `["farewell", JSON]` with a status that is the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel, eventAsText
from twisted.python.failure import Failure

from netsvc.text import plain

__all__ = [
    "LONGEST_LINE",
    "LONGEST_REPORT",
    "LONGEST_TEXT",
    "RELAYED",
    "RELAYED_ACCESS",
    "LineCutter",
    "access_report",
    "log_report",
    "read_report",
    "relay",
    "relay_access",
    "relay_line",
    "report",
    "said",
]

#: Characters of one event's text, its traceback included.
LONGEST_TEXT = 16384
#: Bytes of a report: of a status with as many connections as one may list, whatever their peers are called.
LONGEST_REPORT = 2 << 20
#: Bytes of a line that a worker prints.
LONGEST_LINE = 8192

#: The formats of what a worker has logged, without a traceback and with one.
RELAYED = ("[worker {worker}] {text}", "[worker {worker}] {text}\n{traceback}")
#: The field with the lines of access records that a worker has made; such an event says nothing else.
RELAYED_ACCESS = "netsvc_access"

_SAFE_LINES = re.compile(r"[ -~\n]*")

_access_log = Logger(namespace="netsvc.access")


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
    text, failure = said(event)
    if not text and not failure:
        return b""
    text = _cut(text, LONGEST_TEXT)
    failures = [_cut(failure, max(0, LONGEST_TEXT - len(text)))] if failure else []
    level = event.get("log_level", LogLevel.info)
    system = str(event.get("log_system", ""))
    return report("log", level.name, str(event.get("log_namespace", "-")), system, text, *failures)


def said(event: LogEvent) -> tuple[str, str]:
    """Return what an event says, and the traceback of what has failed; each may be empty."""
    text, failure = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False), ""
    # The second is that of the old log (`twisted.python.log.err`).
    failed = event.get("log_failure") or event.get("failure")
    if isinstance(failed, Failure):
        alone = {"log_format": "-", "log_failure": failed}
        failure = eventAsText(alone, includeTimestamp=False, includeSystem=False)[2:].rstrip("\n")
        # The old log has it in the text as well.
        text = text.replace(failure, "").rstrip("\n")
    return text, failure


def _cut(text: str, limit: int) -> str:
    return f"{text[:limit]}… ({len(text) - limit} more)" if len(text) > limit else text


def access_report(lines: str) -> bytes:
    """Write the report of access records: lines, each with its end, of `LONGEST_TEXT` characters in all at most."""
    return report("access", lines)


def read_report(line: bytes) -> tuple[str, ...]:
    """Read a report. What is none is `("",)`: the process died as it wrote, or printed into its pipe."""
    try:
        words = json.loads(line)
    except ValueError:
        return ("",)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return ("",)
    if words[0] == "log" and not (5 <= len(words) <= 6 and words[1] in _LEVELS):
        return ("",)
    if len(words) != {"access": 2, "answer": 3, "farewell": 2}.get(words[0], len(words)):
        return ("",)
    return tuple(words)


_LEVELS = frozenset(level.name for level in LogLevel.iterconstants())


def relay(worker: int, level: str, namespace: str, system: str, *said: str) -> None:
    """Log an event of a worker's as our own, with its number: what it has said, and the traceback if there is one."""
    text, failure = (*said, "")[:2]
    fields: dict[str, Any] = {"log_system": system} if system else {}
    Logger(namespace=namespace).emit(
        LogLevel.lookupByName(level), RELAYED[bool(failure)], worker=worker, text=text, traceback=failure, **fields
    )


def relay_access(lines: str) -> None:
    """Pass on lines of access records, as they are, for `netsvc.log.opening`; what could harm a terminal is escaped."""
    if _SAFE_LINES.fullmatch(lines) is None:
        lines = "".join(f"{plain(line)}\n" for line in lines.split("\n") if line)
    _access_log.info(None, **{RELAYED_ACCESS: lines if lines.endswith("\n") else f"{lines}\n"})


def relay_line(worker: int, line: bytes, *, error: bool) -> None:
    """Log a line that a worker printed."""
    text = plain(line.decode("utf-8", "backslashreplace"))
    relay(worker, "error" if error else "info", "stderr" if error else "stdout", "", text)
