"""The metrics that netsvc has of its own: their names, kinds, labels, and what they say."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METRICS", "Metric", "rows"]


class Metric(NamedTuple):
    """A metric. `kind` is `counter`, `gauge` or `histogram`."""

    kind: str
    labels: tuple[str, ...]
    help: str


_LISTENER = ("service", "protocol", "listener")
_PROCESS = ("worker",)

#: By name. A connection is a session where a listener takes datagrams.
METRICS = {
    "netsvc_build_info": Metric("gauge", ("version",), "1; the version of netsvc is in the label"),
    "netsvc_listener_up": Metric("gauge", _LISTENER, "1 if the listener is open in every process, or 0"),
    "netsvc_connections_open": Metric("gauge", _LISTENER, "Connections and datagram sessions there are now"),
    "netsvc_connections_accepted_total": Metric("counter", _LISTENER, "Connections and sessions that have begun"),
    "netsvc_connections_ended_total": Metric(
        "counter", (*_LISTENER, "reason"), "Connections and sessions that have ended, by how"
    ),
    "netsvc_connections_refused_total": Metric(
        "counter", (*_LISTENER, "limit"), "Connections and sessions that were refused, by the limit"
    ),
    "netsvc_connections_reported_total": Metric(
        "counter", (*_LISTENER, "limit"), "Connections and sessions that a limit that only reports would have refused"
    ),
    "netsvc_connection_duration_seconds": Metric(
        "histogram", _LISTENER, "How long the connections and sessions that have ended lasted"
    ),
    "netsvc_listener_bytes_total": Metric("counter", (*_LISTENER, "direction"), "Bytes through the sockets, in or out"),
    "netsvc_listener_datagrams_total": Metric("counter", (*_LISTENER, "direction"), "Datagrams, in or out"),
    "netsvc_listener_dropped_total": Metric(
        "counter", _LISTENER, "Datagrams not sent, as the system had no room for them"
    ),
    "netsvc_listener_errors_total": Metric("counter", _LISTENER, "Exceptions that the protocol has raised"),
    "netsvc_process_ready": Metric("gauge", _PROCESS, "1 if the process serves, and all it shall, or 0"),
    "netsvc_process_draining": Metric("gauge", _PROCESS, "1 if the process lets its connections end, and stops, or 0"),
    "netsvc_process_loop_delay_seconds": Metric(
        "gauge", _PROCESS, "By how much the event loop was late when it was last measured"
    ),
    "netsvc_process_loop_delay_worst_seconds": Metric(
        "gauge", _PROCESS, "By how much the event loop was late at the worst in the last minute"
    ),
    "netsvc_process_open_fds": Metric("gauge", _PROCESS, "Descriptors that are open"),
    "netsvc_process_max_fds": Metric("gauge", _PROCESS, "Descriptors that may be open"),
    "netsvc_process_resident_memory_bytes": Metric("gauge", _PROCESS, "Memory that the process has in use"),
    "netsvc_process_cpu_seconds_total": Metric("counter", _PROCESS, "Processor time that the process has taken"),
    "netsvc_process_pending_calls": Metric("gauge", _PROCESS, "Calls that wait for their time"),
    "netsvc_process_start_time_seconds": Metric("gauge", _PROCESS, "When the process started, in seconds since 1970"),
}


def rows() -> list[tuple[str, str, str, str]]:
    """Return a row for a table of the metrics: name, kind, labels and meaning of each."""
    return [(name, metric.kind, ", ".join(metric.labels), metric.help) for name, metric in METRICS.items()]
