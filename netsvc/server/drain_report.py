"""The report of a drain: how the connections ended, and which peers held it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from heapq import nsmallest
from itertools import accumulate

from twisted.logger import Logger

from netsvc.base.text import escape, shown_peer
from netsvc.guard import Connection

#: Peers named for each listener (the longest connected); lines of a report; characters of all its lines, which a worker
#: sends in one message.
MOST_NAMED, MOST_LINES, MOST_CHARACTERS = 10, 100, 16_000
#: Characters of one line, which may name many listeners.
_LONGEST = 4000

_log = Logger(namespace="netsvc.drain")


@dataclass(frozen=True)
class Summary:
    """The report of a drain: connections at its start, and lines: a summary, then the peers of each listener."""

    began: int
    lines: tuple[str, ...]


class Account:
    """Counts how the connections of one drain ended. `began` is the number of open connections at its start."""

    def __init__(self, began: int) -> None:
        self._began = began
        #: By the deadline, in seconds.
        self._closed: dict[float, Counter[str]] = {}
        self._aborted: Counter[str] = Counter()
        self._held: dict[str, _HeldUp] = {}
        self._late: list[str] = []

    def closed(self, connections: Collection[Connection], seconds: float, now: float) -> None:
        """Record connections that are closed after `seconds`. `now` is the time of the guard's clock."""
        for label, group in _by_label(connections).items():
            self._closed.setdefault(seconds, Counter())[label] += len(group)
            self._note(label, group, now)

    def aborted(self, connections: Collection[Connection], seconds: float | None, now: float) -> None:
        """Record connections that are aborted. They were closed after `seconds`, or not before if None."""
        for label, group in _by_label(connections).items():
            self._aborted[label] += len(group)
            if seconds is None:
                self._note(label, group, now)
            else:
                # A connection accepted since the deadline was not counted as closed.
                closed = self._closed.setdefault(seconds, Counter())
                closed[label] = max(0, closed[label] - len(group))
            held = self._held.setdefault(label, _HeldUp())
            held.aborted |= {number for _, number, _ in held.longest} & {each.number for each in group}

    def late(self, name: str, seconds: float) -> None:
        """Record a service that did not finish its drain by its deadline."""
        self._late.append(f"{escape(name)} had not finished its drain after {seconds:g} s")

    def _note(self, label: str, group: Collection[Connection], now: float) -> None:
        held = self._held.setdefault(label, _HeldUp())
        held.count += len(group)
        longest = [
            (each.began, each.number, shown_peer(*each.peer_place()))
            for each in nsmallest(MOST_NAMED, group, key=_began)
        ]
        held.longest = nsmallest(MOST_NAMED, [*held.longest, *longest])
        held.now = now

    def summary(self) -> Summary:
        """Return the report."""
        lines = [self._line()]
        lines += [f"held up by {label}: {held}" for label, held in sorted(self._held.items()) if held.count]
        lines += self._late
        lines = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in lines]
        ends = list(accumulate(map(len, lines)))
        fitting = sum(end <= MOST_CHARACTERS for end in ends[: MOST_LINES - 1])
        if fitting < len(lines):
            lines[fitting:] = [f"and {len(lines) - fitting} more lines like these"]
        return Summary(self._began, tuple(lines))

    def _line(self) -> str:
        closed = {seconds: census for seconds, census in sorted(self._closed.items()) if census.total()}
        cut = self._aborted.total()
        if not (self._began or closed or cut):
            return "no connection was open"
        by_themselves = max(0, self._began - sum(census.total() for census in closed.values()) - cut)
        parts = [f"{count_connections(by_themselves)} ended by {'itself' if by_themselves == 1 else 'themselves'}"]
        parts += [f"closed at the end of {seconds:g} s: {_count(census)}" for seconds, census in closed.items()]
        if cut:
            parts.append(f"cut off: {_count(self._aborted)}")
        return "; ".join(parts)


class _HeldUp:
    """The connections of one listener that were open at the deadline."""

    def __init__(self) -> None:
        self.count = 0
        self.now = 0.0
        #: Start, number and peer of each.
        self.longest: list[tuple[float, int, str]] = []
        self.aborted: set[int] = set()

    def __str__(self) -> str:
        named = [
            f"{peer} (there for {_duration(self.now - began)}{', cut off' if number in self.aborted else ''})"
            for began, number, peer in self.longest
        ]
        more = self.count - len(named)
        return f"{', '.join(named)}{f' and {more} more' if more > 0 else ''}"


def _by_label(connections: Collection[Connection]) -> dict[str, list[Connection]]:
    groups: dict[str, list[Connection]] = {}
    for connection in connections:
        groups.setdefault(connection.label, []).append(connection)
    return groups


def _began(connection: Connection) -> float:
    return connection.began


def _duration(seconds: float) -> str:
    """Format a duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def log_summary(what: str, summary: Summary) -> None:
    """Log the report of a drain; `what` begins its first line."""
    first, *others = summary.lines
    _log.info("{what}: {summary}", what=what, summary=first)
    for line in others:
        _log.warn("{line}", line=line)


def count_connections(count: int) -> str:
    """Format a number of connections."""
    return f"{count} connection{'' if count == 1 else 's'}"


def _count(census: Counter[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(census.items()) if count)
