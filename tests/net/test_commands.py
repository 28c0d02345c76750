"""What a process answers when it is asked for its status, or to drain."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from netsvc.control.commands import commands_of
from netsvc.control.protocol import (
    LONGEST_ANSWER,
    LONGEST_REQUEST,
    answer_bytes,
    query_words,
    read_answer,
    read_statuses,
)
from netsvc.plan.answer import Answer
from netsvc.plan.status import MOST_SHOWN, ConnectionQuery, LimitStatus, ProcessStatus
from tests.builders.looks import ECHO, connection, process, status


class Operated:
    """Stands in for what can be done with a netsvc."""

    def __init__(self, *statuses: ProcessStatus) -> None:
        self.statuses = [*statuses]
        self.queries: list[ConnectionQuery] = []
        self.commands = commands_of(self, lambda words: Answer(0, ["reloaded"]))

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        self.queries.append(query)
        return succeed(self.statuses)

    def departed(self) -> list[Any]:
        return [ECHO]

    def drain(self, words: Any = ()) -> Deferred[Answer]:
        return succeed(Answer(0, ["drained"]))

    def upgrade(self, words: Any = ()) -> Deferred[Answer]:
        return succeed(Answer(0, ["upgraded"]))

    def ask(self, line: str) -> Answer:
        name, *words = line.split()
        answers: list[Any] = []
        made: Any = self.commands[name](words)
        if isinstance(made, Answer):
            return made
        made.addCallback(answers.append)
        [answer] = answers
        return answer  # type: ignore[no-any-return]


def test_there_are_commands_for_what_can_be_done() -> None:
    operated = Operated()
    assert set(operated.commands) == {"reload", "drain", "upgrade", "status"}
    assert [operated.ask(name).lines for name in ("reload", "drain", "upgrade")] == [
        ["reloaded"],
        ["drained"],
        ["upgraded"],
    ]
    assert set(commands_of(object(), lambda words: Answer(0, []))) == {"reload"}


def test_a_status_comes_through_an_answer_as_it_was() -> None:
    one, two = process(1, [connection(1, 1)]), process(2, [connection(2, 2)])
    operated = Operated(one, two)
    answer = operated.ask("status")
    assert operated.queries == [ConnectionQuery()]
    assert read_statuses(read_answer(answer_bytes(answer))) == ([one, two], [ECHO])


def test_of_several_processes_so_many_connections_are_listed_as_were_asked_for() -> None:
    processes = [
        process(worker, [connection(n, worker, rate_in=n + worker / 10) for n in range(10)]) for worker in (1, 2)
    ]
    answer = Operated(*processes).ask('status {"most":5,"order":"rate"}')
    statuses, _ = read_statuses(answer)
    listed = [sorted(each.id.partition("-")[2] for each in one.connections) for one in statuses]
    assert listed == [["8", "9"], ["7", "8", "9"]]


@given(st.builds(ConnectionQuery, st.integers(0, MOST_SHOWN), st.just("age"), st.tuples(st.text(max_size=20))))
def test_a_query_is_read_as_it_was_written(query: ConnectionQuery) -> None:
    operated = Operated()
    written = query_words(query)
    assert "\n" not in written
    # White space in a word is one space: what is looked for has no other.
    operated.commands["status"](written.split())
    [read] = operated.queries
    assert read == replace(query, words=tuple(json.loads(" ".join(written.split()))["words"]))


def test_the_longest_search_fits_in_a_request() -> None:
    assert len(query_words(ConnectionQuery(MOST_SHOWN, "bytes", ("\U0001f600" * 70,)))) < LONGEST_REQUEST


@pytest.mark.parametrize(
    "words",
    [
        "{",
        "[]",
        "1",
        '{"most":true}',
        '{"most":"1"}',
        '{"order":"size"}',
        '{"order":[]}',
        "[" * 1000,
        '{"words":"x"}',
        '{"most":1e9}',
    ],
)
def test_what_is_no_query_is_refused(words: str) -> None:
    operated = Operated()
    answer = operated.ask(f"status {words}")
    assert answer.status == 1
    assert re.match("status: .*version", answer.lines[0])
    assert operated.queries == []


@pytest.mark.parametrize(("asked", "most"), [(-1, 0), (0, 0), (MOST_SHOWN, MOST_SHOWN), (10**9, MOST_SHOWN)])
def test_no_more_connections_can_be_asked_for_than_are_shown(asked: int, most: int) -> None:
    operated = Operated()
    operated.ask(f'status {{"most":{asked},"unknown":1}}')
    assert operated.queries[0].most == most


def limited(size: int, count: int, worker: int) -> ProcessStatus:
    limits = [LimitStatus("x" * size, "1", "process", chosen=False, reports=False)] * count
    return process(worker, [connection(1, worker)], listeners=[replace(ECHO, limits=limits)])


def test_what_is_too_long_is_told_without_what_is_there_twice() -> None:
    answer = Operated(limited(1000, 400, 1), limited(1000, 800, 2)).ask("status")
    assert len(answer_bytes(answer)) < LONGEST_ANSWER
    [one, two], _ = read_statuses(read_answer(answer_bytes(answer)))
    assert (len(one.listeners[0].limits), two.listeners[0].limits) == (400, [])
    assert [len(each.connections) for each in (one, two)] == [1, 1]


def test_what_is_still_too_long_is_told_without_lists() -> None:
    answer = Operated(limited(1000, 2000, 1)).ask("status")
    [one], departed = read_statuses(read_answer(answer_bytes(answer)))
    assert (one.listeners[0].limits, one.connections, one.refusals) == ([], [], [])
    assert one.listeners[0].counts == ECHO.counts
    assert departed[0].counts == ECHO.counts


def test_what_is_too_long_whatever_is_left_out_is_said_so() -> None:
    answer = Operated(process(listeners=[replace(ECHO, place="x" * 10_000)] * 120)).ask("status")
    assert answer.status == 1
    assert str(LONGEST_ANSWER) in answer.lines[0]


@pytest.mark.parametrize("lines", [[], ["{", "}"], ["1"], ["{}"], ['{"processes":[1],"departed":[]}'], ["nonsense"]])
def test_what_is_no_status_is_an_error(lines: list[str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever it is
        read_statuses(Answer(0, lines))


def test_a_status_of_a_newer_version_is_read_without_what_is_new() -> None:
    whole = json.loads(status(process(1, [connection(1, 1)])).lines[0])
    for each in (whole["processes"][0], *whole["processes"][0]["listeners"], *whole["processes"][0]["connections"]):
        each["new"] = 1
    [read], _ = read_statuses(Answer(0, [json.dumps(whole)]))
    assert read == process(1, [connection(1, 1)])
