"""The limits that a listener can have: their names, values and defaults. `netsvc.guard` enforces them.

Every limit can be set for the process, a service or a listener, on the command line, in the configuration file and
in a `guard:` address, always under the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import struct_time
from typing import Any

from netsvc.base.errors import UserError
from netsvc.base.networks import parse_network
from netsvc.base.text import escape
from netsvc.base.values import Kind, byte_count, number, seconds, shown_as, whole_number

#: Values by the names of their limits. None is an explicit "no limit"; a limit that is not set is absent.
Limits = Mapping[str, Any]

#: Bytes of the IP and UDP headers of a datagram, which `amplify` counts as well. IPv4 headers are counted for a UNIX
#: socket, so that it is served what any other peer is.
IPV4_HEADERS, IPV6_HEADERS = 28, 48

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_HIGHEST = 1_000_000
_LONGEST = 366 * 86400
_MOST_NETWORKS = 1000
_TIME = r"([01]?\d|2[0-4]):([0-5]\d)"
_SPAN = re.compile(rf"(?:(?P<days>[a-z-]+(?:\s*/\s*[a-z-]+)*)\s+)?{_TIME}\s*-\s*{_TIME}")


@dataclass(frozen=True)
class Hours:
    """A span of the local day on some days of the week (0 is Monday), in minutes from midnight, without `end`.

    One that ends before it starts continues on the next day, and belongs to the day on which it starts.
    """

    days: frozenset[int]
    start: int
    end: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else "/".join(DAYS[day] for day in sorted(self.days)) + " "
        return f"{days}{_clock_time(self.start)}-{_clock_time(self.end)}"


@dataclass(frozen=True)
class Limit:
    """One limit: its name, how its value is parsed, a line of help, the kinds of listeners it is for, its default.

    `shared` means that all connections of a level count together, and that each level enforces its own. For any
    other limit, the nearest level decides: the listener's before the service's before the process's. `sample` is an
    example value for one without a default.
    """

    name: str
    coerce: Callable[[Any], Any]
    description: str
    kinds: tuple[Kind, ...] = ("stream", "datagram")
    default: Any = None
    shared: bool = False
    sample: Any = None


def within(hours: Sequence[Hours], moment: struct_time) -> bool:
    """Return whether a local time is within one of the spans."""
    minute, day = moment.tm_hour * 60 + moment.tm_min, moment.tm_wday
    for span in hours:
        if span.start < span.end:
            if day in span.days and span.start <= minute < span.end:
                return True
        elif (day in span.days and minute >= span.start) or ((day - 1) % 7 in span.days and minute < span.end):
            return True
    return False


def _clock_time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _items(value: Any) -> list[str]:
    """Split a value at its commas, unless it is a list already."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts]


def _networks(value: Any) -> tuple[str, ...]:
    items = _items(value)
    try:
        for item in items:
            if item.startswith("@"):
                if len(item) == 1:
                    raise ValueError
            else:
                parse_network(item)
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
        # sat-mon crosses the end of the week.
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
#: The kernel accepts no more.
_probing = seconds(1, 32767)
_bytes = byte_count(1, 1 << 40)

_STREAM: tuple[Kind, ...] = ("stream",)
_DATAGRAM: tuple[Kind, ...] = ("datagram",)

