"""The metrics of netsvc itself: names, kinds, labels and help texts."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric. `kind` is `counter`, `gauge` or `histogram`."""

    kind: str
    labels: tuple[str, ...]
    help: str


_LISTENER = ("service", "protocol", "listener")
_PROCESS = ("worker",)

#: By name. For a datagram listener, connections are sessions.
METRICS = {
    "netsvc_build_info": Metric("gauge", ("version",), "Always 1; the label is the version of netsvc"),
    "netsvc_listener_up": Metric("gauge", _LISTENER, "1 if the listener is open in every process, otherwise 0"),
    "netsvc_connections_open": Metric("gauge", _LISTENER, "Open connections and datagram sessions"),
    "netsvc_connections_accepted_total": Metric("counter", _LISTENER, "Accepted connections and sessions"),
    "netsvc_connections_ended_total": Metric(
        "counter", (*_LISTENER, "reason"), "Ended connections and sessions, by reason"
    ),
    "netsvc_connections_refused_total": Metric(
        "counter", (*_LISTENER, "limit"), "Refused connections and sessions, by limit"
    ),
    "netsvc_connections_reported_total": Metric(
        "counter", (*_LISTENER, "limit"), "Connections and sessions that a dry-run limit would have refused"
    ),
    "netsvc_connection_duration_seconds": Metric("histogram", _LISTENER, "Duration of ended connections and sessions"),
    "netsvc_listener_bytes_total": Metric("counter", (*_LISTENER, "direction"), "Bytes received and sent"),
    "netsvc_listener_datagrams_total": Metric("counter", (*_LISTENER, "direction"), "Datagrams received and sent"),
    "netsvc_listener_dropped_total": Metric(
        "counter", _LISTENER, "Datagrams that were not sent, because the system had no buffer for them"
    ),
    "netsvc_listener_errors_total": Metric("counter", _LISTENER, "Exceptions raised by the protocol"),
    "netsvc_process_ready": Metric("gauge", _PROCESS, "1 if the process is ready, otherwise 0"),
    "netsvc_process_draining": Metric("gauge", _PROCESS, "1 if the process is draining, otherwise 0"),
    "netsvc_process_loop_delay_seconds": Metric("gauge", _PROCESS, "Delay of the event loop at the last measurement"),
    "netsvc_process_loop_delay_worst_seconds": Metric(
        "gauge", _PROCESS, "Longest delay of the event loop in the last minute"
    ),
    "netsvc_process_open_fds": Metric("gauge", _PROCESS, "Open file descriptors"),
    "netsvc_process_max_fds": Metric("gauge", _PROCESS, "Maximum number of open file descriptors"),
    "netsvc_process_resident_memory_bytes": Metric("gauge", _PROCESS, "Resident memory"),
    "netsvc_process_cpu_seconds_total": Metric("counter", _PROCESS, "User and system CPU time"),
    "netsvc_process_pending_calls": Metric("gauge", _PROCESS, "Pending delayed calls"),
    "netsvc_process_start_time_seconds": Metric(
        "gauge", _PROCESS, "Start time of the process, in seconds since the epoch"
    ),
}


def rows() -> list[tuple[str, str, str, str]]:
    """Return a table row for each metric: name, kind, labels and help text."""
    return [(name, metric.kind, ", ".join(metric.labels), metric.help) for name, metric in METRICS.items()]
