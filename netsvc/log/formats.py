"""The two formats of the log, text and JSON: the lines of events and of access records.

Text is what twistd writes, in a fraction of the time: with thousands of requests a second, Twisted's formatting of an
access line costs more than the request. Here a time is formatted once a second, and a format with nothing but names of
fields is filled in by Python itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from math import floor
from typing import Protocol

from twisted.logger import LogEvent, eventAsText, formatEventAsClassicLogText, formatTime
from twisted.python.failure import Failure

from netsvc.base.requests import GATHERED
from netsvc.base.text import escape, host_port
from netsvc.plan.record import Record

#: The fields of an event as JSON: name to meaning. They are part of the interface.
LOG_FIELDS: Mapping[str, str] = {
    "time": "when it was logged: RFC 3339, UTC, with milliseconds",
    "kind": "`log`",
    "level": "`debug`, `info`, `warn`, `error` or `critical`",
    "source": "what logged it: `netsvc`, `netsvc.chat`, …; `twistd`, `twisted.web`, … for Twisted; "
    "`stdout` and `stderr` for what is printed",
    "text": "the message",
    "failure": "the traceback of what failed, if something did",
    "worker": "the number of the worker that says it, with `--workers`",
}

#: The fields of an access record as JSON. As text it has those from `listener` on, in this order, as `name=value`.
ACCESS_FIELDS: Mapping[str, str] = {
    "time": "when the connection or session ended: RFC 3339, UTC, with milliseconds",
    "kind": "`access`",
    "service": "the service, as in `echo`",
    "protocol": "its protocol, as in `tcp`",
    "transport": "`stream` for a connection, `datagram` for the session of a datagram peer",
    "peer": "the address of the peer; for a UNIX socket, the user at the other end, if known",
    "port": "the port of the peer; not of a UNIX socket",
    "listener": "address of the listener",
    "bytes_in": "bytes that came from the peer, as on the socket: below TLS, and with a PROXY header",
    "bytes_out": "bytes that went to the peer, counted alike; over TCP, those that it has acknowledged",
    "seconds": "how long it lasted",
    "reason": "why it ended",
    "limit": "the limit that ended it, if one did",
    "datagrams_in": "datagrams that came from the peer; not of a connection",
    "datagrams_out": "datagrams that went to the peer; not of a connection",
    "worker": "the number of the worker that served it, with `--workers`",
}

#: The namespace of access records, where they are events.
ACCESS_SOURCE = "netsvc.access"

#: The formats of an event that a worker has logged and its parent passes on, without a traceback and with one.
RELAYED = ("[worker {worker}] {text}", "[worker {worker}] {text}\n{traceback}")
#: The field of an event from a worker that holds lines of access records, and nothing else.
RELAYED_ACCESS = "netsvc_access"
#: The field of an event from a worker that holds lines of requests, as the log has them, and nothing else.
RELAYED_REQUESTS = "netsvc_requests"

#: The field of an event that was printed on stderr: a log on stdout does not repeat it.
PRINTED = "netsvc_printed"

#: Formats that `str.format_map` fills in as Twisted does: no calls, attributes, conversions, or doubled braces.
_SIMPLE = re.compile(r"(?:[^{}]++|\{[a-z]\w*+\})*+", re.ASCII)
#: Listeners whose text is cached: after many reloads there may have been any number.
MOST_KNOWN = 1024
#: Characters of a name in an access record as JSON.
_LONGEST_NAME = 200


@lru_cache(maxsize=MOST_KNOWN)
def source_name(namespace: str) -> str:
    """Return the name of a source in the log: `twistd`, or a package of Twisted, for what Twisted logs."""
    if namespace.startswith(("twisted.scripts.", "twisted.application.")):
        return "twistd"
    return ".".join(namespace.split(".")[:2]) if namespace.startswith("twisted.") else namespace


class LogLines(Protocol):
    """A format of the log."""

    def event(self, event: LogEvent) -> str | None:
        """Return the line or lines of an event, with their ends; None or "" for an event without text."""

    def record(self, record: Record) -> str:
        """Return the one line of an access record, with its end, whatever the peer has sent."""


def event_text(event: LogEvent) -> tuple[str, str]:
    """Return the text of an event, and the traceback of its failure; each may be empty."""
    text, failure = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False), ""
    # `failure` is the key of `twisted.python.log.err`.
    failed = event.get("log_failure") or event.get("failure")
    if isinstance(failed, Failure):
        alone = {"log_format": "-", "log_failure": failed}
        failure = eventAsText(alone, includeTimestamp=False, includeSystem=False)[2:].rstrip("\n")
        # An event of `twisted.python.log` has it in the text as well.
        text = text.replace(failure, "").rstrip("\n")
    return text, failure


class TextLines:
    """Events as `twisted.logger.textFileLogObserver` writes them, but for `source_name`; access records as words.

    An access record is a line like `TIME [netsvc.access#info] echo tcp 192.0.2.7:5123 listener=0.0.0.0:9001
    bytes_in=6 bytes_out=6 seconds=0.012 reason=peer`. It always has the first ten words, and no word has a space, for
    awk. Thread-safe.
    """

    def __init__(self, worker: int = 0) -> None:
        #: A second and its text; replaced as one object, for threads.
        self._now: tuple[float, str] = (0.0, formatTime(0.0))
        self._end = f" worker={worker}\n" if worker else "\n"
        self._start = f"[worker {worker}] " if worker else ""

    def event(self, event: LogEvent) -> str | None:
        """Return the line of an event, if it has text."""
        if GATHERED in event:
            # One of `log_event`: by far the most lines of a busy server are.
            line = event["line"].replace("\n", "\n\t")
            return f"{self._time(event['log_time'])} [{source_name(event['log_namespace'])}#info] {self._start}{line}\n"
        template = event.get("log_format")
        if type(template) is str and _is_simple(template):
            system, level = event.get("log_system"), event.get("log_level")
            if system is None and level is not None:
                system = f"{source_name(str(event.get('log_namespace', '-')))}#{level.name}"
            if type(system) is str and "log_failure" not in event and "log_flattened" not in event:
                try:
                    text = template.format_map(event)
                except Exception:  # noqa: BLE001  (a field is missing, or its str() fails: Twisted reports it below)
                    text = None
                if text is not None:
                    line = f"{self._time(event.get('log_time'))} [{system}] {text}"
                    return line.replace("\n", "\n\t") + "\n" if text else None
        level, namespace = event.get("log_level"), str(event.get("log_namespace", "-"))
        if event.get("log_system") is None and level is not None and source_name(namespace) != namespace:
            event = {**event, "log_namespace": source_name(namespace)}
        return formatEventAsClassicLogText(event, self._time)

    def record(self, record: Record) -> str:
        """Return the line of an access record."""
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
    """Return the text of an access record, without its time."""
    _, service, protocol, _, listener, peer, port, came, went, taken, given, seconds, reason, limit = record
    if port is None:
        # A UNIX socket: `uid 7`, or a path.
        place = _word(peer.replace("uid ", "uid:", 1) if peer.startswith("uid ") else peer)
    else:
        # From a PROXY header Twisted takes any text for an address.
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
    """Escape a text to one word; an empty one is `-`."""
    escaped = escape(text)
    return "".join(f"\\x{ord(each):02x}" if each.isspace() else each for each in escaped) or "-"


@lru_cache(maxsize=256)
def _is_simple(template: str) -> bool:
    return _SIMPLE.fullmatch(template) is not None


class JsonLines:
    """One JSON object (RFC 8259) in one line of ASCII for each event and access record. Thread-safe.

    `now` returns the time for events that have none.
    """

    def __init__(self, worker: int = 0, now: Callable[[], float] = time.time) -> None:
        self._worker = worker
        self._end = f',"worker":{worker}}}\n' if worker else "}\n"
        self._get_now = now
        #: A second and its text; replaced as one object, for threads.
        self._now: tuple[int, str] = (0, _second(0))

    def event(self, event: LogEvent) -> str | None:
        """Return the line of an event, if it has text."""
        template = event.get("log_format")
        if type(template) is str and template in RELAYED:
            text, failure, worker = event.get("text", ""), event.get("traceback", ""), event.get("worker", 0)
        else:
            (text, failure), worker = event_text(event), self._worker
        if not text and not failure:
            return None
        source = event.get("log_namespace") or "-"
        if source == "log_legacy":
            source = event.get("log_system", "-")
        fields = {
            "level": getattr(event.get("log_level"), "name", "info"),
            "source": source_name(_shown(source)),
            "text": text,
            **({"failure": failure} if failure else {}),
        }
        body = ",".join(f'"{name}":{_quote(value)}' for name, value in fields.items())
        end = f',"worker":{worker}}}\n' if worker else "}\n"
        return f'{{"time":"{self._time(event.get("log_time"))}","kind":"log",{body}{end}'

    def record(self, record: Record) -> str:
        """Return the line of an access record."""
        when, service, protocol, kind, listener, peer, port, came, went, taken, given, seconds, reason, limit = record
        head, to = _head(service, protocol, kind, listener)
        tail = _tail(reason, limit)
        place = _name(peer) if port is None else f'{_name(peer)},"port":{port}'
        datagrams = "" if taken is None else f',"datagrams_in":{taken},"datagrams_out":{given}'
        return (
            f'{{"time":"{self._time(when)}{head}{place}{to}{came},"bytes_out":{went}'
            f',"seconds":{seconds:.3f}{tail}{datagrams}{self._end}'
        )

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


@lru_cache(maxsize=MOST_KNOWN)
def _head(service: str, protocol: str, kind: str, listener: str) -> tuple[str, str]:
    """Return the parts of a line that all records of a listener share, before and after the peer."""
    return (
        f'","kind":"access","service":{_name(service)},"protocol":{_name(protocol)},"transport":{_name(kind)},"peer":',
        f',"listener":{_name(listener)},"bytes_in":',
    )


@lru_cache(maxsize=MOST_KNOWN)
def _tail(reason: str, limit: str | None) -> str:
    return f',"reason":{_name(reason)}' + ("" if limit is None else f',"limit":{_name(limit)}')


def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _quote(text: str) -> str:
    quoted: str = encode_basestring_ascii(text)
    if "\\ud" in quoted:
        # It may be a lone surrogate (RFC 8259, section 8.2), which many readers reject.
        quoted = encode_basestring_ascii(text.encode("utf-8", "backslashreplace").decode())
    return quoted


def _name(text: str) -> str:
    return _quote(text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}...")


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  (anything may be logged)
        return "-"
