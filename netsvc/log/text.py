"""The log as text: the lines of twistd, in a fraction of the time, and access records that suit people and awk.

An access line for each of thousands of requests a second costs more than the requests, as Twisted writes it. Here the
time is put into words once a second, and a format that has nothing but names of fields is filled in by Python itself.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import floor

from twisted.logger import LogEvent, formatEventAsClassicLogText, formatTime

from netsvc.log.fields import ACCESS_SOURCE
from netsvc.records import Record
from netsvc.text import escape, host_port

__all__ = ["MOST_KNOWN", "TextLines", "access_text"]

#: Formats that Python fills in as Twisted does: no calls, attributes, conversions, or doubled braces.
_SIMPLE = re.compile(r"(?:[^{}]++|\{[a-z]\w*+\})*+", re.ASCII)
#: Listeners whose words are remembered; a plan that is reloaded for ever has ever new ones.
MOST_KNOWN = 1024


class TextLines:
    """Writes an event as `twisted.logger.textFileLogObserver` does, to the byte.

    An access record is a line like `TIME [netsvc.access#info] echo tcp 192.0.2.7:5123 listener=0.0.0.0:9001
    bytes_in=6 bytes_out=6 seconds=0.012 reason=peer`. Its first ten words are always there, and there is no space
    within a word. It may be called by several threads at once.
    """

    def __init__(self, worker: int = 0) -> None:
        #: A second and its words: one object, for threads.
        self._now: tuple[float, str] = (0.0, formatTime(0.0))
        self._end = f" worker={worker}\n" if worker else "\n"

    def event(self, event: LogEvent) -> str | None:
        """Make the line of an event, if there is anything to say."""
        template = event.get("log_format")
        if type(template) is str and _is_simple(template):
            system, level = event.get("log_system"), event.get("log_level")
            if system is None and level is not None:
                system = f"{event.get('log_namespace', '-')}#{level.name}"
            if type(system) is str and "log_failure" not in event and "log_flattened" not in event:
                try:
                    text = template.format_map(event)
                except Exception:  # noqa: BLE001  (a field is missing, or cannot be shown: Twisted says so, below)
                    text = None
                if text is not None:
                    line = f"{self._time(event.get('log_time'))} [{system}] {text}"
                    return line.replace("\n", "\n\t") + "\n" if text else None
        return formatEventAsClassicLogText(event, self._time)

    def record(self, record: Record) -> str:
        """Make the line of an access record."""
        return f"{self._time(record[0])} [{ACCESS_SOURCE}#info] {access_text(record)}{self._end}"

    def _time(self, when: float | None) -> str:
        if when is None:
            return formatTime(None)
        second, words = self._now
        if not second <= when < second + 1:
            second = floor(when)
            words = formatTime(second)
            self._now = (second, words)
        return words


def access_text(record: Record) -> str:
    """Put an access record into words, without its time."""
    _, service, protocol, _, listener, peer, port, came, went, taken, given, seconds, reason, limit = record
    if port is None:
        # Of a UNIX socket: `uid 7`, or a path.
        place = _word(peer.replace("uid ", "uid:", 1) if peer.startswith("uid ") else peer)
    else:
        # Twisted takes the address in a PROXY header for what the header says.
        place = peer if peer.isascii() and peer.isprintable() and " " not in peer else _word(peer)
        place = host_port(place, port)
    text = (
        f"{_words(service, protocol)} {place} {_listener(listener)} bytes_in={came} bytes_out={went}"
        f" seconds={seconds:.3f} reason={reason}"
    )
    if limit is not None:
        text = f"{text} limit={limit}"
    return text if taken is None else f"{text} datagrams_in={taken} datagrams_out={given}"


@lru_cache(maxsize=MOST_KNOWN)
def _words(service: str, protocol: str) -> str:
    return f"{_word(service)} {_word(protocol)}"


@lru_cache(maxsize=MOST_KNOWN)
def _listener(listener: str) -> str:
    return f"listener={_word(listener)}"


def _word(text: str) -> str:
    """Escape a text so that it is one word, for awk as well; nothing at all is a `-`."""
    escaped = escape(text)
    return "".join(f"\\x{ord(each):02x}" if each.isspace() else each for each in escaped) or "-"


@lru_cache(maxsize=256)
def _is_simple(template: str) -> bool:
    return _SIMPLE.fullmatch(template) is not None
