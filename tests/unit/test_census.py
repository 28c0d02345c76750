"""What workers see is asked of all of them, and what those that have ended had counted is not lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from netsvc.plan.status import ConnectionQuery, ConnectionStatus, Counts, ListenerStatus, ProcessStatus, merge
from netsvc.workers.channel import LONGEST_REPORT, read_report
from netsvc.workers.status import (
    MOST_DEPARTED,
    MOST_DEPARTED_METRICS,
    MOST_QUESTIONS,
    PATIENCE,
    Inquiry,
    Totals,
    answer,
    serialize,
)


class Operations:
    """What a worker can tell."""

    def __init__(self, pid: int) -> None:
        self.state = ProcessStatus("1", pid, 0.0)
        self.asked: list[Any] = []
        self.gone: list[ListenerStatus] = []

    def departed(self) -> list[ListenerStatus]:
        return self.gone

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        self.asked.append(query)
        return succeed([self.state])

    def close_connection(self, connection: str) -> Deferred[bool]:
        self.asked.append(connection)
        return succeed(connection == f"{self.state.pid}-7")


class Worker:
    """A worker's place, whose process answers when it is told to."""

    def __init__(self, pid: int, clock: Clock) -> None:
        self.operations = Operations(pid)
        self.pid = pid
        self.orders: list[bytes] = []
        self.inquiry = Inquiry(clock, self.orders.append)
        self.child: Any = self

    def answer(self) -> None:
        """Answer what was asked."""
        reports: list[bytes] = []
        while self.orders:
            word, _, rest = self.orders.pop(0).partition(b" ")
            assert word == b"ask"
            answer(self.operations, rest, reports.append)
        for report in reports:
            assert report.endswith(b"\n") and report.count(b"\n") == 1
            said = read_report(report[:-1])
            assert said[0] == "answer"
            self.inquiry.answered(*said[1:])


def listener(place: str = "*:9001", **counts: Any) -> ListenerStatus:
    return ListenerStatus("echo", "tcp", place, "stream", "9001", counts=Counts(**counts))


def test_each_worker_is_asked_and_those_that_do_not_answer_are_left_out() -> None:
    clock = Clock()
    workers = [Worker(pid, clock) for pid in (11, 12, 13)]
    census = Totals(lambda: [(each.pid, each.inquiry) for each in workers])
    query = ConnectionQuery(5, "age", ("tcp",))
    results: list[list[ProcessStatus]] = []
    census.status(query).addCallback(results.append)
    workers[0].answer()
    workers[2].answer()
    assert results == []
    clock.advance(PATIENCE)
    assert [[status.pid for status in result] for result in results] == [[11, 13]]
    assert workers[0].operations.asked == [query]
    # Too late.
    workers[1].answer()
    assert not clock.getDelayedCalls()


def test_a_worker_that_ends_answers_nothing_more() -> None:
    clock = Clock()
    worker = Worker(11, clock)
    results: list[Any] = []
    worker.inquiry.status(ConnectionQuery()).addCallback(results.append)
    worker.inquiry.close_connection("11-7").addCallback(results.append)
    worker.inquiry.close()
    assert results == [None, False] and not clock.getDelayedCalls()


def test_a_connection_is_closed_by_the_process_that_has_it() -> None:
    clock = Clock()
    workers = [Worker(pid, clock) for pid in (11, 12)]
    census = Totals(lambda: [(each.pid, each.inquiry) for each in workers])
    results: list[Any] = []
    for connection in ("12-7", "12-8", "13-7", "", "\n"):
        census.close_connection(connection).addCallback(results.append)
        for worker in workers:
            worker.answer()
    assert results == [True, False, False, False, False]
    assert workers[0].operations.asked == [] and workers[1].operations.asked == ["12-7", "12-8"]


def test_what_is_no_answer_is_none() -> None:
    worker = Worker(11, Clock())
    for said in ("[", "7", "{}", '{"listeners": 3}', "null"):
        results: list[Any] = []
        worker.inquiry.status(ConnectionQuery()).addCallback(results.append)
        worker.inquiry.answered(str(worker.inquiry._number), said)
        assert results == [None]
    worker.inquiry.answered("999", "{}")
    worker.inquiry.final_status("[")
    assert worker.inquiry.last is None


def test_no_more_is_asked_of_one_that_does_not_answer() -> None:
    clock = Clock()
    worker = Worker(11, clock)
    results: list[Any] = []
    for _ in range(MOST_QUESTIONS + 3):
        worker.inquiry.status(ConnectionQuery()).addCallback(results.append)
    assert results == [None] * 3 and len(worker.orders) == MOST_QUESTIONS
    worker.inquiry.close()


def test_the_longest_status_fits_into_a_report() -> None:
    worker = Worker(11, Clock())
    longest = ConnectionStatus(
        "1" * 20, "s" * 64, "p" * 64, "\U0001f600" * 108, "stream", "\U0001f600" * 108, 1.0, 1, 1
    )
    worker.operations.state.connections = [longest] * 500
    reports: list[bytes] = []
    question = {"status": {"most": 500, "order": "rate", "words": []}}
    answer(worker.operations, f"1 {json.dumps(question)}".encode(), reports.append)
    assert len(reports[0]) <= LONGEST_REPORT


def test_counts_of_workers_that_have_ended_are_added_up() -> None:
    census = Totals(list)
    for number in (1, 2):
        status = ProcessStatus("1", number, 0.0, listeners=[listener(accepted=10, open=3, bytes_in=5)])
        census.departed_from(status)
    [departed] = census.departed()
    assert (departed.counts.accepted, departed.counts.open, departed.counts.bytes_in) == (20, 0, 10)


