"""Reports what a worker logs to its parent, which logs it as its own events.

The reports are `["log", level, namespace, system, text]`, followed by the traceback if there is one, and
`["access", lines]` and `["requests", lines]`.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel

from netsvc.base.text import plain
from netsvc.log.formats import RELAYED, RELAYED_ACCESS, RELAYED_REQUESTS, event_text
from netsvc.workers.channel import report

#: Characters of one event, including its traceback.
LONGEST_TEXT = 16384

_SAFE_LINES = re.compile(r"[ -~\n]*")

_access_log = Logger(namespace="netsvc.access")


def log_report(event: LogEvent) -> bytes:
    """Return the report of an event; empty for an event without text, which logs leave out."""
    text, failure = event_text(event)
    if not text and not failure:
        return b""
    text = _cut(text, LONGEST_TEXT)
    failures = [_cut(failure, max(0, LONGEST_TEXT - len(text)))] if failure else []
    level = event.get("log_level", LogLevel.info)
    system = str(event.get("log_system", ""))
    return report("log", level.name, str(event.get("log_namespace", "-")), system, text, *failures)


def _cut(text: str, limit: int) -> str:
    return f"{text[:limit]}… ({len(text) - limit} more)" if len(text) > limit else text


def access_report(lines: str) -> bytes:
    """Return the report of access records: lines with line ends, of at most `LONGEST_TEXT` characters in all."""
    return report("access", lines)


def requests_report(lines: str) -> bytes:
    """Return the report of the lines of requests, as `access_report`."""
    return report("requests", lines)


def relay(worker: int, level: str, namespace: str, system: str, *texts: str) -> None:
    """Log an event of a worker, with its number. `texts` are its text and its traceback, if there is one."""
    text, failure = (*texts, "")[:2]
    fields: dict[str, Any] = {"log_system": system} if system else {}
    Logger(namespace=namespace).emit(
        LogLevel.lookupByName(level), RELAYED[bool(failure)], worker=worker, text=text, traceback=failure, **fields
    )


def relay_access(lines: str) -> None:
    """Pass access records unchanged to `netsvc.log.opening`; characters that could harm a terminal are escaped."""
    _access_log.info(None, **{RELAYED_ACCESS: _safe(lines)})


def relay_requests(lines: str) -> None:
    """Pass lines of requests to `netsvc.log.opening`, as `relay_access`."""
    _access_log.info(None, **{RELAYED_REQUESTS: _safe(lines)})


def _safe(lines: str) -> str:
    if _SAFE_LINES.fullmatch(lines) is None:
        lines = "".join(f"{plain(line)}\n" for line in lines.split("\n") if line)
    return lines if lines.endswith("\n") else f"{lines}\n"


def relay_line(worker: int, line: bytes, *, error: bool) -> None:
    """Log a line printed by a worker."""
    text = plain(line.decode("utf-8", "backslashreplace"))
    relay(worker, "error" if error else "info", "stderr" if error else "stdout", "", text)
