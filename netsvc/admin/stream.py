"""The event stream of the admin address: the status, once a second, as server-sent events.

The events (HTML standard, section 9.2) are `history`, once: a list of points; `limits`, once and after a change; and
`status`, each with the next point.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.admin import status
from netsvc.admin.history import History
from netsvc.admin.http import AdminExchange, to_json
from netsvc.admin.status import COUNTS, Sample, Samples, TooManySamplesError
from netsvc.plan.status import ConnectionQuery
from netsvc.server.interface import Operations

#: Simultaneous clients.
MOST_WATCHERS = 16
#: Seconds between two events; without clients, one point of the history is made in so many of these.
INTERVAL, UNWATCHED = 1.0, 2
#: Different queries that are answered at a time; if there are more, they take turns.
MOST_QUERIES = 4
#: Seconds after which a client that does not read is disconnected.
PATIENCE = 30.0


class _Watcher:
    """A client of the stream. Events that it does not read in time are dropped; nothing waits for it."""

    def __init__(self, exchange: AdminExchange, query: ConnectionQuery, clock: Any) -> None:
        self.query = query
        self._exchange = exchange
        self._clock = clock
        self._paused_at: float | None = None
        self._last_limits = self._last_status = b""

    def start(self) -> None:
        self._exchange.stream("text/event-stream", {"X-Accel-Buffering": "no"})
        self._exchange.producer = self

    def send(self, kind: str, data: bytes) -> None:
        if self._paused_at is None and self._exchange.waiting:
            self._exchange.write(b"event: %s\ndata: %s\n\n" % (kind.encode(), data))
        elif self._paused_at is not None and self._clock.seconds() - self._paused_at > PATIENCE:
            self.drop()

    def send_status(self, status: bytes, limits: bytes) -> None:
        if status == self._last_status:
            # A new client got it at once, less than a second ago.
            return
        self._last_status = status
        if limits != self._last_limits and self._paused_at is None:
            self._last_limits = limits
            self.send("limits", limits)
        self.send("status", status)

    def drop(self) -> None:
        self._exchange.connection.abort()

    def pauseProducing(self) -> None:
        self._paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        self._paused_at = None


_log = Logger(namespace="netsvc.admin")


class EventStream:
    """Keeps the history, and sends it and the status, read through `samples`, to the clients."""

    def __init__(self, clock: Any, samples: Samples, operations: Operations) -> None:
        self.history = History()
        self._clock = clock
        self.samples = samples
        self._operations = operations
        self._watchers: dict[_Watcher, None] = {}
        self._turn = 0
        self._is_sampling = False
        self._has_failed = False
        self._calls = LoopingCall(self._next)
        self._calls.clock = clock

    def start(self) -> None:
        """Start keeping the history."""
        self._calls.start(INTERVAL)

    def stop(self) -> None:
        """Stop keeping the history and disconnect all clients."""
        if self._calls.running:
            self._calls.stop()
        self.samples.close()
        for watcher in list(self._watchers):
            watcher.drop()

    def watch(self, exchange: AdminExchange, query: ConnectionQuery) -> bool:
        """Send events to a client from now on. Return False if there are too many clients."""
        if len(self._watchers) >= MOST_WATCHERS:
            return False
        watcher = _Watcher(exchange, query, self._clock)
        self._watchers[watcher] = None
        exchange.when_ended(lambda: self._watchers.pop(watcher, None))
        watcher.start()
        watcher.send("history", to_json(list(self.history.points)))
        self._sample(query)
        return True

    def _next(self) -> None:
        self._turn += 1
        # A process may be slow to answer.
        if self._is_sampling or (not self._watchers and self._turn % UNWATCHED):
            return
        queries = list(dict.fromkeys(watcher.query for watcher in self._watchers)) or [COUNTS]
        if len(queries) > MOST_QUERIES:
            first = self._turn * MOST_QUERIES % len(queries)
            queries = (queries[first:] + queries[:first])[:MOST_QUERIES]
        self._is_sampling = True
        DeferredList([self._sample(query) for query in queries]).addCallback(self._sampled)

    def _sampled(self, _result: object) -> None:
        self._is_sampling = False

    def _sample(self, query: ConnectionQuery) -> Deferred[None]:
        return self.samples.take(query).addCallback(self._send, query).addErrback(self._failed)

    def _send(self, sample: Sample, query: ConnectionQuery) -> None:
        self.history.add(sample)
        watchers = [watcher for watcher in self._watchers if watcher.query == query]
        if not watchers:
            return
        limits = to_json(status.limits(sample))
        event = to_json(
            {
                **status.overview(sample, self._operations.not_ready()),
                "listeners": status.listeners(sample, with_limits=False),
                "connections": status.connections(sample, query),
                "refusals": status.refusals(sample),
                "point": self.history.points[-1],
            }
        )
        for watcher in watchers:
            watcher.send_status(event, limits)
        self._has_failed = False

    def _failed(self, failure: Failure) -> None:
        # Logged once: the next event is due in a second.
        if not self._has_failed and not failure.check(TooManySamplesError):
            self._has_failed = True
            _log.failure("cannot read the status for the admin page", failure)
