"""The limits that a listener can have: their names, values and defaults. Plain data; `netsvc.guard` keeps them.

Every limit can be set for the process, for a service and for a listener, on the command line, in the configuration
file and in a `guard:` address, always under the same name. One table has them all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netsvc.errors import MistakeError
from netsvc.interfaces import Kind
from netsvc.settings import byte_count, number, seconds, shown_as, whole_number
from netsvc.text import escape

__all__ = ["DAYS", "DEFAULTS", "LIMITS", "Hours", "Limit", "Limits", "in_force", "parse_limits", "show_limit"]

#: Values by the names of their limits. None is "no limit", and said so on purpose; what is not set is not in it.
Limits = Mapping[str, Any]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_HIGHEST = 1_000_000
_LONGEST = 366 * 86400
_MOST_NETWORKS = 1000
_TIME = r"([01]?\d|2[0-4]):([0-5]\d)"
_SPAN = re.compile(rf"(?:(?P<days>[a-z-]+(?:\s*/\s*[a-z-]+)*)\s+)?{_TIME}\s*-\s*{_TIME}")


@dataclass(frozen=True)
class Hours:
    """A span of the local day on some days of the week (0 is Monday), in minutes from midnight; `end` is outside.

    One that ends before it starts goes on to the next day, and belongs to the day on which it starts.
    """

    days: frozenset[int]
    start: int
    end: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else "/".join(DAYS[day] for day in sorted(self.days)) + " "
        return f"{days}{_clock_time(self.start)}-{_clock_time(self.end)}"


@dataclass(frozen=True)
class Limit:
    """One limit: its name, what its value may be, for which kinds of listeners, its default, a line of help.

    `shared` says that everything at a level counts together, and that each level which sets it keeps it. Of any
    other limit, the value of the nearest level holds: the listener's before the service's before the process's.
    """

    name: str
    coerce: Callable[[Any], Any]
    description: str
    kinds: tuple[Kind, ...] = ("stream", "datagram")
    default: Any = None
    shared: bool = False


def _clock_time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _items(value: Any) -> list[str]:
    """Split a list: of a file as such, of a word at its commas."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts]


def _networks(value: Any) -> tuple[str, ...]:
    items = _items(value)
    try:
        for item in items:
            if item.startswith("@"):
                if len(item) == 1:
                    raise ValueError
            elif item != "all":
                ipaddress.ip_network(item, strict=False)
        if len(items) > _MOST_NETWORKS:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"addresses and networks such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, all, or @FILE with one a line, "
            f"separated by commas, at most {_MOST_NETWORKS} beside those in files"
        ) from None
    return tuple(items)


def _hours(value: Any) -> tuple[Hours, ...]:
    try:
        return tuple(_span(item.lower()) for item in _items(value))
    except ValueError:
        raise ValueError(
            "times of day such as 08:00-18:00, or on some days: mon-fri 08:00-18:00, sat/sun 10:00-14:00"
        ) from None


def _span(text: str) -> Hours:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError
    start, end = int(match[2]) * 60 + int(match[3]), int(match[4]) * 60 + int(match[5])
    if start == end or max(start, end) > 24 * 60:
        raise ValueError
    days: set[int] = set()
    for part in re.split(r"\s*/\s*", match["days"] or "mon-sun"):
        first, _, last = part.partition("-")
        begin, until = DAYS.index(first), DAYS.index(last or first)
        # sat-mon goes over the end of the week.
        days |= {day % 7 for day in range(begin, until + 1 + (7 if until < begin else 0))}
    return Hours(frozenset(days), start, end)


def _names(value: Any) -> frozenset[str]:
    names = frozenset(_items(value))
    if names - {"all"} - LIMITS.keys():
        raise ValueError("names of limits, all")
    return names


shown_as("CIDR,…", _networks)
shown_as("TIMES", _hours)
shown_as("LIMIT,…", _names)

_count = whole_number(1, _HIGHEST)
_per_second = number(0.01, _HIGHEST)
_duration = seconds(0.1, _LONGEST)
_bytes = byte_count(1, 1 << 40)

