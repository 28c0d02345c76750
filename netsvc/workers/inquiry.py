"""Asks a worker what it sees. A question is an order, `ask NUMBER JSON`; the answer is a report with that number."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from twisted.internet.defer import Deferred, succeed

from netsvc.status import ConnectionQuery, ProcessStatus, read_status
from netsvc.workers.reports import LONGEST_REPORT, report

__all__ = ["MOST_QUESTIONS", "PATIENCE", "Inquiry", "answer"]

#: Seconds for a worker to answer. One that is stuck shall not keep what the others say from being seen.
PATIENCE = 2.0
#: Questions that one worker has not answered yet.
MOST_QUESTIONS = 64


class Inquiry:
    """The questions to one worker. `order` gives it an order; `last` is the last that is known of it."""

    def __init__(self, clock: Any, order: Callable[[bytes], None]) -> None:
        self.last: ProcessStatus | None = None
        self._clock = clock
        self._order = order
        self._number = 0
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
            status = read_status(answered)
        except ValueError:
            return self.last
        self.last = status
        return status

    def _ask(self, question: dict[str, Any]) -> Deferred[Any]:
        if len(self._waiting) >= MOST_QUESTIONS:
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
        self._settle(number, read)

    def farewell(self, text: str) -> None:
        """Take in what it says last of all."""
        with suppress(ValueError):
            self.last = read_status(json.loads(text))

    def close(self) -> None:
        """Wait for no answer any more."""
        for number in list(self._waiting):
            self._settle(number, None)


def answer(operations: Any, words: bytes, tell: Callable[[bytes], None]) -> None:
    """Answer a question, in the worker. `operations` are those of its own (`netsvc.host.operations`)."""
    number, _, text = words.decode("ascii").partition(" ")
    question = json.loads(text)

    def told(answered: Any) -> None:
        tell(report("answer", number, json.dumps(answered)))

    def told_status(statuses: list[ProcessStatus]) -> None:
        [status] = statuses
        line = report("answer", number, json.dumps(status.to_json()))
        if len(line) > LONGEST_REPORT:
            # A plugin may have more metrics than everything else together.
            status.metrics = []
            line = report("answer", number, json.dumps(status.to_json()))
        tell(line)

    if "close" in question:
        operations.close_connection(question["close"]).addCallback(told)
    else:
        query = question["status"]
        query["words"] = tuple(query["words"])
        operations.status(ConnectionQuery(**query)).addCallback(told_status)
