"""Writes the metrics of all processes for Prometheus, in its text format or as OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from netsvc.base.text import plain
from netsvc.metrics import merge_metrics
from netsvc.plan.catalog import METRICS
from netsvc.plan.catalog import Metric as Declared
from netsvc.plan.status import DURATIONS, Counts, ListenerStatus, ProcessStatus, merge

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

#: The content types of Prometheus's own format, and of OpenMetrics.
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

#: Values of the label `direction`.
_DIRECTIONS = ("in", "out")


def exposition(
    statuses: Sequence[ProcessStatus],
    departed: Sequence[ListenerStatus] = (),
    accept: str = "",
    departed_metrics: Iterable[Sequence[dict[str, Any]]] = (),
) -> tuple[bytes, str]:
    """Return all metrics, netsvc's own (`METRICS`) and the metrics of services, and their content type.

    Counters are sums over the running processes and the `departed` ones, so that they never go down. `accept` is
    the header of the request: OpenMetrics is written if it names it.
    """
    # Imported on the first request, as many processes never get one.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(_families(statuses, departed, departed_metrics)))
    if _wants_openmetrics(accept):
        # No name of ours needs escaping, and checking every letter would take longer than all the rest.
        encode, _ = choose_encoder(f"{OPENMETRICS}; escaping=allow-utf-8")
        return encode(registry), OPENMETRICS
    return generate_latest(registry), TEXT


def _wants_openmetrics(accept: str) -> bool:
    for part in accept.lower().split(","):
        media, *parameters = (each.strip() for each in part.split(";"))
        if media == "application/openmetrics-text" and not {"q=0", "q=0.0"} & set(parameters):
            return True
    return False


class _Collector:
    """Gives the metrics to the library."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(
    statuses: Sequence[ProcessStatus],
    departed: Sequence[ListenerStatus],
    departed_metrics: Iterable[Sequence[dict[str, Any]]],
) -> Iterator[Metric]:
    samples: dict[str, list[tuple[Sequence[str], Any]]] = {name: [] for name in METRICS}
    for name, labels, value in (*_of_processes(statuses), *_of_listeners(statuses, departed)):
        samples[name].append((labels, value))
    for name, metric in METRICS.items():
        yield _family(name, metric, DURATIONS, samples[name])
    for each in merge_metrics([status.metrics for status in statuses], departed_metrics):
        declared = Declared(each["kind"], each["labels"], each["help"])
        yield _family(each["name"], declared, each["bounds"], each["sets"])


def _of_processes(statuses: Sequence[ProcessStatus]) -> Iterator[tuple[str, Sequence[str], Any]]:
    for version in sorted({status.version for status in statuses}):
        yield "netsvc_build_info", (version,), 1
    # While a worker is replaced, two have the same number: the newer one is shown.
    workers = {status.worker: status for status in sorted(statuses, key=lambda status: status.started)}
    for number, status in sorted(workers.items()):
        vitals = status.vitals
        for name, value in {
            "ready": status.state == "ready" and not status.not_ready,
            "draining": status.state == "draining",
            "loop_delay_seconds": vitals.delay,
            "loop_delay_worst_seconds": vitals.worst_delay,
            "open_fds": vitals.descriptors,
            "max_fds": vitals.descriptors_limit,
            "resident_memory_bytes": vitals.memory,
            "cpu_seconds_total": vitals.cpu,
            "pending_calls": vitals.calls,
            "start_time_seconds": status.started,
        }.items():
            yield f"netsvc_process_{name}", (str(number),), value


def _of_listeners(
    statuses: Sequence[ProcessStatus], departed: Sequence[ListenerStatus]
) -> Iterator[tuple[str, Sequence[str], Any]]:
    listeners = merge(statuses)
    up: dict[tuple[str, ...], bool] = {}
    totals: dict[tuple[str, ...], tuple[str, Counts]] = {}
    for listener in (*listeners, *departed):
        # A series must not occur twice: the labels as written are the key.
        labels = tuple(map(plain, listener.key))
        totals.setdefault(labels, (listener.kind, Counts()))[1].add(listener.counts)
    for listener in listeners:
        labels = tuple(map(plain, listener.key))
        up[labels] = listener.up and up.get(labels, True)
    for labels, is_up in up.items():
        yield "netsvc_listener_up", labels, is_up
    for labels, (kind, counts) in totals.items():
        yield "netsvc_connections_open", labels, counts.open
        yield "netsvc_connections_accepted_total", labels, counts.accepted
        yield "netsvc_connection_duration_seconds", labels, [counts.seconds, *counts.durations]
        yield "netsvc_listener_errors_total", labels, counts.errors
        for name, by in (("ended", counts.ended), ("refused", counts.refused), ("reported", counts.reported)):
            for why, count in by.items():
                yield f"netsvc_connections_{name}_total", (*labels, plain(why)), count
        for direction, count in zip(_DIRECTIONS, (counts.bytes_in, counts.bytes_out), strict=True):
            yield "netsvc_listener_bytes_total", (*labels, direction), count
        if kind == "datagram":
            yield "netsvc_listener_dropped_total", labels, counts.dropped
            for direction, count in zip(_DIRECTIONS, (counts.datagrams_in, counts.datagrams_out), strict=True):
                yield "netsvc_listener_datagrams_total", (*labels, direction), count


def _family(
    name: str, declared: Declared, bounds: Sequence[float], samples: Iterable[tuple[Sequence[str], Any]]
) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    kind, labels, description = declared
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, description, labels=labels)
        written = [*map(floatToGoString, bounds), "+Inf"]
        for key, (total, *counts) in samples:
            histogram.add_metric(key, list(zip(written, accumulate(counts), strict=True)), total)
        return histogram
    family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, description, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family