def test_a_worker_that_ends_while_another_is_waited_for_is_counted_once() -> None:
    clock = Clock()
    workers = [Worker(pid, clock) for pid in (11, 12)]
    census = Totals(lambda: [(each.pid, each.inquiry) for each in workers if each.child is not None])
    for worker in workers:
        worker.operations.state.listeners = [listener(accepted=10)]
    totals: list[int] = []

    def add_up(statuses: list[ProcessStatus]) -> None:
        gone = ProcessStatus("", 0, 0.0, listeners=census.departed())
        totals.extend(each.counts.accepted for each in merge([*statuses, gone]))

    census.status(ConnectionQuery()).addCallback(add_up)
    workers[0].answer()
    # As a place does whose process has ended (`netsvc.workers.slot`).
    ended = workers[0].inquiry
    ended.close()
    workers[0].child = None
    assert ended.last is not None
    census.departed_from(ended.last)
    workers[1].answer()
    assert totals == [20]


def test_what_a_listener_counted_that_a_worker_has_no_more_is_not_lost() -> None:
    clock = Clock()
    workers = [Worker(pid, clock) for pid in (11, 12)]
    slots: Any = workers
    census = Totals(lambda: [(slot.child.pid, slot.child.inquiry) for slot in slots if slot.child is not None])
    for worker in workers:
        worker.operations.state.listeners = [listener(accepted=1)]
        worker.operations.gone = [listener("*:9002", accepted=10)]
    census.status(ConnectionQuery())
    for worker in workers:
        worker.answer()
    assert [(each.place, each.counts.accepted) for each in census.departed()] == [("*:9002", 20)]
    # And not by its end either.
    workers[0].inquiry.final_status(serialize(workers[0].operations.state, workers[0].operations.gone))
    workers[0].child = None
    last = workers[0].inquiry.all_counted()
    assert last is not None
    census.departed_from(last)
    assert {each.place: each.counts.accepted for each in census.departed()} == {"*:9001": 1, "*:9002": 20}


def test_the_last_word_of_a_worker_is_what_counts() -> None:
    worker = Worker(11, Clock())
    worker.operations.state.listeners = [listener(accepted=1)]
    worker.inquiry.status(ConnectionQuery())
    worker.answer()
    assert worker.inquiry.last is not None and worker.inquiry.last.listeners[0].counts.accepted == 1
    worker.operations.state.listeners = [listener(accepted=2)]
    worker.inquiry.final_status(json.dumps(worker.operations.state.to_json()))
    assert worker.inquiry.last.listeners[0].counts.accepted == 2


@pytest.mark.slow
def test_the_listeners_of_many_plans_are_not_all_remembered() -> None:
    census = Totals(list)
    for number in range(10):
        listeners = [listener(f"*:{number}-{place}", accepted=1) for place in range(1000)]
        census.departed_from(ProcessStatus("1", number, 0.0, listeners=listeners))
    departed = census.departed()
    assert len(departed) == MOST_DEPARTED
    assert departed[0].place == "*:9-0"
    # One that is heard of again is new again.
    census.departed_from(ProcessStatus("1", 11, 0.0, listeners=[listener("*:7-5", accepted=1)]))
    again = census.departed()[0]
    assert (again.place, again.counts.accepted, len(census.departed())) == ("*:7-5", 2, MOST_DEPARTED)


@pytest.mark.slow
def test_the_metrics_of_many_plans_are_not_all_remembered() -> None:
    census = Totals(list)

    def family(name: str, first: int) -> dict[str, Any]:
        sets = [[["chat", str(number)], 1] for number in range(first, first + 1000)]
        return {"name": name, "kind": "counter", "help": "", "labels": ["use", "room"], "bounds": [], "sets": sets}

    for number in range(10):
        census.departed_from(ProcessStatus("1", number, 0.0, metrics=[family("a_total", number * 1000)]))
    [departed] = census.departed_metrics()
    assert len(departed["sets"]) == MOST_DEPARTED and departed["sets"][0] == [["chat", "9000"], 1]
    many = [{**family(f"m{number}_total", 0), "sets": []} for number in range(MOST_DEPARTED_METRICS + 1)]
    census.departed_from(ProcessStatus("1", 11, 0.0, metrics=many))
    assert len(census.departed_metrics()) == MOST_DEPARTED_METRICS


def test_what_has_been_shown_of_a_worker_that_ends_stays_as_it_was() -> None:
    census = Totals(list)
    last = ProcessStatus("1", 1, 0.0, listeners=[listener(accepted=10, open=3)])
    census.departed_from(last)
    assert last.listeners[0].counts.open == 3


def test_the_pipe_of_a_worker_that_is_stuck_does_not_fill_with_questions() -> None:
    clock = Clock()
    worker = Worker(11, clock)
    for _ in range(3 * MOST_QUESTIONS):
        worker.inquiry.status(ConnectionQuery())
        clock.advance(PATIENCE)
    assert len(worker.orders) == MOST_QUESTIONS
    # It goes on.
    worker.answer()
    worker.inquiry.status(ConnectionQuery())
    assert len(worker.orders) == 1
    worker.inquiry.close()


def test_a_question_of_another_version_is_no_fault() -> None:
    worker = Worker(11, Clock())
    for question in ("{}", "[", "7", '{"status": {"most": 1, "order": "rate", "words": [], "new": 1}}', "\xff"):
        reports: list[bytes] = []
        answer(worker.operations, b"5 " + question.encode("latin-1"), reports.append)
        assert [read_report(each[:-1]) for each in reports] == [("answer", "5", "null")]
