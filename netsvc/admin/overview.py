"""What the API shows: objects of plain data, made of what was seen in the processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netsvc.admin.samples import Sample
from netsvc.status import ConnectionQuery, Counts, ListenerStatus, ProcessStatus, merge, plain_data

__all__ = ["VERSION", "connections", "limits", "listeners", "overview", "refusals"]

#: Of the API. Fields may be added to the objects at any time; when one changes or goes, this number does.
VERSION = 1
#: Refusals that are listed.
MOST_REFUSALS = 100

#: The state of all is the first of these that one is in.
_STATES = ("draining", "stopped", "starting", "ready")


def overview(sample: Sample, not_ready: Sequence[str]) -> dict[str, Any]:
    """Show the processes, and what all have counted, those that have ended included."""
    states = {status.state for status in sample.statuses}
    return {
        "api": VERSION,
        "time": round(sample.time, 3),
        "state": next((state for state in _STATES if state in states), "starting"),
        "not_ready": list(not_ready),
        "processes": [_process(status) for status in sorted(sample.statuses, key=lambda each: each.worker)],
        "totals": plain_data(_totals(sample)),
    }


def _process(status: ProcessStatus) -> dict[str, Any]:
    return {
        "worker": status.worker,
        "pid": status.pid,
        "version": status.version,
        "started": status.started,
        "state": status.state,
        "open": status.open,
        "vitals": plain_data(status.vitals),
    }


def _totals(sample: Sample) -> Counts:
    totals = Counts()
    for listener in (*merge(sample.statuses), *sample.departed):
        totals.add(listener.counts)
    return totals


def listeners(sample: Sample, *, with_limits: bool = True) -> list[dict[str, Any]]:
    """List the listeners of all processes; what those that have ended have counted is in."""
    merged: Sequence[ListenerStatus] = merge(sample.statuses)
    departed = {listener.key: listener for listener in sample.departed}
    found = []
    for listener in merged:
        if listener.key in departed:
            listener.counts.add(departed[listener.key].counts)
        shown = plain_data(listener)
        if not with_limits:
            del shown["limits"]
        found.append(shown)
    return found


def limits(sample: Sample) -> list[dict[str, Any]]:
    """List the limits in force, listener by listener."""
    return [
        {
            "service": listener.service,
            "protocol": listener.protocol,
            "place": listener.place,
            "limits": plain_data(listener.limits),
        }
        for listener in merge(sample.statuses)
    ]


def connections(sample: Sample, query: ConnectionQuery) -> list[dict[str, Any]]:
    """List connections and sessions of all processes as `query` asks for."""
    found: list[dict[str, Any]] = plain_data(
        query.pick(each for status in sample.statuses for each in status.connections)
    )
    return found


def refusals(sample: Sample) -> list[dict[str, Any]]:
    """List the last ones, newest first."""
    found = [each for status in sample.statuses for each in status.refusals]
    found.sort(key=lambda each: each.time, reverse=True)
    shown: list[dict[str, Any]] = plain_data(found[:MOST_REFUSALS])
    return shown