_STREAM: tuple[Kind, ...] = ("stream",)
_DATAGRAM: tuple[Kind, ...] = ("datagram",)

#: In the order in which they are shown. A peer is an IPv4 address, an IPv6 /64, or the user of a UNIX socket.
LIMITS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        Limit("connections", _count, "connections at a time", _STREAM, 20_000, shared=True),
        Limit("sessions", _count, "peers that datagrams come from, remembered at a time", _DATAGRAM, 20_000, True),
        Limit("perip", _count, "connections, or sessions, of one peer at a time", default=256, shared=True),
        Limit("rate", _per_second, "new connections, or sessions, a second", shared=True),
        Limit("burst", _count, "how many may come at once, before rate holds (default: one second's)", shared=True),
        Limit("periprate", _per_second, "new connections, or sessions, of one peer a second", default=50, shared=True),
        Limit("peripburst", _count, "how many of one peer may come at once", default=500, shared=True),
        Limit("pause", _duration, "seconds without any new connection once rate is exceeded", _STREAM, shared=True),
        Limit("handshake", _duration, "seconds until the first byte is received", _STREAM, 120),
        Limit("idle", _duration, "seconds in which no byte comes or goes", _STREAM, 3600),
        Limit("sessionidle", _duration, "seconds without a datagram until a peer is forgotten", _DATAGRAM, 60),
        Limit("life", _duration, "seconds that a connection, or session, may last"),
        Limit("read", _bytes, "bytes a second from one connection, or peer"),
        Limit("write", _bytes, "bytes a second to one connection, or peer"),
        Limit("readall", _bytes, "bytes a second from all together", shared=True),
        Limit("writeall", _bytes, "bytes a second to all together", shared=True),
        Limit("datagrams", _per_second, "datagrams a second from one peer", _DATAGRAM),
        Limit(
            "amplify",
            number(0, 1000),
            "bytes sent for each byte received from a peer that may be forged",
            _DATAGRAM,
            1.0,
        ),
        Limit("allow", _networks, "who may come; the most specific network of allow and deny decides", shared=True),
        Limit("deny", _networks, "who may not come (with allow alone: all others)", shared=True),
        Limit("hours", _hours, "when anybody may come, in local time", shared=True),
        Limit("dryrun", _names, "limits that only report what they would have refused", shared=True),
    )
}

#: What holds for the process where it sets nothing else.
DEFAULTS: Limits = {limit.name: limit.default for limit in LIMITS.values() if limit.default is not None}


def parse_limits(settings: Mapping[str, object], written: Callable[[str], str] = "{}".format) -> dict[str, Any]:
    """Read limits from what a user wrote: a word, a number, or a list where commas would separate words.

    `none` lifts a limit. `written(name)` says how the user wrote one, for the messages. Raises `MistakeError` with a
    line for each that is wrong.
    """
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, value in settings.items():
        limit = LIMITS.get(name)
        if limit is None:
            mistakes.append(f"{escape(written(name))}: there is no limit of that name; there are {', '.join(LIMITS)}")
        elif value == "none":
            values[name] = None
        elif isinstance(value, bool | dict):
            mistakes.append(f"{escape(written(name))}: a limit needs a value, or none")
        else:
            try:
                values[name] = limit.coerce(value)
            except ValueError as error:
                mistakes.append(f"{escape(written(name))} {escape(_as_written(value))}: {error}, or none")
    if mistakes:
        raise MistakeError(mistakes)
    return values


def _as_written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def show_limit(value: Any) -> str:
    """Write the value of a limit as a user would."""
    if value is None:
        return "none"
    if isinstance(value, frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_force(levels: Sequence[Limits], name: str) -> tuple[Any, bool]:
    """Return the value of a limit that is not shared, and whether it only reports.

    `levels` are those of the process, the service and the listener, in this order. It reports only if its own level
    says so, or a nearer one does.
    """
    reported: frozenset[str] = frozenset()
    for level in reversed(levels):
        reported |= level.get("dryrun") or frozenset()
        if name in level:
            return level[name], name in reported or "all" in reported
    return None, False
