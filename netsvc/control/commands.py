"""The commands of the control socket, over the operations of a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from netsvc.control.protocol import LONGEST_ANSWER, LONGEST_STATUS, read_query
from netsvc.control.server import Command
from netsvc.plan.answer import Answer
from netsvc.plan.status import ConnectionQuery, ProcessStatus


def commands_of(operations: Any, reload: Command) -> dict[str, Command]:
    """Return a command for each operation that exists, of `netsvc.server.interface.Operations` that there are."""
    commands: dict[str, Command] = {"reload": reload}
    for name in ("drain", "upgrade"):
        if hasattr(operations, name):
            commands[name] = getattr(operations, name)
    if hasattr(operations, "status"):
        commands["status"] = lambda words: _status(operations, words)
    return commands


def _status(operations: Any, words: Sequence[str]) -> Deferred[Answer]:
    try:
        query = read_query(words)
    # JSON may have a list for the order, or lists in lists in lists.
    except (ValueError, TypeError, RecursionError):
        return succeed(Answer(1, ["status: this version does not know such a query"]))
    looking: Deferred[list[ProcessStatus]] = operations.status(query)
    return looking.addCallback(_answer, operations, query)


def _answer(statuses: list[ProcessStatus], operations: Any, query: ConnectionQuery) -> Answer:
    picked = {each.id for each in query.pick(each for status in statuses for each in status.connections)}
    for status in statuses:
        status.connections = [each for each in status.connections if each.id in picked]
    # The counts of processes that have ended, in the form of one process.
    departed = ProcessStatus("", 0, 0.0, listeners=operations.departed())
    whole = [each.to_json() for each in (*statuses, departed)]
    for shorten in (_leave_all, _leave_out_repetition, _leave_out_lists):
        shorten(whole)
        line = json.dumps({"processes": whole[:-1], "departed": whole[-1]["listeners"]}, separators=(",", ":"))
        if len(json.dumps(line)) <= LONGEST_STATUS:
            return Answer(0, [line])
    return Answer(1, [f"the status is longer than {LONGEST_ANSWER} bytes; use the admin page or the metrics"])


def _leave_all(_whole: list[dict[str, Any]]) -> None:
    """Keep everything."""


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
