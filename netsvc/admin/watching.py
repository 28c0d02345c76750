"""Tells everybody who watches what happens, once a second, as server-sent events.

The events (HTML standard, section 9.2) are `history`, at first: a list of points; `limits`, at first and when they have
changed; and `status`, of which each has one point more.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import OK
from zope.interface import implementer

from netsvc.admin import overview
from netsvc.admin.history import History
from netsvc.admin.samples import COUNTS, BusyError, Sample, Samples
from netsvc.admin.wire import AdminRequest, to_json
from netsvc.host.operations import Operations
from netsvc.status import ConnectionQuery

__all__ = ["INTERVAL", "MOST_WATCHERS", "PATIENCE", "Watching"]

#: Who may watch at a time.
MOST_WATCHERS = 16
#: Seconds between two events; and between two points of the history while nobody watches, as a number of those.
INTERVAL, UNWATCHED = 1.0, 2
#: Different questions that are answered in one turn; where there are more, each gets its turn.
MOST_QUESTIONS = 4
#: Seconds for which a watcher need not read.
PATIENCE = 30.0


@implementer(IPushProducer)
class _Watcher:
    """Somebody who watches. What it does not read in time it does not get: nothing waits for it."""

    def __init__(self, request: AdminRequest, query: ConnectionQuery, clock: Any) -> None:
        self.query = query
        self._request = request
        self._clock = clock
        self._paused_at: float | None = None
        self._limits = self._status = b""

    def start(self) -> None:
        self._request.head(OK, "text/event-stream", {"X-Accel-Buffering": "no"})
        self._request.channel.go_on()
        self._request.registerProducer(self, True)

    def tell(self, kind: str, data: bytes) -> None:
        if self._paused_at is None and self._request.waiting:
            self._request.write(b"event: %s\ndata: %s\n\n" % (kind.encode(), data))
        elif self._paused_at is not None and self._clock.seconds() - self._paused_at > PATIENCE:
            self.drop()

    def tell_status(self, status: bytes, limits: bytes) -> None:
        if status == self._status:
            # Whoever has just come was told at once, and another second has not gone by.
            return
        self._status = status
        if limits != self._limits and self._paused_at is None:
            self._limits = limits
            self.tell("limits", limits)
        self.tell("status", status)

    def drop(self) -> None:
        self._request.channel.abort()

    def pauseProducing(self) -> None:
        self._paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        self._paused_at = None

    def stopProducing(self) -> None:
        """The connection is gone: `Request.notifyFinish` says so as well."""


_log = Logger(namespace="netsvc.admin")


class Watching:
    """Keeps the history, and tells it, with what there is now, of which `samples` are taken."""

    def __init__(self, clock: Any, samples: Samples, operations: Operations) -> None:
        self.history = History()
        self._clock = clock
        self.samples = samples
        self._operations = operations
        self._watchers: dict[_Watcher, None] = {}
        self._turn = 0
        self._looking = False
        self._fails = False
        self._calls = LoopingCall(self._next)
        self._calls.clock = clock

    def start(self) -> None:
        """Begin to keep the history."""
        self._calls.start(INTERVAL)

    def stop(self) -> None:
        """Keep nothing any more, and tell nobody."""
        if self._calls.running:
            self._calls.stop()
        for watcher in list(self._watchers):
            watcher.drop()

    def watch(self, request: AdminRequest, query: ConnectionQuery) -> bool:
        """Tell whoever has asked from now on; not if there are too many."""
        if len(self._watchers) >= MOST_WATCHERS:
            return False
        watcher = _Watcher(request, query, self._clock)
        self._watchers[watcher] = None
        request.notifyFinish().addBoth(lambda _result: self._watchers.pop(watcher, None))
        watcher.start()
        watcher.tell("history", to_json(list(self.history.points)))
        self._look(query)
        return True

    def _next(self) -> None:
        self._turn += 1
        # A process may take its time to answer.
        if self._looking or (not self._watchers and self._turn % UNWATCHED):
            return
        queries = list(dict.fromkeys(watcher.query for watcher in self._watchers)) or [COUNTS]
        if len(queries) > MOST_QUESTIONS:
            first = self._turn * MOST_QUESTIONS % len(queries)
            queries = (queries[first:] + queries[:first])[:MOST_QUESTIONS]
        self._looking = True
        DeferredList([self._look(query) for query in queries]).addCallback(self._looked)

    def _looked(self, _result: object) -> None:
        self._looking = False

    def _look(self, query: ConnectionQuery) -> Deferred[None]:
        return self.samples.look(query).addCallback(self._tell, query).addErrback(self._not_told)

    def _tell(self, sample: Sample, query: ConnectionQuery) -> None:
        self.history.add(sample)
        watchers = [watcher for watcher in self._watchers if watcher.query == query]
        if not watchers:
            return
        limits = to_json(overview.limits(sample))
        status = to_json(
            {
                **overview.overview(sample, self._operations.not_ready()),
                "listeners": overview.listeners(sample, with_limits=False),
                "connections": overview.connections(sample, query),
                "refusals": overview.refusals(sample),
                "point": self.history.points[-1],
            }
        )
        for watcher in watchers:
            watcher.tell_status(status, limits)
        self._fails = False

    def _not_told(self, failure: Failure) -> None:
        # The next event comes a second later, and so would the next line in the log.
        if not self._fails and not failure.check(BusyError):
            self._fails = True
            _log.failure("the admin page cannot be told what happens", failure)
