"""The counters, gauges and histograms of services: prometheus_client's, with bounded sets of labels.

Imported with the first metric of a service, since prometheus_client takes a while to import. For the reactor's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import prometheus_client
from twisted.logger import Logger

from netsvc.base.text import escape

#: Sets of labels of one metric. A peer may choose a value, and every set costs memory here and in Prometheus.
MOST_SETS = 1000
#: The value of each label of the set that counts for those beyond `MOST_SETS`.
OTHER = "other"
#: Characters of the value of a label; of a longer one, the rest is counted, not shown.
LONGEST_VALUE = 100

_log = Logger(namespace="netsvc")


class _Bounded:
    """Escapes the values of labels, and limits the number of their sets."""

    def __init__(self, name: str, *args: Any, labelnames: Sequence[str] = (), **more: Any) -> None:
        self.name = name
        self.names = tuple(labelnames)
        #: By the values of the labels.
        self.children: dict[tuple[str, ...], Self] = {}
        self._is_full = False
        super().__init__(name, *args, labelnames=labelnames, **more)  # type: ignore[call-arg]

    def labels(self, *values: object, **named: object) -> Self:
        """Return the instrument for these values, in the order of the labels or by name. It may be kept.

        Beyond `MOST_SETS` it is the one whose values are all `other`. Raises `ValueError` unless there is a value for
        every label. Values are escaped (`netsvc.base.text.escape`).
        """
        key = self.key(*values, **named)
        return self.children.get(key) or self._new(key)

    def key(self, *values: object, **named: object) -> tuple[str, ...]:
        """Return the values as they are written. Raises `ValueError` unless there is one for every label."""
        if values if named else len(values) != len(self.names):
            raise self._wrong_labels(*values, *named)
        if named:
            if named.keys() != set(self.names):
                raise self._wrong_labels(*named)
            values = tuple(named[name] for name in self.names)
        return tuple([escape(str(value), LONGEST_VALUE) for value in values])

    def _wrong_labels(self, *given: object) -> ValueError:
        return ValueError(
            f"{self.name} has the labels {', '.join(self.names)}, not {', '.join(map(str, given)) or 'none'}"
        )

    def _new(self, key: tuple[str, ...]) -> Self:
        if len(self.children) >= MOST_SETS:
            if not self._is_full:
                self._is_full = True
                _log.warn(
                    "{name} has {most} sets of labels, the maximum; further ones are counted as {other}",
                    name=self.name,
                    most=MOST_SETS,
                    other=OTHER,
                )
            key = (OTHER,) * len(self.names)
        child: Self = super().labels(*key)  # type: ignore[misc]
        return self.children.setdefault(key, child)

    def remove(self, *values: object, **named: object) -> None:
        """Forget the instrument for these values; does nothing if there is none.

        For gauges whose subject has ended. Raises `ValueError` as `labels` does.
        """
        key = self.key(*values, **named)
        if self.children.pop(key, None) is not None:
            super().remove(*key)  # type: ignore[misc]


class _Amount:
    """The value of a counter, without the lock that prometheus_client's takes for each change."""

    __slots__ = ("exemplar", "number")

    def __init__(self) -> None:
        self.number = 0.0
        self.exemplar: Any = None

    def inc(self, amount: float) -> None:
        self.number += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        self.number = value

    def get(self) -> float:
        return self.number

    def set_exemplar(self, exemplar: Any) -> None:
        self.exemplar = exemplar

    def get_exemplar(self) -> Any:
        return self.exemplar


class Counter(_Bounded, prometheus_client.Counter):
    """Counts events. It only grows."""

    _value: Any = None

    def _metric_init(self) -> None:
        super()._metric_init()
        self._value = _Amount()

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add to the counter. Raises `ValueError` for a negative amount, or one that is not finite."""
        # So that NaN fails as well.
        if not 0 <= amount < math.inf:
            raise ValueError(f"a counter can only grow, not by {amount}")
        if exemplar is None and self._value is not None:
            self._value.number += amount
        else:
            # This also explains what is wrong, if it needs labels.
            super().inc(amount, exemplar)


class Gauge(_Bounded, prometheus_client.Gauge):
    """A current amount: what was set, plus what each function that was added returns.

    It has no value before it is set or has a function, nor while a function fails or the sum is not finite. The first
    failure is logged.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.functions: dict[Callable[[], float], None] = {}
        self._is_set = self._has_failed = False
        super().__init__(*args, **more)

    def set(self, value: float) -> None:
        """Set the amount."""
        super().set(value)
        self._is_set = True

    def inc(self, amount: float = 1) -> None:
        """Add to the amount."""
        super().inc(amount)
        self._is_set = True

    def dec(self, amount: float = 1) -> None:
        """Subtract from the amount."""
        self.inc(-amount)

    def add_function(self, function: Callable[[], float]) -> None:
        """Call a function whenever the gauge is read. Adding it twice has no effect.

        Add it in `start` and remove it in `stop`: after a reload two instances of a service may run for a while, and
        the gauge is the sum of both.
        """
        self.functions[function] = None

    def remove_function(self, function: Callable[[], float]) -> None:
        """Call a function no longer; does nothing if it was not added."""
        self.functions.pop(function, None)

    def _child_samples(self) -> Iterable[Any]:
        if not self._is_set and not self.functions:
            return ()
        [sample] = super()._child_samples()
        try:
            value = sum((float(function()) for function in self.functions), sample.value)
        except Exception:  # noqa: BLE001  (the other metrics are still to be read)
            if not self._has_failed:
                self._has_failed = True
                _log.failure("the gauge {name} cannot be read and is left out", name=self.name)
            return ()
        return (sample._replace(value=value),) if math.isfinite(value) else ()


class Histogram(_Bounded, prometheus_client.Histogram):
    """Counts observations in buckets, by their size."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count an observation. Raises `ValueError` for an amount that is not finite."""
        if not -math.inf < amount < math.inf:
            raise ValueError(f"{amount} cannot be observed")
        super().observe(amount, exemplar)


def read_sets(metric: Counter | Gauge | Histogram) -> dict[tuple[str, ...], Any]:
    """Return the value for each set of labels: a number, or, of a histogram, the sum and the count of each bucket."""
    sets: dict[tuple[str, ...], Any] = {}
    for sample in [each for family in metric.collect() for each in family.samples]:
        key = tuple(sample.labels[name] for name in metric.names)
        if not isinstance(metric, Histogram):
            if not sample.name.endswith("_created"):
                sets[key] = sample.value
        elif sample.name.endswith("_bucket"):
            # Each has the observations of the buckets below it as well.
            counts = sets.setdefault(key, [])
            counts.append(sample.value - sum(counts))
        elif sample.name.endswith("_sum"):
            sets[key].insert(0, sample.value)
    return sets
