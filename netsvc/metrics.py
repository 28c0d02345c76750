"""The metrics of services: `Context.metrics`, all metrics of a process, and the sum of several processes.

`netsvc.admin.exposition` writes them for Prometheus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from netsvc.base.errors import UserError
from netsvc.base.text import escape, plain
from netsvc.plan.catalog import METRICS

if TYPE_CHECKING:
    # Imported with the first metric: see there.
    from netsvc.base.instruments import Counter, Gauge, Histogram

__all__ = ["BUCKETS", "MOST_BUCKETS", "MOST_METRICS", "Combine", "Metrics", "Registry", "merge_metrics"]

#: Metrics of one use of a service, and labels of a metric.
MOST_METRICS, MOST_LABELS = 100, 8
#: The upper bounds of the buckets of a histogram that is given none: seconds, for what takes milliseconds to seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Buckets of a histogram, without the last one, which has no bound.
MOST_BUCKETS = 50

#: How the gauges of several processes become one.
Combine = Literal["sum", "max", "min"]
_COMBINE: dict[str, Callable[[float, float], float]] = {"sum": float.__add__, "max": max, "min": min}

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_LABEL = re.compile(r"(?!__)[a-z_][a-z0-9_]{0,39}")
#: The first is a label of every metric; the others have a meaning for Prometheus.
_RESERVED_LABELS = ("use", "le", "quantile")
#: Prometheus appends these itself: a metric with such a name could be taken for a part of another one.
_SUFFIXES = ("_total", "_bucket", "_count", "_sum", "_created", "_info")
#: The names of netsvc's own metrics.
_RESERVED_NAMES = {name.removesuffix("_total") for name in METRICS}


@dataclass(frozen=True)
class _Family:
    """The declaration of a metric."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    combine: Combine = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def base(self) -> str:
        return self.name.removesuffix("_total")


class Metrics:
    """The metrics of one use of a service in a process. `use` is its name in the plan, by default the service's.

    The metric `messages` of the service `chat` is named `netsvc_chat_messages`, or `netsvc_chat_messages_total` if it
    is a counter. It has the label `use` besides its own. A second call for the same metric returns the same object,
    also to the instance that a reload builds, so that counting continues.

    `counter`, `gauge` and `histogram` raise `UserError` for a name or label that is not allowed or already in use.
    They return the instruments of prometheus_client, with the limits of `netsvc.base.instruments`.
    """

    def __init__(self, service: str = "service", use: str | None = None, registry: Registry | None = None) -> None:
        self.service = service
        self.use = plain(service if use is None else use)
        self._registry = registry
        self._prefix = f"netsvc_{re.sub('[^a-z0-9]', '_', service.lower())}_"
        #: By the name without the suffix of a counter.
        self._metrics: dict[str, tuple[_Family, Counter | Gauge | Histogram]] = {}

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Counter:
        """Return the counter of this name; with labels, `labels` returns one for each set of them.

        `_total` is appended to the name.
        """
        counter: Counter = self._metric(name.removesuffix("_total"), "Counter", description, labels)
        return counter

    def gauge(self, name: str, description: str, labels: Sequence[str] = (), *, combine: Combine = "sum") -> Gauge:
        """Return the gauge of this name; with labels, `labels` returns one for each set of them.

        The gauges of several processes are shown as their `sum`, or the largest (`max`) or smallest (`min`) of them.
        """
        if combine not in _COMBINE:
            raise self._error(name, f"combine is {' or '.join(_COMBINE)}, not {escape(str(combine))}")
        gauge: Gauge = self._metric(name, "Gauge", description, labels, combine=combine)
        return gauge

    def histogram(
        self, name: str, description: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = BUCKETS
    ) -> Histogram:
        """Return the histogram of this name; with labels, `labels` returns one for each set of them.

        `buckets` are the upper bounds of its buckets, in rising order, `MOST_BUCKETS` at most.
        """
        bounds = tuple(map(float, buckets))
        bounds = bounds[:-1] if bounds[-1:] == (math.inf,) else bounds
        rising = all(lower < higher for lower, higher in pairwise((-math.inf, *bounds, math.inf)))
        if not rising or not 1 <= len(bounds) <= MOST_BUCKETS:
            raise self._error(name, f"buckets are 1 to {MOST_BUCKETS} numbers, each larger than the one before")
        histogram: Histogram = self._metric(name, "Histogram", description, labels, bounds=bounds)
        return histogram

    def value(self, name: str, **labels: object) -> float:
        """Return the value of a metric: of a histogram, the number of observations; 0 for labels not used yet.

        For tests. Raises `KeyError` if there is no such metric, `ValueError` if its labels are others.
        """
        from netsvc.base.instruments import read_sets

        family, metric = self._metrics.get(self._prefix + name.removesuffix("_total"), (None, None))
        if family is None or metric is None:
            known = ", ".join(base.removeprefix(self._prefix) for base in self._metrics)
            raise KeyError(f"no metric {name}; there are {known or 'none'}")
        if labels and not metric.names:
            raise ValueError(f"{family.name} has no labels")
        value = read_sets(metric).get(metric.key(**labels), 0)
        return float(sum(value[1:])) if isinstance(value, list) else float(value)

    def samples(self) -> list[dict[str, Any]]:
        """Return all metrics as they are now, as objects for `json.dumps`.

        `name`, `kind`, `help`, `labels`, `combine` and `bounds` are as declared. `sets` has a list of
        label values and a value for each set; the value of a histogram is the sum of the observations, followed by the
        number in each bucket.
        """
        if not self._metrics:
            return []
        from netsvc.base.instruments import read_sets

        # Lists instead of tuples: samples compare equal to what was JSON meanwhile.
        return [
            {
                **asdict(family),
                "labels": list(family.labels),
                "bounds": list(family.bounds),
                "sets": [[[self.use, *key], value] for key, value in read_sets(metric).items()],
            }
            for family, metric in self._metrics.values()
        ]

    def asking(self) -> list[str]:
        """Name the gauges that have functions. After `stop` there should be none."""
        return [
            family.name
            for family, metric in self._metrics.values()
            if any(getattr(each, "functions", ()) for each in (metric, *metric.children.values()))
        ]

    def find(self, base: str) -> _Family | None:
        """Return the declaration of this name, without the suffix of a counter."""
        found = self._metrics.get(base)
        return None if found is None else found[0]

    def _error(self, name: str, reason: str) -> UserError:
        return UserError([f'metric "{escape(str(name))}" of service {self.service}: {reason}'])

    def _metric(self, name: str, kind: str, description: str, labels: Sequence[str], **more: Any) -> Any:
        if not _NAME.fullmatch(name):
            raise self._error(name, "a name has up to 60 of a-z, 0-9 and _, and begins with a letter")
        for suffix in _SUFFIXES:
            if name.endswith(suffix):
                raise self._error(name, f"leave out {suffix}, which has a meaning for Prometheus")
        if self._prefix + name in _RESERVED_NAMES:
            raise self._error(name, f"{self._prefix}{name} is a metric of netsvc itself; choose another name")
        names = self._check_labels(name, labels)
        suffix = "_total" if kind == "Counter" else ""
        family = _Family(f"{self._prefix}{name}{suffix}", kind.lower(), plain(description), ("use", *names), **more)
        taken = (self._registry or self).find(family.base)
        if taken is not None and taken != family:
            raise self._error(
                name, f"{taken.name} exists with another kind, description, labels or buckets; choose another name"
            )
        if family.base not in self._metrics:
            if len(self._metrics) >= MOST_METRICS:
                raise self._error(name, f"there are {MOST_METRICS} metrics, the maximum; use labels instead")
            from netsvc.base import instruments

            buckets = {"buckets": family.bounds} if family.bounds else {}
            make = getattr(instruments, kind)
            # No registry: several uses of a service have metrics of one name.
            metric = make(family.name, family.help, labelnames=names, registry=None, **buckets)
            self._metrics[family.base] = family, metric
        return self._metrics[family.base][1]

    def _check_labels(self, name: str, labels: Sequence[str]) -> tuple[str, ...]:
        names = (labels,) if isinstance(labels, str) else tuple(labels)
        for label in names:
            if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
                reserved = ", ".join(_RESERVED_LABELS)
                raise self._error(name, f'label "{escape(label)}": use a-z, 0-9 and _, and none of {reserved}')
        if len(set(names)) < len(names) or len(names) > MOST_LABELS:
            raise self._error(name, f"it has the same label twice, or more than {MOST_LABELS}")
        return names


