"""The metrics of services: what `Context.metrics` is, and all those of a process together.

They are plain numbers until somebody looks. `netsvc.exposition` writes them for Prometheus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast, overload

from netsvc.catalog import METRICS
from netsvc.errors import MistakeError
from netsvc.instruments import MOST_BUCKETS, Counter, Gauge, Histogram, Instrument, Labelled
from netsvc.text import escape, plain

__all__ = ["BUCKETS", "MOST_METRICS", "Combine", "Metrics", "Registry", "merge_metrics"]

#: Metrics of one use of a service.
MOST_METRICS = 100
_MOST_LABELS = 8
#: Seconds, for what takes milliseconds up to some seconds: the upper bounds of a histogram that is given none.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: How the gauges of several processes become one.
Combine = Literal["sum", "max", "min"]
_COMBINE: dict[str, Callable[[float, float], float]] = {"sum": float.__add__, "max": max, "min": min}

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_LABEL = re.compile(r"(?!__)[a-z_][a-z0-9_]{0,39}")
#: Every metric has the first; Prometheus gives a meaning to the others.
_OWN_LABELS = ("use", "le", "quantile")
#: Prometheus appends them itself: a metric with such a name might be taken for a part of another one.
_SUFFIXES = ("_total", "_bucket", "_count", "_sum", "_created", "_info")


@dataclass(frozen=True)
class _Family:
    """What is declared of a metric."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    combine: Combine = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def base(self) -> str:
        return self.name.removesuffix("_total")


_OWN = {name.removesuffix("_total") for name in METRICS}


