"""Requests of HTTP in the Common Log Format, as analysers such as goaccess read it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from math import floor
from typing import cast

from netsvc.log.formats import LogLines
from netsvc.plan.record import AnyRecord, RequestRecord

#: In English, whatever the locale is.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: What would end a field or a line, or is no printable ASCII; nginx escapes the same.
_UNSAFE = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')
#: In a field without quotes, blanks end it as well.
_BLANKS = re.compile(r"\s")
#: Bytes of a field.
LONGEST = 8192


class CommonLines:
    """Requests as `HOST - USER [TIME] "REQUEST" STATUS BYTES`; `combined` adds `"REFERER" "USER AGENT"`.

    What is missing is `-`. Bytes are those of the content. Records of connections are empty. Thread-safe.
    """

    def __init__(self, *, combined: bool) -> None:
        self._combined = combined
        #: A second and its text; replaced as one object, for threads.
        self._now = (0, _clock(0))

    def record(self, record: AnyRecord) -> str:
        """Return the line of a request, with its end."""
        if not isinstance(record, RequestRecord):
            return ""
        second, clock = self._now
        if floor(record.time) != second:
            second = floor(record.time)
            clock = _clock(second)
            self._now = (second, clock)
        line = (
            f"{_word(record.host)} - {_word(record.user)} [{clock}] {_quoted(record.line)} {record.status}"
            f" {record.size or '-'}"
        )
        return f"{line} {_quoted(record.referer)} {_quoted(record.agent)}\n" if self._combined else f"{line}\n"


def record_line(lines: LogLines, form: str) -> Callable[[AnyRecord], str]:
    """Return what makes the line of a record: of a request if there is a form for that, else of a connection."""
    if form:
        return CommonLines(combined=form == "combined").record
    # There are no other records then.
    return cast("Callable[[AnyRecord], str]", lines.record)


def _clock(second: int) -> str:
    local = time.localtime(second)
    month = _MONTHS[local.tm_mon - 1]
    return time.strftime(f"%d/{month}/%Y:%H:%M:%S %z", local)


def _escaped(text: bytes) -> str:
    return _UNSAFE.sub(lambda each: b"\\x%02X" % each[0][0], text[:LONGEST]).decode("ascii")


def _quoted(text: bytes) -> str:
    return f'"{_escaped(text) or "-"}"'


def _word(text: str) -> str:
    escaped = _escaped(text.encode("utf-8", "surrogateescape"))
    return _BLANKS.sub("\\\\x20", escaped) or "-"
