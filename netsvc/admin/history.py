"""The history of the last minutes: open connections, and the rates of all counters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from netsvc.admin.status import Sample
from netsvc.plan.status import Counts, ProcessStatus

#: Seconds that are kept, and between two points at least.
SPAN, LEAST = 300.0, 0.5
MOST_POINTS = int(SPAN / LEAST) + 1

#: Counted immediately; and read from the connections from time to time, since that takes longer the more there are.
_AT_ONCE = ("accepted", "errors", "dropped")
_LOOKED_AT = ("bytes_in", "bytes_out", "datagrams_in", "datagrams_out")
#: A listener in a process.
_Key = tuple[Any, ...]


class _Seen(NamedTuple):
    """The counters of a listener in a process at a time, and their rates."""

    time: float
    numbers: Mapping[str, float]
    rates: Mapping[str, float]


class History:
    """A series of points, each with the rates a second since the previous one.

    A rate is the sum of the rates of each listener in each process since it was last read. So a process that is late,
    or ends, or a listener that is closed, makes no gap and no peak.
    """

    def __init__(self) -> None:
        self.points: deque[dict[str, Any]] = deque(maxlen=MOST_POINTS)
        self._last: dict[_Key, _Seen] = {}
        self._time: float | None = None

    def add(self, sample: Sample) -> None:
        """Add a point, unless the last one is newer than `LEAST` seconds."""
        now, before = sample.time, self._time
        if before is not None and not LEAST <= now - before <= SPAN:
            if 0 <= now - before < LEAST:
                return
            # The clock was changed, or the last sample is old: there is nothing to compare with.
            self.points.clear()
            self._last.clear()
            before = None
        rates: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        seen = {}
        for key, looked, counts in _counts(sample.statuses):
            for name, time, numbers, totals in (
                ("at once", now, {each: getattr(counts, each) for each in _AT_ONCE}, rates),
                ("looked at", looked or now, {each: getattr(counts, each) for each in _LOOKED_AT}, rates),
                ("refused", now, dict(counts.refused), refused),
            ):
                # A new listener has counted from zero; but before the first point the start is not known.
                last = self._last.get((key, name)) or _Seen(before or now, numbers if before is None else {}, {})
                each = seen[key, name] = _grown(last, time, numbers)
                totals.update(each.rates)
        silent = {key: last for key, last in self._last.items() if key not in seen and now - last.time < SPAN / 10}
        self._last = {**silent, **seen}
        self._time = now
        self.points.append(
            {
                "time": round(now, 3),
                "open": sum(status.open for status in sample.statuses),
                **{name: round(float(rates[name]), 3) for name in (*_AT_ONCE, *_LOOKED_AT)},
                "refused": {reason: round(rate, 3) for reason, rate in sorted(refused.items()) if rate > 0},
                "delay": round(max((status.vitals.delay for status in sample.statuses), default=0.0), 6),
            }
        )
        while self.points[0]["time"] < now - SPAN:
            self.points.popleft()


def _grown(last: _Seen, time: float, numbers: Mapping[str, float]) -> _Seen:
    """Return the rates since `last`; the same rates if the counters were not read since then."""
    span = time - last.time
    if span <= 0:
        return last if last.rates else _Seen(time, numbers, dict.fromkeys(numbers, 0.0))
    return _Seen(
        time, numbers, {name: max(0.0, number - last.numbers.get(name, 0)) / span for name, number in numbers.items()}
    )


def _counts(statuses: Sequence[ProcessStatus]) -> Iterable[tuple[_Key, float, Counts]]:
    for status in statuses:
        for listener in status.listeners:
            yield (status.pid, status.started, *listener.key), status.looked, listener.counts
