"""What a worker says is logged by the process that started it, to the last word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure

from netsvc.listen.handoff import Handoff
from netsvc.workers.channel import EXIT_READ_LIMIT, LONGEST_LINE, REPORTS, report
from netsvc.workers.slot import Child
from tests.builders.children import FakeProcess, FakeReactor
from tests.builders.logs import Lines, collected


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


KILLED = Failure(ProcessTerminated(None, 9))
HANDOFF = Handoff(7, [])


class Told(list[Any]):
    """A process, and what its child tells."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = FakeReactor()
        self.child = Child(7, self.reactor, ready=lambda: self.append("ready"), failed=self.append, ended=self.append)
        self.child.handoff = HANDOFF
        self.reactor.spawnProcess(self.child, "python", childFDs={1: "r", 2: "r", 3: "w", 4: "r"})

    @property
    def process(self) -> FakeProcess:
        return self.reactor.processes[0]


def test_it_is_told_what_to_serve() -> None:
    told = Told()
    assert told.process.told == HANDOFF.to_line()
    assert told.child.pid == 1000


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reports_are_heeded_and_logged_however_they_come(size: int, lines: Lines) -> None:
    told = Told()
    data = report("log", "warn", "netsvc.x", "", "one\ntwo {three}") + report("ready") + report("failed", "a", "b")
    data += report("drained", "it is over", "held up")
    data += report("log", "info", "-", "Who,1,::1", "legacy")[:-1] + b"\n"
    for start in range(0, len(data), size):
        told.child.childDataReceived(REPORTS, data[start : start + size])
    assert told == ["ready", ("a", "b")]
    assert told.child.drained == ("it is over", "held up")
    assert lines == ["[worker 7] one\ntwo {three}"]
    assert lines.levels == ["warn"]


def test_what_it_prints_is_logged_line_by_line_and_the_beginning_of_a_line_at_the_end(lines: Lines) -> None:
    told = Told()
    told.child.childDataReceived(1, b"one\ntw")
    told.child.childDataReceived(2, b"Traceback\n  \x1b[2J\xff")
    told.child.childDataReceived(1, b"o\nthree")
    assert lines == ["[worker 7] one", "[worker 7] Traceback", "[worker 7] two"]
    told.process.end(signal=9)
    assert lines[3:] == ["[worker 7] three", "[worker 7]   \\x1b[2J\\xff"]
    assert lines.levels == ["info", "error", "info", "info", "error"]
    assert told == ["ended by signal 9"]


def test_a_report_that_was_cut_short_is_not_lost(lines: Lines) -> None:
    told = Told()
    told.child.childDataReceived(REPORTS, b'["log", "warn", "who", "", "the la')
    told.process.end(signal=11)
    assert lines == ['[worker 7] ["log", "warn", "who", "", "the la']
    assert told == ["ended by signal 11"]


def test_a_line_has_a_limit(lines: Lines) -> None:
    told = Told()
    for _ in range(3):
        told.child.childDataReceived(1, b"x" * LONGEST_LINE)
    told.child.childDataReceived(1, b"\nnext\n")
    assert lines == [f"[worker 7] {'x' * LONGEST_LINE}... ({2 * LONGEST_LINE} more)", "[worker 7] next"]


def test_its_end_is_told_once_all_that_it_said_has_been_read(lines: Lines) -> None:
    told = Told()
    told.child.processExited(KILLED)
    assert told == []
    told.child.childDataReceived(1, b"last\n")
    told.child.processEnded(KILLED)
    assert (told, list(lines)) == (["ended by signal 9"], ["[worker 7] last"])
    assert told.reactor.getDelayedCalls() == []


def test_somebody_else_who_has_its_pipes_is_not_waited_for(lines: Lines) -> None:
    told = Told()
    told.child.childDataReceived(1, b"no end")
    told.child.processExited(KILLED)
    told.reactor.advance(EXIT_READ_LIMIT)
    assert (told, list(lines)) == (["ended by signal 9"], ["[worker 7] no end"])
    told.child.processEnded(KILLED)
    assert told == ["ended by signal 9"]


def test_it_is_forced_while_it_listens() -> None:
    told = Told()
    told.child.force()
    assert told.process.orders == b"force\n"
    told.process.pipes.clear()
    told.child.force()
    assert told.process.orders == b"force\n"
