"""A worker reports its access records, in order with what it logs, in lines that are written as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, LogLevel, globalLogPublisher

from netsvc.base.requests import log_event, request_event
from netsvc.listen.handoff import WorkerStart
from netsvc.log.access import AT_ONCE, LONGEST_WAIT, MOST_GATHERED
from netsvc.plan.plan import Plan
from netsvc.workers.channel import LONGEST_REPORT, read_report
from netsvc.workers.reports import LONGEST_TEXT
from netsvc.workers.worker import _lines, _Log, _record
from tests.builders.recorded import STREAM, UNIX

EVENT = {"log_format": "said", "log_level": LogLevel.info, "log_namespace": "netsvc"}


class WorkerLog:
    """What is reported by worker 2."""

    def __init__(self, *, log: str = "text", access: str = "log") -> None:
        self.said: list[bytes] = []
        self.reactor = MemoryReactorClock()
        self.log = _Log(self.said.append)
        self.start = start = WorkerStart(Plan({}, (), log=log, access=access), "", (), number=2)
        self.record: Any = _record(self.reactor, start, self.said.append, self.log)

    @property
    def reports(self) -> list[tuple[str, ...]]:
        return [read_report(line) for line in self.said]

    def stop(self) -> None:
        for function, args, kwargs in self.reactor.triggers["after"]["shutdown"]:
            function(*args, **kwargs)


def test_records_are_reported_together_with_the_number_of_the_worker() -> None:
    world = WorkerLog(access="/some/file")
    world.record(STREAM)
    world.record(STREAM)
    assert not world.said
    world.reactor.advance(LONGEST_WAIT)
    [(word, lines)] = world.reports
    assert word == "access" and [line.split()[-1] for line in lines.splitlines()] == ["worker=2", "worker=2"]


def test_they_are_in_order_with_what_is_logged_and_none_is_lost_at_the_end() -> None:
    world = WorkerLog()
    world.record(STREAM)
    world.log({"log_format": "", "log_level": LogLevel.info})
    world.log(EVENT)
    world.record(STREAM)
    world.stop()
    assert [words[0] for words in world.reports] == ["access", "log", "access"]
    assert not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("form", ["text", "json"])
def test_requests_are_reported_together_in_order_and_none_is_lost_at_the_end(form: str) -> None:
    world = WorkerLog(log=form)
    world.log.gather(world.reactor, _lines(world.start))
    requests = Logger(namespace="netsvc.files", observer=world.log)
    for line in ("one", "two\nnot three"):
        log_event(request_event(requests), line)
    assert not world.said
    world.log(EVENT)
    log_event(request_event(requests), "four")
    world.reactor.advance(LONGEST_WAIT)
    log_event(request_event(requests), "five")
    world.stop()
    log_event(request_event(requests), "six")
    assert [words[0] for words in world.reports] == ["requests", "log", "requests", "requests", "log"]
    lines = "".join(words[1] for words in world.reports if words[0] == "requests").splitlines(keepends=True)
    if form == "json":
        found = [json.loads(line) for line in lines]
        assert [each["text"] for each in found] == ["one", "two\nnot three", "four", "five"]
        assert {(each["worker"], each["source"]) for each in found} == {(2, "netsvc.files")}
    else:
        expected = ["one", "two", "\tnot three", "four", "five"]
        assert [line.partition("[netsvc.files#info] [worker 2] ")[2] or line for line in lines] == [
            f"{each}\n" for each in expected
        ]


def test_in_the_form_of_the_plan() -> None:
    world = WorkerLog(log="json")
    world.record(STREAM)
    world.stop()
    found = json.loads(world.reports[0][1])
    assert (found["worker"], found["kind"]) == (2, "access")


def test_in_a_flood_there_are_so_many_of_each_worker_and_it_says_how_many_more() -> None:
    world = WorkerLog()
    globalLogPublisher.addObserver(world.log)
    try:
        for _ in range(AT_ONCE + 7):
            world.record(STREAM)
        world.stop()
    finally:
        globalLogPublisher.removeObserver(world.log)
    assert sum(words[1].count("\n") for words in world.reports if words[0] == "access") == AT_ONCE
    assert world.reports[-1][0] == "log" and world.reports[-1][4].startswith("7 ")
    assert not world.reactor.getDelayedCalls()


def test_none_are_made_that_nobody_wants() -> None:
    assert WorkerLog(access="off").record is None


@pytest.mark.parametrize("log", ["text", "json"])
@pytest.mark.parametrize("character", ["\0", "\U0001f600", "中", '"'])
def test_a_report_of_the_longest_records_has_its_limit(log: str, character: str) -> None:
    world = WorkerLog(log=log)
    for _ in range(MOST_GATHERED):
        world.record(UNIX._replace(service=character * 300, protocol=character * 300, peer=character * 300))
    world.stop()
    assert sum(words[1].count("\n") for words in world.reports) == MOST_GATHERED
    assert all(len(words[1]) <= LONGEST_TEXT for words in world.reports)
    assert max(map(len, world.said)) <= LONGEST_REPORT
