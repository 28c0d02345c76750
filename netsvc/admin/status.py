"""The status that the API shows: samples of all processes, taken once for simultaneous requests, and their JSON."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from netsvc.base.bucket import Bucket
from netsvc.plan.status import ConnectionQuery, Counts, ListenerStatus, ProcessStatus, merge, plain_data
from netsvc.server.interface import Operations

#: The version of the API. Fields may be added at any time; when one changes or is removed, this number changes.
VERSION = 1
#: A query without connections, the cheapest.
COUNTS = ConnectionQuery(most=0)
#: Queries that wait for their turn when too many samples are taken; another one is refused then.
MOST_KNOWN = 16
#: Samples a second, and at once: each reads all connections, which may take some milliseconds.
MOST_LOOKS, LOOKS_AT_ONCE = 10.0, 20.0
#: Refusals that are listed.
MOST_REFUSALS = 100

#: The overall state is the first of these that a process is in.
_STATES = ("draining", "stopped", "starting", "ready")


class TooManySamplesError(Exception):
    """More samples were requested than may be taken in this time."""


@dataclass
class Sample:
    """The status of all processes at one moment: `time` is the reactor's.

    A process that ends afterwards is not counted twice. `rendered` caches other forms of the sample, by their names.
    """

    time: float
    statuses: Sequence[ProcessStatus]
    departed: Sequence[ListenerStatus]
    departed_metrics: Sequence[dict[str, Any]] = ()
    rendered: dict[str, Any] = field(default_factory=dict)


class Samples:
    """Takes samples from `operations`, at most `MOST_LOOKS` a second."""

    def __init__(self, clock: Any, operations: Operations) -> None:
        self._clock = clock
        self._operations = operations
        self._bucket = Bucket(MOST_LOOKS, LOOKS_AT_ONCE, clock.seconds())
        #: The last queries, the newest at the end.
        self._known: OrderedDict[ConnectionQuery, None] = OrderedDict()
        #: The requests that the sample being taken answers, and the requests for the next one, by query.
        self._taking: dict[ConnectionQuery, list[Deferred[Sample]]] = {}
        self._next: dict[ConnectionQuery, list[Deferred[Sample]]] = {}
        self._calls: dict[ConnectionQuery, IDelayedCall] = {}

    def take(self, query: ConnectionQuery) -> Deferred[Sample]:
        """Return a sample that is begun now or later: it shows all that has happened before.

        Simultaneous requests get the same one. When too many are taken, the query waits; a new query fails with
        `TooManySamplesError`.
        """
        taken: Deferred[Sample] = Deferred()
        if query in self._next:
            self._next[query].append(taken)
            return taken
        if query in self._taking:
            self._next[query] = [taken]
            return taken
        if query not in self._known and self._bucket.wait(1, self._clock.seconds()):
            return fail(TooManySamplesError())
        self._next[query] = [taken]
        self._begin(query)
        return taken

    def _begin(self, query: ConnectionQuery) -> None:
        now = self._clock.seconds()
        wait = self._bucket.wait(1, now)
        if wait:
            self._calls[query] = self._clock.callLater(wait, self._begin, query)
            return
        self._calls.pop(query, None)
        self._bucket.take(1, now)
        self._known[query] = None
        self._known.move_to_end(query)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self._taking[query] = self._next.pop(query)
        self._operations.status(query).addCallback(self._sample).addBoth(self._taken, query)

    def _sample(self, statuses: Sequence[ProcessStatus]) -> Sample:
        operations = self._operations
        return Sample(self._clock.seconds(), statuses, operations.departed(), operations.departed_metrics())

    def _taken(self, result: Sample | Failure, query: ConnectionQuery) -> None:
        for each in self._taking.pop(query):
            each.callback(result)
        if query in self._next and query not in self._taking:
            self._begin(query)

    def close(self) -> None:
        """Take no more samples. Requests that wait for one get no answer."""
        while self._calls:
            self._calls.popitem()[1].cancel()


def overview(sample: Sample, not_ready: Sequence[str]) -> dict[str, Any]:
    """Return the processes, and the totals of all, including processes that have ended."""
    states = {status.state for status in sample.statuses}
    totals = Counts()
    for listener in (*merge(sample.statuses), *sample.departed):
        totals.add(listener.counts)
    return {
        "api": VERSION,
        "time": round(sample.time, 3),
        "state": next((state for state in _STATES if state in states), "starting"),
        "not_ready": list(not_ready),
        "processes": [_process(status) for status in sorted(sample.statuses, key=lambda each: each.worker)],
        "totals": plain_data(totals),
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


def listeners(sample: Sample, *, with_limits: bool = True) -> list[dict[str, Any]]:
    """List the listeners of all processes; their counts include processes that have ended."""
    departed = {listener.key: listener for listener in sample.departed}
    found = []
    for listener in merge(sample.statuses):
        if listener.key in departed:
            listener.counts.add(departed[listener.key].counts)
        shown = plain_data(listener)
        if not with_limits:
            del shown["limits"]
        found.append(shown)
    return found


def limits(sample: Sample) -> list[dict[str, Any]]:
    """List the limits in force, by listener."""
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
    """List the connections and sessions of all processes that match `query`."""
    found: list[dict[str, Any]] = plain_data(
        query.pick(each for status in sample.statuses for each in status.connections)
    )
    return found


def refusals(sample: Sample) -> list[dict[str, Any]]:
    """List the last refusals, newest first."""
    found = [each for status in sample.statuses for each in status.refusals]
    found.sort(key=lambda each: each.time, reverse=True)
    shown: list[dict[str, Any]] = plain_data(found[:MOST_REFUSALS])
    return shown
