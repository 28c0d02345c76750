"""The log as JSON: one object a line, in ASCII, with the fields of `netsvc.log.fields`."""

from __future__ import annotations

import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from math import floor
from typing import Any

from twisted.logger import LogEvent

from netsvc.log.text import MOST_KNOWN
from netsvc.records import Record
from netsvc.workers.reports import RELAYED, said

__all__ = ["JsonLines"]

#: Characters of a name in an access record.
_LONGEST_NAME = 200


class JsonLines:
    """Writes each event and each access record as one JSON object (RFC 8259) in one line of ASCII.

    No text can end the line, whatever it has in it. It may be called by several threads at once. `now` tells the time
    of an event that has none.
    """

    def __init__(self, worker: int = 0, now: Callable[[], float] = time.time) -> None:
        self._worker = worker
        self._end = f',"worker":{worker}}}\n' if worker else "}\n"
        self._get_now = now
        #: A second and its words: one object, for threads.
        self._now: tuple[int, str] = (0, _second(0))
        #: What all records of a listener have, and of a reason and a limit.
        self._heads: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._tails: dict[tuple[Any, ...], str] = {}

    def event(self, event: LogEvent) -> str | None:
        """Make the line of an event, if there is anything to say."""
        template = event.get("log_format")
        if type(template) is str and template in RELAYED:
            text, failure, worker = event.get("text", ""), event.get("traceback", ""), event.get("worker", 0)
        else:
            (text, failure), worker = said(event), self._worker
        if not text and not failure:
            return None
        source = event.get("log_namespace") or "-"
        if source == "log_legacy":
            source = event.get("log_system", "-")
        fields = {
            "level": getattr(event.get("log_level"), "name", "info"),
            "source": _shown(source),
            "text": text,
            **({"failure": failure} if failure else {}),
        }
        body = ",".join(f'"{name}":{_quote(value)}' for name, value in fields.items())
        end = f',"worker":{worker}}}\n' if worker else "}\n"
        return f'{{"time":"{self._time(event.get("log_time"))}","kind":"log",{body}{end}'

    def record(self, record: Record) -> str:
        """Make the line of an access record."""
        when, _, _, _, _, peer, port, came, went, taken, given, seconds, reason, limit = record
        known, ending = record[1:5], (reason, limit)
        head, listener = self._heads.get(known) or self._head(known)
        tail = self._tails.get(ending) or self._tail(ending)
        place = _name(peer) if port is None else f'{_name(peer)},"port":{port}'
        datagrams = "" if taken is None else f',"datagrams_in":{taken},"datagrams_out":{given}'
        return (
            f'{{"time":"{self._time(when)}{head}{place}{listener}{came},"bytes_out":{went}'
            f',"seconds":{seconds:.3f}{tail}{datagrams}{self._end}'
        )

    def _head(self, known: tuple[Any, ...]) -> tuple[str, str]:
        service, protocol, kind, listener = map(_name, known)
        if len(self._heads) >= MOST_KNOWN:
            self._heads.clear()
        self._heads[known] = head = (
            f'","kind":"access","service":{service},"protocol":{protocol},"transport":{kind},"peer":',
            f',"listener":{listener},"bytes_in":',
        )
        return head

    def _tail(self, ending: tuple[Any, ...]) -> str:
        reason, limit = ending
        if len(self._tails) >= MOST_KNOWN:
            self._tails.clear()
        tail = f',"reason":{_name(reason)}' + ("" if limit is None else f',"limit":{_name(limit)}')
        self._tails[ending] = tail
        return tail

    def _time(self, when: float | None) -> str:
        if when is None:
            when = self._get_now()
        second, words = self._now
        if not second <= when < second + 1:
            try:
                second = floor(when)
                words = _second(second)
            except (ValueError, OverflowError, OSError):
                return self._time(self._get_now())
            self._now = (second, words)
        return f"{words}.{int((when - second) * 1000):03d}Z"


def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _quote(text: str) -> str:
    quoted: str = encode_basestring_ascii(text)
    if "\\ud" in quoted:
        # It may be half of a pair, which is no text (RFC 8259, section 8.2), and which many readers refuse.
        quoted = encode_basestring_ascii(text.encode("utf-8", "backslashreplace").decode())
    return quoted


def _name(text: str) -> str:
    return _quote(text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}...")


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  (whoever logs may say anything)
        return "-"