class Registry:
    """The metrics of all services in a process. They outlive reloads."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], Metrics] = {}

    def of(self, use: str, service: str) -> Metrics:
        """Return the metrics of one use of a service, always the same object."""
        metrics = self._uses.get((use, service))
        if metrics is None:
            metrics = self._uses[use, service] = Metrics(service, use, self)
        return metrics

    def keep(self, uses: Collection[str]) -> None:
        """Forget the metrics of all other uses."""
        self._uses = {key: metrics for key, metrics in self._uses.items() if key[0] in uses}

    def find(self, base: str) -> _Family | None:
        """Return the declaration of this name by any service."""
        return next((found for metrics in self._uses.values() if (found := metrics.find(base))), None)

    def samples(self) -> list[dict[str, Any]]:
        """Return all metrics, as `Metrics.samples` does, for `ProcessStatus.metrics`."""
        return [family for metrics in self._uses.values() for family in metrics.samples()]


def merge_metrics(
    processes: Iterable[Sequence[dict[str, Any]]], departed: Iterable[Sequence[dict[str, Any]]] = ()
) -> list[dict[str, Any]]:
    """Merge the samples of several processes: a family for each name, a value for each set of labels.

    Counters and histograms are added up, including `departed` processes; gauges are combined as declared. The
    arguments are not changed.
    """
    merged: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[tuple[str, ...], Any]] = {}
    present = [family for process in processes for family in process]
    gone = [family for process in departed for family in process if family["kind"] != "gauge"]
    for family in present + gone:
        name = family["name"]
        first = merged.setdefault(name, family)
        if any(first[key] != family[key] for key in ("kind", "labels", "bounds")):
            # Of another version of the service: they cannot be added.
            continue
        sets = values.setdefault(name, {})
        for key, value in family["sets"]:
            before = sets.get(tuple(key))
            sets[tuple(key)] = value if before is None else _combine(family, before, value)
    return [
        {**family, "sets": [[list(key), each] for key, each in values[name].items()]} for name, family in merged.items()
    ]


def _combine(family: dict[str, Any], one: Any, other: Any) -> Any:
    if family["kind"] == "histogram":
        return [first + second for first, second in zip(one, other, strict=True)]
    return _COMBINE[family["combine"]](float(one), float(other))
