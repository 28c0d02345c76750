"""What `netsvc status` knows: one look at a running netsvc, and what changes from look to look."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from netsvc.host.commands import read_statuses
from netsvc.host.control import Answer
from netsvc.status import ConnectionQuery, ConnectionStatus, Counts, ListenerStatus, ProcessStatus, Vitals, merge

__all__ = ["SAMPLES", "Key", "Look", "Rate", "Rates", "look"]

#: Looks of which the rates are kept: one a second makes five minutes.
SAMPLES = 300
#: Seconds. Of a shorter time, a rate says little.
SHORTEST = 0.5

#: Of a listener: `ListenerStatus.key`.
Key = tuple[str, str, str]


class Rate(NamedTuple):
    """Bytes a second, each way."""

    received: float = 0.0
    sent: float = 0.0


@dataclass(frozen=True)
class Look:
    """What was seen at `time`, in seconds of any steady clock.

    `listeners` are those of all processes, each once. `totals` is what they have counted, and those that have ended.
    """

    time: float
    processes: list[ProcessStatus]
    listeners: list[ListenerStatus]
    totals: Counts

    @property
    def state(self) -> str:
        """What all processes are, or that of them which says most."""
        states = {process.state for process in self.processes}
        return next((state for state in ("draining", "starting", "stopped") if state in states), "ready")

    @property
    def vitals(self) -> Vitals:
        """How the processes are: the worst delay and the fullest table of descriptors, and the sums of the rest."""
        each = [process.vitals for process in self.processes] or [Vitals()]
        fullest = max(each, key=lambda one: one.descriptors / (one.descriptors_limit or 1))
        return Vitals(
            delay=max(one.delay for one in each),
            worst_delay=max(one.worst_delay for one in each),
            descriptors=fullest.descriptors,
            descriptors_limit=fullest.descriptors_limit,
            memory=sum(one.memory for one in each),
            cpu=sum(one.cpu for one in each),
        )

    def connections(self, order: str) -> list[ConnectionStatus]:
        """Put all connections that were listed in an order of `netsvc.status.ORDERS`."""
        query = ConnectionQuery(sys.maxsize, order)
        return query.pick(each for process in self.processes for each in process.connections)

    def to_json(self) -> dict[str, Any]:
        """Make it the object that `netsvc status --json` writes: names as in `netsvc.status`."""
        whole = ProcessStatus("", 0, 0.0, listeners=[*self.listeners, ListenerStatus("", "", "", "", "")])
        whole.listeners[-1].counts = self.totals
        *listeners, totals = whole.to_json()["listeners"]
        processes = [process.to_json() for process in self.processes]
        return {"processes": processes, "listeners": listeners, "totals": totals["counts"]}


def look(answer: Answer, time: float) -> Look:
    """Make a look of the answer to the command `status`. Raises `ValueError` if it is something else."""
    processes, departed = read_statuses(answer)
    there = {listener.key for process in processes for listener in process.listeners}
    merged = merge([*processes, ProcessStatus("", 0, 0.0, listeners=departed)])
    totals = Counts()
    for listener in merged:
        totals.add(listener.counts)
    return Look(time, processes, [listener for listener in merged if listener.key in there], totals)


class Rates:
    """How fast bytes come and go, all in all over the last looks, and by listener since the last one."""

    def __init__(self) -> None:
        self.totals: deque[Rate] = deque(maxlen=SAMPLES)
        self.listeners: Mapping[Key, Rate] = {}
        #: Of one core, how much is used.
        self.cpu = 0.0
        self._before: Look | None = None

    def add(self, look: Look) -> None:
        """Take in a look."""
        before = self._before
        if before is None:
            self._before = look
            return
        seconds = look.time - before.time
        if seconds < SHORTEST:
            return
        self._before = look
        self.totals.append(_rate(before.totals, look.totals, seconds))
        counts = {listener.key: listener.counts for listener in before.listeners}
        self.listeners = {
            listener.key: _rate(counts[listener.key], listener.counts, seconds)
            for listener in look.listeners
            if listener.key in counts
        }
        self.cpu = max(0.0, look.vitals.cpu - before.vitals.cpu) / seconds


def _rate(before: Counts, after: Counts, seconds: float) -> Rate:
    # A new process counts from the begin.
    return Rate(
        max(0, after.bytes_in - before.bytes_in) / seconds,
        max(0, after.bytes_out - before.bytes_out) / seconds,
    )