class Metrics:
    """The metrics of one use of a service in a process. `use` is its name in the plan, the service's own as a rule.

    A metric `messages` of the service `chat` is `netsvc_chat_messages`, a counter with `_total` behind, and has the
    label `use` besides its own. Whoever asks for the same one again gets the same object, an instance that a
    reload builds as well: so it goes on from where it was. Asking for it has no side effects but that it is seen.

    `counter`, `gauge` and `histogram` raise `MistakeError` for a name or label that cannot be, and for one that is
    taken by something else.
    """

    def __init__(self, service: str = "service", use: str | None = None, registry: Registry | None = None) -> None:
        self.service = service
        self.use = plain(service if use is None else use)
        self._registry = registry
        self._prefix = f"netsvc_{re.sub('[^a-z0-9]', '_', service.lower())}_"
        #: By names without the ending of a counter.
        self._metrics: dict[str, tuple[_Family, Instrument | Labelled[Any]]] = {}

    @overload
    def counter(self, name: str, description: str) -> Counter: ...
    @overload
    def counter(self, name: str, description: str, labels: Sequence[str]) -> Labelled[Counter]: ...
    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Counter | Labelled[Counter]:
        """Return the counter of this name; with labels, one for each set of them. `_total` is added to the name."""
        found = self._metric(name.removesuffix("_total"), Counter, "counter", description, labels)
        return cast("Counter | Labelled[Counter]", found)

    @overload
    def gauge(self, name: str, description: str, *, combine: Combine = "sum") -> Gauge: ...
    @overload
    def gauge(
        self, name: str, description: str, labels: Sequence[str], *, combine: Combine = "sum"
    ) -> Labelled[Gauge]: ...
    def gauge(
        self, name: str, description: str, labels: Sequence[str] = (), *, combine: Combine = "sum"
    ) -> Gauge | Labelled[Gauge]:
        """Return the gauge of this name; with labels, one for each set of them.

        Of several processes the sum is shown, or what is largest (`max`) or smallest (`min`) in any of them.
        """
        if combine not in _COMBINE:
            raise self._mistake(name, f"combine is {' or '.join(_COMBINE)}, not {escape(str(combine))}")
        found = self._metric(name, Gauge, "gauge", description, labels, combine=combine)
        return cast("Gauge | Labelled[Gauge]", found)

    @overload
    def histogram(self, name: str, description: str, *, buckets: Sequence[float] = BUCKETS) -> Histogram: ...
    @overload
    def histogram(
        self, name: str, description: str, labels: Sequence[str], *, buckets: Sequence[float] = BUCKETS
    ) -> Labelled[Histogram]: ...
    def histogram(
        self, name: str, description: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = BUCKETS
    ) -> Histogram | Labelled[Histogram]:
        """Return the histogram of this name; with labels, one for each set of them.

        `buckets` are the upper bounds of its classes, from the smallest to the largest, `MOST_BUCKETS` at most.
        """
        bounds = tuple(map(float, buckets))
        bounds = bounds[:-1] if bounds[-1:] == (math.inf,) else bounds
        rising = all(lower < higher for lower, higher in pairwise((-math.inf, *bounds, math.inf)))
        if not rising or not 1 <= len(bounds) <= MOST_BUCKETS:
            raise self._mistake(name, f"buckets are 1 to {MOST_BUCKETS} numbers, each larger than the one before")
        found = self._metric(name, partial(Histogram, bounds), "histogram", description, labels, bounds=bounds)
        return cast("Histogram | Labelled[Histogram]", found)

    def value(self, name: str, **labels: object) -> float:
        """Return what a metric has come to: a number; of a histogram, how many were observed. 0 for new labels.

        For tests. Raises `KeyError` if nobody has asked for such a metric, `ValueError` if its labels are others.
        """
        found = self._metrics.get(self._prefix + name.removesuffix("_total"))
        if found is None:
            there = ", ".join(base.removeprefix(self._prefix) for base in self._metrics)
            raise KeyError(f"no metric {name}; there are {there or 'none'}")
        metric = found[1]
        if isinstance(metric, Labelled):
            metric = metric.sets.get(metric.key(**labels), Counter())
        elif labels:
            raise ValueError(f"{found[0].name} has no labels")
        return metric.value

    def samples(self) -> list[dict[str, Any]]:
        """Return all of them as they are now, as objects that `json.dumps` takes.

        `name`, `kind`, `help`, `labels`, `combine` and `bounds` are as they were declared. `sets` has a list of the
        values of the labels and the value for each set; the value of a histogram is the sum of what was observed, and
        then how many are in each class.
        """
        # Lists, so that what was JSON meanwhile compares equal.
        return [
            {
                **asdict(family),
                "labels": list(family.labels),
                "bounds": list(family.bounds),
                "sets": self._sets(family, metric),
            }
            for family, metric in self._metrics.values()
        ]

    def asking(self) -> list[str]:
        """Name the gauges that have functions to ask; none has after `stop`."""
        return [
            family.name
            for family, metric in self._metrics.values()
            if any(
                isinstance(each, Gauge) and each.asks
                for each in (metric.sets.values() if isinstance(metric, Labelled) else [metric])
            )
        ]

    def _sets(self, family: _Family, metric: Instrument | Labelled[Any]) -> list[list[Any]]:
        sets = metric.sets.items() if isinstance(metric, Labelled) else [((), metric)]
        read = []
        for key, each in list(sets):
            value: Any
            if isinstance(each, Histogram):
                value = [each.sum, *each.counts]
            else:
                value = each.read(family.name) if isinstance(each, Gauge) else each.value
            if value is not None:
                read.append([[self.use, *key], value])
        return read

    def _mistake(self, name: str, reason: str) -> MistakeError:
        return MistakeError([f'metric "{escape(str(name))}" of service {self.service}: {reason}'])

    def _metric(
        self,
        name: str,
        make: Callable[[], Instrument],
        kind: str,
        description: str,
        labels: Sequence[str],
        **more: Any,
    ) -> Any:
        if not _NAME.fullmatch(name):
            raise self._mistake(name, "use up to 60 of a-z, 0-9 and _ for a name, and begin it with a letter")
        for suffix in _SUFFIXES:
            if name.endswith(suffix):
                raise self._mistake(name, f"leave out {suffix}, which has a meaning for Prometheus")
        if self._prefix + name in _OWN:
            raise self._mistake(name, f"{self._prefix}{name} is netsvc's own; choose another name")
        ending = "_total" if kind == "counter" else ""
        names = self._labels(name, labels)
        family = _Family(f"{self._prefix}{name}{ending}", kind, plain(description), ("use", *names), **more)
        taken = (self._registry or self).find(family.base)
        if taken is not None and taken != family:
            raise self._mistake(
                name, f"{taken.name} is there, with another kind, text, labels or buckets; choose another name"
            )
        if family.base not in self._metrics:
            if len(self._metrics) >= MOST_METRICS:
                raise self._mistake(name, f"there are {MOST_METRICS} already; tell things apart by labels")
            self._metrics[family.base] = family, Labelled(family.name, names, make) if names else make()
        return self._metrics[family.base][1]

    def _labels(self, name: str, labels: Sequence[str]) -> tuple[str, ...]:
        names = (labels,) if isinstance(labels, str) else tuple(labels)
        for label in names:
            if not _LABEL.fullmatch(label) or label in _OWN_LABELS:
                own = ", ".join(_OWN_LABELS)
                raise self._mistake(name, f'label "{escape(label)}": use a-z, 0-9 and _, and none of {own}')
        if len(set(names)) < len(names) or len(names) > _MOST_LABELS:
            raise self._mistake(name, f"it has a label twice, or more than {_MOST_LABELS}")
        return names

    def find(self, base: str) -> _Family | None:
        """Return what was declared by this name, without the ending of a counter."""
        found = self._metrics.get(base)
        return None if found is None else found[0]


