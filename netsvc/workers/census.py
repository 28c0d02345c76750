"""What all workers see together, and what those that have ended had counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed

from netsvc.metrics import merge_metrics
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus, merge, merge_listeners
from netsvc.workers.slot import Slot

__all__ = ["MOST_DEPARTED", "MOST_DEPARTED_METRICS", "Census"]

#: Listeners of workers that have ended whose counts are kept, and sets of labels of each of their metrics: those of
#: many plans, one after the other.
MOST_DEPARTED = 4096
#: Metrics of plugins in them.
MOST_DEPARTED_METRICS = 1000


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
        inquiries = self._inquiries()

        def answered(answers: list[Any]) -> list[ProcessStatus]:
            # One that has ended while others were waited for is among the departed by now.
            there = self._inquiries()
            found = zip(inquiries, answers, strict=True)
            # What each has counted is the last that is known of it, as is what it has counted and shows no more.
            return [
                replace(status, listeners=inquiry.last.listeners)
                for inquiry, (_, status) in found
                if status is not None and inquiry in there
            ]

        return DeferredList([inquiry.status(query) for inquiry in inquiries]).addCallback(answered)

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Have whoever has a connection close it. Tell whether anybody had."""
        pid = connection.partition("-")[0]
        for slot in self._slots():
            if slot.child is not None and str(slot.child.pid) == pid:
                return slot.child.inquiry.close_connection(connection)
        return succeed(False)

    def departed_from(self, last: ProcessStatus) -> None:
        """Count on with what a process that has ended had counted. Nobody is open there any more."""
        # The newest first, and those stay: they are of the plan that runs. What was given may be in somebody's sample.
        self._departed = merge([last, ProcessStatus("", 0, 0.0, listeners=self._departed)])[:MOST_DEPARTED]
        for listener in self._departed:
            listener.counts.open = 0
        self._metrics = merge_metrics([], [last.metrics, self._metrics])[:MOST_DEPARTED_METRICS]
        for family in self._metrics:
            del family["sets"][MOST_DEPARTED:]

    def departed_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of plugins that those that have ended had."""
        return self._metrics

    def departed(self) -> list[ListenerStatus]:
        """Return what those that have ended had counted, and what listeners had that are gone from those that run."""
        gone = [listener for inquiry in self._inquiries() for listener in inquiry.departed]
        return merge_listeners([*gone, *self._departed]) if gone else self._departed
