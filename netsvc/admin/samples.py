"""Looks at the processes, once for everybody who asks in the same moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from netsvc.guard.buckets import Bucket
from netsvc.host.operations import Operations
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus

__all__ = ["COUNTS", "FRESH", "BusyError", "Sample", "Samples"]

#: Asks for no connections, which costs least.
COUNTS = ConnectionQuery(most=0)
#: Seconds for which a sample is good for others who ask the same.
FRESH = 0.5
#: Different questions that are remembered.
MOST_KEPT = 16
#: Looks a second, and at once: each goes over all connections, and may take some milliseconds.
MOST_LOOKS, LOOKS_AT_ONCE = 10.0, 20.0


class BusyError(Exception):
    """More has been asked than there is time to look for."""


@dataclass
class Sample:
    """What was seen: when, by the reactor's clock, in each process, and of those that have ended.

    All of one moment: a process that ends right after it is not counted twice.
    `rendered` has what others have made of it, by names of theirs.
    """

    time: float
    statuses: Sequence[ProcessStatus]
    departed: Sequence[ListenerStatus]
    departed_metrics: Sequence[dict[str, Any]] = ()
    rendered: dict[str, Any] = field(default_factory=dict)


class Samples:
    """Looks at what `operations` shows, at most `MOST_LOOKS` times a second."""

    def __init__(self, clock: Any, operations: Operations) -> None:
        self._clock = clock
        self._operations = operations
        self._bucket = Bucket(MOST_LOOKS, LOOKS_AT_ONCE, clock.seconds())
        self._kept: OrderedDict[ConnectionQuery, Sample] = OrderedDict()
        self._waiting: dict[ConnectionQuery, list[Deferred[Sample]]] = {}

    def look(self, query: ConnectionQuery) -> Deferred[Sample]:
        """Return what is there now, or was a moment ago. Fails with `BusyError`."""
        now = self._clock.seconds()
        for known, sample in self._kept.items():
            # Whoever asks for counts alone is served by any.
            if (known == query or query.most == 0) and 0 <= now - sample.time < FRESH:
                return succeed(sample)
        waiting = self._waiting.get(query)
        if waiting is None:
            if self._bucket.wait(1, now):
                return fail(BusyError())
            self._bucket.take(1, now)
            waiting = self._waiting[query] = []
            found: Deferred[Sample] = Deferred()
            waiting.append(found)
            self._operations.status(query).addCallback(self._seen, query)
            return found
        found = Deferred()
        waiting.append(found)
        return found

    def _seen(self, statuses: Sequence[ProcessStatus], query: ConnectionQuery) -> None:
        operations = self._operations
        sample = Sample(self._clock.seconds(), statuses, operations.departed(), operations.departed_metrics())
        self._kept[query] = sample
        self._kept.move_to_end(query)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        for each in self._waiting.pop(query):
            each.callback(sample)
