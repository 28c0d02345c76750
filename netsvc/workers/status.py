"""Collects the status of all workers: requests `ask NUMBER JSON` to each, answers with that number, and totals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed

from netsvc.metrics import merge_metrics
from netsvc.plan.status import (
    ConnectionQuery,
    ListenerStatus,
    ProcessStatus,
    merge,
    merge_listeners,
    plain_data,
    read_listeners,
    read_status,
)
from netsvc.workers.channel import LONGEST_REPORT, report

#: Seconds for a worker to answer. A stuck worker must not hide the status of the others.
PATIENCE = 2.0
#: Unanswered requests to one worker, which may not have read any of them.
MOST_QUESTIONS = 64
#: Listeners of ended workers whose counts are kept, and label sets of each of their metrics: enough for many successive
#: plans.
MOST_DEPARTED = 4096
#: Metrics of ended workers that are kept.
MOST_DEPARTED_METRICS = 1000


class Inquiry:
    """The requests to one worker. `order` sends it an order; `last` is its last known status."""

    def __init__(self, clock: Any, order: Callable[[bytes], None]) -> None:
        self.last: ProcessStatus | None = None
        #: The counts, at the time of `last`, of listeners that the worker no longer has.
        self.departed: list[ListenerStatus] = []
        self._clock = clock
        self._order = order
        #: The numbers of the last request and of the last answered request.
        self._number = self._heard = 0
        self._waiting: dict[str, tuple[Deferred[Any], Any]] = {}

    def status(self, query: ConnectionQuery) -> Deferred[ProcessStatus | None]:
        """Request the status. If the worker does not answer in time, fires with the last known status, or None.

        Without the last known status, the sums over all workers would decrease.
        """
        asked: Deferred[Any] = self._ask({"status": asdict(query)})
        return asked.addCallback(self._read)

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Request that a connection be closed. Fires with whether the worker had it."""
        asked: Deferred[Any] = self._ask({"close": connection})
        return asked.addCallback(lambda answered: answered is True)

    def _read(self, answered: Any) -> ProcessStatus | None:
        try:
            return self._note(answered)
        except ValueError:
            return self.last

    def _note(self, read: Any) -> ProcessStatus:
        status = read_status(read)
        self.departed = read_listeners(read.get("departed", ()))
        self.last = status
        return status

    def all_counted(self) -> ProcessStatus | None:
        """Return the last known status, including listeners that it no longer has; None if nothing is known."""
        return self.last and replace(self.last, listeners=[*self.last.listeners, *self.departed])

    def _ask(self, request: dict[str, Any]) -> Deferred[Any]:
        if self._number - self._heard >= MOST_QUESTIONS:
            # The oldest requests have timed out, and are still in the pipe or wait for room there.
            return succeed(None)
        self._number += 1
        number = str(self._number)
        waiting: Deferred[Any] = Deferred()
        self._waiting[number] = waiting, self._clock.callLater(PATIENCE, self._settle, number, None)
        self._order(b"ask %s %s\n" % (number.encode(), json.dumps(request).encode()))
        return waiting

    def _settle(self, number: str, answered: Any) -> None:
        if number in self._waiting:
            waiting, call = self._waiting.pop(number)
            if call.active():
                call.cancel()
            waiting.callback(answered)

    def answered(self, number: str, text: str) -> None:
        """Process an answer. A late answer is dropped; a truncated one counts as none."""
        try:
            read = json.loads(text)
        except ValueError:
            read = None
        if number.isascii() and number.isdigit():
            self._heard = max(self._heard, min(int(number[:20]), self._number))
        self._settle(number, read)

    def final_status(self, text: str) -> None:
        """Process the last status that the worker reports before it ends."""
        with suppress(ValueError):
            self._note(json.loads(text))

    def close(self) -> None:
        """Stop waiting for answers."""
        for number in list(self._waiting):
            self._settle(number, None)


class Totals:
    """Requests the status of every worker, and keeps the counts of ended workers.

    `inquiries` returns pid and inquiry of each running worker, including workers of earlier plans.
    """

    def __init__(self, inquiries: Callable[[], Sequence[tuple[int, Inquiry]]]) -> None:
        self._all = inquiries
        self._departed: list[ListenerStatus] = []
        self._metrics: list[dict[str, Any]] = []

    def _inquiries(self) -> list[Inquiry]:
        return [inquiry for _, inquiry in self._all()]

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """Return the status of each worker. For a worker that does not answer in time, it is the last known status."""
        inquiries = self._inquiries()

        def answered(answers: list[Any]) -> list[ProcessStatus]:
            # A worker that has ended meanwhile is already counted in `departed`.
            there = self._inquiries()
            found = zip(inquiries, answers, strict=True)
            # Listeners come from the last known status, as `Inquiry.departed` does: both must be of the same time.
            return [
                replace(status, listeners=inquiry.last.listeners)
                for inquiry, (_, status) in found
                if status is not None and inquiry.last is not None and inquiry in there
            ]

        return DeferredList([inquiry.status(query) for inquiry in inquiries]).addCallback(answered)

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Close a connection in the worker that has it. Fires with whether it existed."""
        pid = connection.partition("-")[0]
        for number, inquiry in self._all():
            if str(number) == pid:
                return inquiry.close_connection(connection)
        return succeed(False)

    def departed_from(self, last: ProcessStatus) -> None:
        """Keep the counts of an ended process, with `open` 0."""
        # The newest come first and are kept longest: they belong to the running plan. The argument is not changed.
        self._departed = merge([last, ProcessStatus("", 0, 0.0, listeners=self._departed)])[:MOST_DEPARTED]
        for listener in self._departed:
            listener.counts.open = 0
        self._metrics = merge_metrics([], [last.metrics, self._metrics])[:MOST_DEPARTED_METRICS]
        for family in self._metrics:
            del family["sets"][MOST_DEPARTED:]

    def departed_metrics(self) -> list[dict[str, Any]]:
        """Return the merged metrics of ended workers."""
        return self._metrics

    def departed(self) -> list[ListenerStatus]:
        """Return the counts of ended workers, and of listeners that running workers no longer have."""
        gone = [listener for inquiry in self._inquiries() for listener in inquiry.departed]
        return merge_listeners([*gone, *self._departed]) if gone else self._departed


def serialize(status: ProcessStatus, departed: Sequence[ListenerStatus]) -> str:
    """Serialize the status of a worker with the counts of listeners that it no longer has."""
    return json.dumps({**status.to_json(), "departed": plain_data(list(departed))})


def answer(operations: Any, arguments: bytes, send: Callable[[bytes], None]) -> None:
    """Answer a request, in the worker. `operations` are its own `netsvc.server.interface.Operations`."""
    number, _, text = arguments.decode("ascii", "replace").partition(" ")

    def send_result(result: Any) -> None:
        send(report("answer", number, json.dumps(result)))

    def send_status(statuses: list[ProcessStatus]) -> None:
        [status] = statuses
        departed = operations.departed()
        line = report("answer", number, serialize(status, departed))
        if len(line) > LONGEST_REPORT:
            # The metrics of a plugin may be larger than everything else together.
            status.metrics = []
            line = report("answer", number, serialize(status, departed))
        send(line)

    try:
        request = json.loads(text)
        if "close" in request:
            operations.close_connection(request["close"]).addCallback(send_result)
        else:
            query = request["status"]
            query["words"] = tuple(query["words"])
            operations.status(ConnectionQuery(**query)).addCallback(send_status)
    except (ValueError, KeyError, TypeError):
        # The parent may be of another version; its request must not end this process.
        send_result(None)