#: In the order of the help. A peer is an IPv4 address, an IPv6 /64, or the user of a UNIX socket.
LIMITS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        Limit("connections", _count, "concurrent connections", _STREAM, 20_000, shared=True),
        Limit("sessions", _count, "peers that datagrams come from, remembered at a time", _DATAGRAM, 20_000, True),
        Limit("perip", _count, "concurrent connections of one peer, or sessions remembered", default=256, shared=True),
        Limit("rate", _per_second, "new connections, or sessions, a second", shared=True, sample=500),
        Limit(
            "burst", _count, "new ones at once, before rate applies (default: one second's)", shared=True, sample=1000
        ),
        # An honest client that is merely fast is served: a resolver that sends each request from a new port, or a loop
        # that fetches a thousand files.
        Limit(
            "periprate", _per_second, "new connections, or sessions, of one peer a second", default=1000, shared=True
        ),
        Limit(
            "peripburst", _count, "new ones of one peer at once, before periprate applies", default=10_000, shared=True
        ),
        Limit(
            "pause", _duration, "time without new connections once rate is exceeded", _STREAM, shared=True, sample=10
        ),
        Limit("handshake", _duration, "time until the first byte is received", _STREAM, 120),
        Limit("idle", _duration, "time without a byte in either direction", _STREAM, 3600),
        Limit("minrate", _bytes, "bytes a second in both directions, over 20 seconds", _STREAM, sample=100),
        Limit("keepalive", _probing, "time of silence until TCP checks that the peer is there", _STREAM, 120),
        Limit("sessionidle", _duration, "time without a datagram until a peer is forgotten", _DATAGRAM, 60),
        Limit("life", _duration, "time that a connection, or session, may last", sample=86400),
        Limit("read", _bytes, "bytes a second from one connection, or peer", sample="1M"),
        Limit("write", _bytes, "bytes a second to one connection, or peer", sample="1M"),
        Limit("readall", _bytes, "bytes a second from all together", shared=True, sample="10M"),
        Limit("writeall", _bytes, "bytes a second to all together", shared=True, sample="10M"),
        Limit("datagrams", _per_second, "datagrams a second from one peer", _DATAGRAM, sample=100),
        Limit(
            "answers",
            _per_second,
            "datagrams a second to one address and port, after as many at once",
            _DATAGRAM,
            1000,
        ),
        Limit(
            "amplify",
            number(0, 1000),
            "bytes sent for each byte received from an unverified peer, over packets with their headers",
            _DATAGRAM,
            # The bound of QUIC (RFC 9000, section 8.1).
            3.0,
        ),
        Limit(
            "allow",
            _networks,
            "networks that may connect; of allow and deny the most specific decides",
            shared=True,
            sample=["10.0.0.0/8", "2001:db8::/32"],
        ),
        Limit(
            "deny",
            _networks,
            "networks that may not connect (with allow alone: all others)",
            shared=True,
            sample=["192.0.2.0/24"],
        ),
        Limit("hours", _hours, "when peers may connect, in local time", shared=True, sample=["mon-fri 08:00-18:00"]),
        Limit("dryrun", _names, "limits that are reported, not enforced", shared=True, sample=["hours", "deny"]),
    )
}

#: The limits of a process that sets no others.
DEFAULTS: Limits = {limit.name: limit.default for limit in LIMITS.values() if limit.default is not None}


def parse_limit(name: str, value: object) -> Any:
    """Parse the value of a limit: text, a number, or a list instead of text with commas.

    `none` removes the limit. Raises `ValueError` with the accepted form.
    """
    if value == "none":
        return None
    try:
        return LIMITS[name].coerce(value)
    except ValueError as error:
        raise ValueError(f"{error}, or none") from None


def parse_limits(settings: Mapping[str, object], written: Callable[[str], str] = "{}".format) -> dict[str, Any]:
    """Parse limits by their names. `written(name)` is how the user wrote one. Raises `UserError` with all errors."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for name, value in settings.items():
        if name not in LIMITS:
            errors.append(f"{escape(written(name))}: unknown limit; the limits are {', '.join(LIMITS)}")
            continue
        try:
            values[name] = parse_limit(name, value)
        except ValueError as error:
            errors.append(f"{escape(written(name))} {escape(show_limit(value))}: {error}")
    if errors:
        raise UserError(errors)
    return values


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
    """Return the value of a limit that is not shared, and whether it is only reported.

    `levels` are the limits of the process, the service and the listener, in this order. A limit is only reported if its
    own level or a nearer one has it in `dryrun`.
    """
    reported: frozenset[str] = frozenset()
    for level in reversed(levels):
        reported |= level.get("dryrun") or frozenset()
        if name in level:
            return level[name], name in reported or "all" in reported
    return None, False
