"""What all workers see together, and what those that have ended had counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed

from netsvc.metrics import merge_metrics
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus, merge
from netsvc.workers.slot import Slot

__all__ = ["MOST_DEPARTED", "Census"]

#: Listeners of workers that have ended whose counts are kept: those of many plans, one after the other.
MOST_DEPARTED = 4096


class Census:
    """Asks every worker that there is. `slots` returns their places, those of earlier plans included."""

    def __init__(self, slots: Callable[[], Sequence[Slot]]) -> None:
        self._slots = slots
        self._departed: list[ListenerStatus] = []
        self._metrics: list[dict[str, Any]] = []

    def _inquiries(self) -> list[Any]:
        return [slot.child.inquiry for slot in self._slots() if slot.child is not None]

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """Ask each how it is; of who does not answer in time, the last is told that is known."""
        asked = DeferredList([inquiry.status(query) for inquiry in self._inquiries()])
        return asked.addCallback(lambda answers: [status for _, status in answers if status is not None])

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Have whoever has a connection close it. Tell whether anybody had."""
        pid = connection.partition("-")[0]
        for slot in self._slots():
            if slot.child is not None and str(slot.child.pid) == pid:
                return slot.child.inquiry.close_connection(connection)
        return succeed(False)

    def departed_from(self, last: ProcessStatus) -> None:
        """Count on with what a process that has ended had counted. Nobody is open there any more."""
        for listener in last.listeners:
            listener.counts.open = 0
        # Those that come last stay: of the plan that runs.
        self._departed = merge([ProcessStatus("", 0, 0.0, listeners=self._departed), last])[-MOST_DEPARTED:]

        self._metrics = merge_metrics([], [self._metrics, last.metrics])

    def departed_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of plugins that those that have ended had."""
        return self._metrics

    def departed(self) -> list[ListenerStatus]:
        """Return what those that have ended had counted."""
        return self._departed