class Registry:
    """The metrics of all services in a process. It outlives reloads, and so do they."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], Metrics] = {}

    def of(self, use: str, service: str) -> Metrics:
        """Return those of one use of a service: the same as before, if it was there before."""
        metrics = self._uses.get((use, service))
        if metrics is None:
            metrics = self._uses[use, service] = Metrics(service, use, self)
        return metrics

    def keep(self, uses: Collection[str]) -> None:
        """Forget those of all other uses: they have left the plan."""
        self._uses = {key: metrics for key, metrics in self._uses.items() if key[0] in uses}

    def find(self, base: str) -> _Family | None:
        """Return what was declared by this name in any of them."""
        return next((found for metrics in self._uses.values() if (found := metrics.find(base))), None)

    def samples(self) -> list[dict[str, Any]]:
        """Return all of them as `Metrics.samples` does, for `ProcessStatus.metrics`."""
        return [family for metrics in self._uses.values() for family in metrics.samples()]


def merge_metrics(
    processes: Iterable[Sequence[dict[str, Any]]], departed: Iterable[Sequence[dict[str, Any]]] = ()
) -> list[dict[str, Any]]:
    """Make one of the samples of several processes: a family for each name, a value for each set of labels.

    Counters and histograms are added up, with those of `departed` processes as well; gauges as they were declared.
    Nothing that was given is changed.
    """
    merged: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[tuple[str, ...], Any]] = {}
    present = [family for process in processes for family in process]
    gone = [family for process in departed for family in process if family["kind"] != "gauge"]
    for family in present + gone:
        name = family["name"]
        first = merged.setdefault(name, family)
        if any(first[key] != family[key] for key in ("kind", "labels", "bounds")):
            # Of another version of the service: the sum would be of nothing.
            continue
        sets = values.setdefault(name, {})
        for key, value in family["sets"]:
            before = sets.get(tuple(key))
            sets[tuple(key)] = value if before is None else _combined(family, before, value)
    return [
        {**family, "sets": [[list(key), each] for key, each in values[name].items()]} for name, family in merged.items()
    ]


def _combined(family: dict[str, Any], one: Any, other: Any) -> Any:
    if family["kind"] == "histogram":
        return [first + second for first, second in zip(one, other, strict=True)]
    return _COMBINE[family["combine"]](float(one), float(other))
