"""Asks a worker what it sees. A question is an order, `ask NUMBER JSON`; the answer is a report with that number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from twisted.internet.defer import Deferred, succeed

from netsvc.status import (
    ConnectionQuery,
    ListenerStatus,
    ProcessStatus,
    plain_data,
    read_listeners,
    read_status,
)
from netsvc.workers.reports import LONGEST_REPORT, report

__all__ = ["MOST_QUESTIONS", "PATIENCE", "Inquiry", "answer", "written"]

#: Seconds for a worker to answer. One that is stuck shall not keep what the others say from being seen.
PATIENCE = 2.0
#: Questions that one worker has not answered, and of which it may have read none.
MOST_QUESTIONS = 64


class Inquiry:
    """The questions to one worker. `order` gives it an order; `last` is the last that is known of it."""

    def __init__(self, clock: Any, order: Callable[[bytes], None]) -> None:
        self.last: ProcessStatus | None = None
        #: What listeners had counted by then that it has no more.
        self.departed: list[ListenerStatus] = []
        self._clock = clock
        self._order = order
        #: The last question, and the last that was answered.
        self._number = self._heard = 0
        self._waiting: dict[str, tuple[Deferred[Any], Any]] = {}

    def status(self, query: ConnectionQuery) -> Deferred[ProcessStatus | None]:
        """Ask how it is. Of one that does not answer in time, the last that is known; None if nothing is.

        Sums of what all have counted would be less without it.
        """
        asked: Deferred[Any] = self._ask({"status": asdict(query)})
        return asked.addCallback(self._read)

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Have it close a connection; tell whether it was there."""
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
        """Return the last that is known of it, with the listeners that it has no more; None if nothing is."""
        return self.last and replace(self.last, listeners=[*self.last.listeners, *self.departed])

    def _ask(self, question: dict[str, Any]) -> Deferred[Any]:
        if self._number - self._heard >= MOST_QUESTIONS:
            # Nobody waits any more for the oldest ones, and still they are in its pipe, or wait for room there.
            return succeed(None)
        self._number += 1
        number = str(self._number)
        waiting: Deferred[Any] = Deferred()
        self._waiting[number] = waiting, self._clock.callLater(PATIENCE, self._settle, number, None)
        self._order(b"ask %s %s\n" % (number.encode(), json.dumps(question).encode()))
        return waiting

    def _settle(self, number: str, answered: Any) -> None:
        if number in self._waiting:
            waiting, call = self._waiting.pop(number)
            if call.active():
                call.cancel()
            waiting.callback(answered)

    def answered(self, number: str, text: str) -> None:
        """Take in an answer; one that comes too late, or is cut, is none."""
        try:
            read = json.loads(text)
        except ValueError:
            read = None
        if number.isascii() and number.isdigit():
            self._heard = max(self._heard, min(int(number[:20]), self._number))
        self._settle(number, read)

    def farewell(self, text: str) -> None:
        """Take in what it says last of all."""
        with suppress(ValueError):
            self._note(json.loads(text))

    def close(self) -> None:
        """Wait for no answer any more."""
        for number in list(self._waiting):
            self._settle(number, None)


def written(status: ProcessStatus, departed: Sequence[ListenerStatus]) -> str:
    """Write what a worker says of itself: its status, and what listeners have counted that it has no more."""
    return json.dumps({**status.to_json(), "departed": plain_data(list(departed))})


def answer(operations: Any, words: bytes, tell: Callable[[bytes], None]) -> None:
    """Answer a question, in the worker. `operations` are those of its own (`netsvc.host.operations`)."""
    number, _, text = words.decode("ascii", "replace").partition(" ")

    def told(answered: Any) -> None:
        tell(report("answer", number, json.dumps(answered)))

    def told_status(statuses: list[ProcessStatus]) -> None:
        [status] = statuses
        departed = operations.departed()
        line = report("answer", number, written(status, departed))
        if len(line) > LONGEST_REPORT:
            # A plugin may have more metrics than everything else together.
            status.metrics = []
            line = report("answer", number, written(status, departed))
        tell(line)

    try:
        question = json.loads(text)
        if "close" in question:
            operations.close_connection(question["close"]).addCallback(told)
        else:
            query = question["status"]
            query["words"] = tuple(query["words"])
            operations.status(ConnectionQuery(**query)).addCallback(told_status)
    except (ValueError, KeyError, TypeError):
        # The process that asks may be of another version: that shall not end this one.
        told(None)
