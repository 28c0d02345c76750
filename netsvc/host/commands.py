"""What a running process does when it is asked: `netsvc.host.control` has how that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from netsvc.host.control import LONGEST_ANSWER, Answer, Command
from netsvc.status import MOST_SHOWN, ORDERS, ConnectionQuery, ListenerStatus, ProcessStatus, read_status

__all__ = ["commands_of", "query_words", "read_statuses"]

#: Bytes of a status as a line of an answer, which has some more.
_LONGEST = LONGEST_ANSWER - 1000


def commands_of(operations: Any, reload: Command) -> dict[str, Command]:
    """Make commands of those of `netsvc.host.operations.Operations` that there are."""
    commands: dict[str, Command] = {"reload": reload}
    for name in ("drain", "upgrade"):
        if hasattr(operations, name):
            commands[name] = getattr(operations, name)
    if hasattr(operations, "status"):
        commands["status"] = lambda words: _status(operations, words)
        commands["close"] = lambda words: _close(operations, words)
    return commands


def query_words(query: ConnectionQuery) -> str:
    """Write a query as the words of the command `status`."""
    written = {"most": query.most, "order": query.order, "words": query.words}
    return json.dumps(written, separators=(",", ":"))


def _read_query(words: Sequence[str]) -> ConnectionQuery:
    """Read what `query_words` wrote, or nothing. Raises `ValueError`."""
    asked: Any = json.loads(" ".join(words) or "{}")
    if not isinstance(asked, dict):
        raise ValueError
    most, order, wanted = asked.get("most", 100), asked.get("order", "rate"), asked.get("words", [])
    # A number that says True is one to Python.
    if type(most) is not int or order not in ORDERS or not isinstance(wanted, list):
        raise ValueError
    return ConnectionQuery(max(0, min(most, MOST_SHOWN)), order, tuple(map(str, wanted)))


def _status(operations: Any, words: Sequence[str]) -> Deferred[Answer]:
    try:
        query = _read_query(words)
    # Of an order that is a list, as JSON can have it; and of lists in lists in lists.
    except (ValueError, TypeError, RecursionError):
        return succeed(Answer(1, ["status: what follows is no query that this version knows"]))
    looking: Deferred[list[ProcessStatus]] = operations.status(query)
    return looking.addCallback(_answer, operations, query)


def _answer(statuses: list[ProcessStatus], operations: Any, query: ConnectionQuery) -> Answer:
    picked = {each.id for each in query.pick(each for status in statuses for each in status.connections)}
    for status in statuses:
        status.connections = [each for each in status.connections if each.id in picked]
    # What departed processes have counted, in a process that has never been.
    departed = ProcessStatus("", 0, 0.0, listeners=operations.departed())
    whole = [each.to_json() for each in (*statuses, departed)]
    for shorten in (_leave_all, _leave_out_repetition, _leave_out_lists):
        shorten(whole)
        line = json.dumps({"processes": whole[:-1], "departed": whole[-1]["listeners"]}, separators=(",", ":"))
        if len(json.dumps(line)) <= _LONGEST:
            return Answer(0, [line])
    return Answer(1, [f"the status is longer than {LONGEST_ANSWER} bytes; the admin page and the metrics have it"])


def _leave_all(_whole: list[dict[str, Any]]) -> None:
    """Leave it as it is."""


def _leave_out_repetition(whole: list[dict[str, Any]]) -> None:
    # Every worker has the same limits.
    for process in whole[1:]:
        for listener in process["listeners"]:
            listener["limits"] = []


def _leave_out_lists(whole: list[dict[str, Any]]) -> None:
    for process in whole:
        process["connections"] = process["refusals"] = process["metrics"] = []
        for listener in process["listeners"]:
            listener["limits"] = []


def read_statuses(answer: Answer) -> tuple[list[ProcessStatus], list[ListenerStatus]]:
    """Read the answer to `status`: every process, and what those that have ended had counted.

    Raises `ValueError` if it is something else.
    """
    try:
        [line] = answer.lines
        read = json.loads(line)
        ended = ProcessStatus("", 0, 0.0).to_json() | {"listeners": read["departed"]}
        return [read_status(each) for each in read["processes"]], read_status(ended).listeners
    except (KeyError, TypeError) as error:
        raise ValueError("no status") from error


def _close(operations: Any, words: Sequence[str]) -> Deferred[Answer]:
    closing: Deferred[bool] = operations.close_connection(" ".join(words))
    return closing.addCallback(lambda was_there: _CLOSED if was_there else _NOT_THERE)


_CLOSED = Answer(0, ["closed"])
_NOT_THERE = Answer(1, ["it has ended already"])
