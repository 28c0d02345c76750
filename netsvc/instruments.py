"""What a service counts and measures with: counters, gauges, histograms, and sets of them told apart by labels.

They are for the thread of the reactor, as everything of Twisted's is: no lock is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from twisted.logger import Logger

from netsvc.text import escape

__all__ = ["MOST_BUCKETS", "MOST_SETS", "OTHER", "Counter", "Gauge", "Histogram", "Instrument", "Labelled"]

#: Sets of labels of one metric. What a peer chooses may stand in a label, and every set costs memory here and there.
MOST_SETS = 1000
#: The value of every label of the set that counts for those beyond `MOST_SETS`.
OTHER = "other"
#: Classes of a histogram, without the one for all that is larger.
MOST_BUCKETS = 50
#: Characters of a label's value; what is beyond them is counted, not shown.
_LONGEST_VALUE = 100

_log = Logger(namespace="netsvc")


class Counter:
    """Counts what happens. It only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Count one more, or several. Raises `ValueError` for less than nothing."""
        # So written that what is no number fails as well.
        if not 0 <= amount < math.inf:
            raise ValueError(f"a counter only grows, not by {amount}")
        self.value += amount


class Gauge:
    """Says how much of something there is now: what was set, and what every function added to it returns."""

    __slots__ = ("_amount", "_functions", "_is_blamed")

    def __init__(self) -> None:
        self._amount: float | None = None
        self._functions: dict[Callable[[], float], None] = {}
        self._is_blamed = False

    def set(self, value: float) -> None:
        """Let it be this much."""
        self._amount = float(value)

    def inc(self, amount: float = 1) -> None:
        """Let it be more."""
        self._amount = (self._amount or 0) + amount

    def dec(self, amount: float = 1) -> None:
        """Let it be less."""
        self.inc(-amount)

    def add_function(self, function: Callable[[], float]) -> None:
        """Ask a function from now on, whenever somebody looks. One that was added already is not asked twice.

        Add it in `start` and remove it in `stop`: after a reload two instances of a service may be at work for a
        while, and what they have counts together.
        """
        self._functions[function] = None

    def remove_function(self, function: Callable[[], float]) -> None:
        """Ask a function no more; does nothing if it was not added."""
        self._functions.pop(function, None)

    @property
    def asks(self) -> bool:
        """Whether it has functions to ask."""
        return bool(self._functions)

    @property
    def value(self) -> float:
        """How much there is. Raises whatever a function raises."""
        return sum((float(function()) for function in self._functions), self._amount or 0)

    def read(self, name: str) -> float | None:
        """Return how much there is; None if it was never said, if a function raises, or if that is no finite number.

        The first failure is logged, with the name.
        """
        if self._amount is None and not self._functions:
            return None
        try:
            value = self.value
        except Exception:  # noqa: BLE001  (whatever it is, the other metrics are to be seen)
            if not self._is_blamed:
                self._is_blamed = True
                _log.failure("the gauge {name} cannot be read, and is left out", name=name)
            return None
        return value if math.isfinite(value) else None


class Histogram:
    """Counts how often something was how large: in classes with the upper bounds `bounds`, and one for all larger."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, amount: float) -> None:
        """Count one that was so large. Raises `ValueError` for what is no finite number."""
        if not -math.inf < amount < math.inf:
            raise ValueError(f"{amount} cannot be observed")
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    @property
    def value(self) -> int:
        """How many there were."""
        return sum(self.counts)


Instrument: TypeAlias = Counter | Gauge | Histogram
I = TypeVar("I", Counter, Gauge, Histogram)  # noqa: E741


class Labelled(Generic[I]):
    """A metric with labels: one counter, gauge or histogram for each set of their values, `MOST_SETS` at most.

    Whatever comes beyond them is counted together, as `other`.
    """

    def __init__(self, name: str, labels: Sequence[str], make: Callable[[], I]) -> None:
        self.name = name
        self.names = tuple(labels)
        self.sets: dict[tuple[str, ...], I] = {}
        self._make: Callable[[], I] = make
        self._is_full = False

    def labels(self, *values: object, **named: object) -> I:
        """Return the one for these values, in the order of the labels or by name. It may be kept.

        Raises `ValueError` unless there is a value for every label. Values are escaped (`netsvc.text.escape`).
        """
        key = self.key(*values, **named)
        found = self.sets.get(key)
        return self._new(key) if found is None else found

    def key(self, *values: object, **named: object) -> tuple[str, ...]:
        """Return the values as they are written. Raises `ValueError` unless there is one for every label."""
        if named:
            if values or named.keys() != set(self.names):
                raise self._wrong([*map(str, values), *named])
            values = tuple(named[name] for name in self.names)
        elif len(values) != len(self.names):
            raise self._wrong(list(map(str, values)))
        return tuple([escape(str(value), _LONGEST_VALUE) for value in values])

    def _wrong(self, given: list[str]) -> ValueError:
        return ValueError(f"{self.name} has the labels {', '.join(self.names)}, not {', '.join(given) or 'none'}")

    def _new(self, key: tuple[str, ...]) -> I:
        if len(self.sets) >= MOST_SETS:
            if not self._is_full:
                self._is_full = True
                _log.warn(
                    "{name} has {most} sets of labels; what comes beyond them is counted as {other}",
                    name=self.name,
                    most=MOST_SETS,
                    other=OTHER,
                )
            key = (OTHER,) * len(self.names)
        return self.sets.setdefault(key, self._make())

    def remove(self, *values: object, **named: object) -> None:
        """Forget the one for these values, and leave its place to another; does nothing if there is none.

        For gauges of what is there no more. Raises `ValueError` as `labels` does.
        """
        self.sets.pop(self.key(*values, **named), None)
