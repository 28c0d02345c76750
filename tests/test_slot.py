"""A worker that dies is replaced, after pauses that grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from netsvc.plan import Plan
from netsvc.workers.briefing import Briefing
from netsvc.workers.child import Child
from netsvc.workers.slot import FIRST_PAUSE, LONG_LIFE, LONGEST_PAUSE, Slot
from tests.children import FakeProcess, FakeReactor
from tests.logs import Lines, collected


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


class Place:
    """A slot, and what it tells."""

    def __init__(self, *, persistent: bool = False) -> None:
        self.reactor = FakeReactor()
        self.told: list[str] = []
        self.slot = Slot(
            2,
            self.reactor,
            self.spawn,
            ready=lambda: self.told.append("ready"),
            failed=self.told.append,
            ended=lambda: self.told.append("ended"),
            persistent=persistent,
        )
        self.slot.start()

    def spawn(self, child: Child) -> None:
        child.briefing = Briefing(Plan({}, ()), "", (), None, (), ())
        self.reactor.spawnProcess(child, "python", childFDs={1: "r", 2: "r", 3: "w", 4: "r"})

    @property
    def process(self) -> FakeProcess:
        return self.reactor.processes[-1]

    def pauses(self) -> list[float]:
        return [call.getTime() - self.reactor.seconds() for call in self.reactor.getDelayedCalls()]

    def die(self) -> float:
        """End the process, return how long the pause is, and wait for the next one."""
        count = len(self.reactor.processes)
        self.process.end(signal=9)
        [pause] = self.pauses()
        self.reactor.advance(pause)
        assert len(self.reactor.processes) == count + 1
        return pause


def test_the_first_process_that_serves_is_told_of_and_later_ones_are_logged(lines: Lines) -> None:
    place = Place()
    assert place.told == []
    place.process.say("ready")
    assert place.told == ["ready"]
    place.die()
    place.process.say("ready")
    assert place.told == ["ready", "ended"]
    assert lines == [
        "worker 2 (pid 1000) ended by signal 9; the next starts in 1 s",
        "worker 2 (pid 1001) is ready",
    ]


def test_pauses_double_up_to_a_limit() -> None:
    place = Place()
    place.process.say("ready")
    assert [place.die() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (FIRST_PAUSE, LONGEST_PAUSE) == (1, 30)


@pytest.mark.parametrize(("life", "expected"), [(LONG_LIFE, [0, 1, 2]), (LONG_LIFE - 0.1, [4, 8, 16])])
def test_a_long_life_is_followed_by_no_pause_and_by_short_ones(
    life: float, expected: list[float], lines: Lines
) -> None:
    place = Place()
    place.process.say("ready")
    place.die()
    place.die()
    place.reactor.advance(life)
    assert [round(place.die()) for _ in range(3)] == expected
    assert ("the next starts now" in lines[2]) == (expected[0] == 0)


@pytest.mark.parametrize(
    ("status", "signal", "how"), [(0, None, "with status 0"), (3, None, "with status 3"), (0, 15, "by signal 15")]
)
def test_a_first_process_that_ends_before_it_serves_is_a_failure(status: int, signal: Any, how: str) -> None:
    place = Place()
    place.process.end(status, signal)
    assert place.told == [f"worker 2 (pid 1000) ended {how}, and was never ready", "ended"]
    assert place.pauses() == []


def test_a_first_process_that_says_why_it_cannot_start_is_quoted() -> None:
    place = Place()
    place.process.say("failed", "this", "that")
    assert place.told == ["worker 2 cannot start: this\nworker 2 cannot start: that"]


def test_a_later_one_that_cannot_start_is_logged_and_tried_again(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.die()
    place.process.say("failed", "this", "that")
    assert lines[1:] == ["worker 2 cannot start: this", "worker 2 cannot start: that"]
    place.process.end(1)
    assert lines[3:] == ["worker 2 (pid 1001) ended with status 1; the next starts in 2 s"]


def test_a_process_that_the_system_does_not_start_is_one_that_died(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.reactor.fault = OSError(11, "Resource temporarily unavailable")
    place.process.end(signal=9)
    place.reactor.advance(FIRST_PAUSE)
    assert lines[1:] == ["worker 2 could not be started (Resource temporarily unavailable); the next starts in 2 s"]
    place.reactor.fault = None
    place.reactor.advance(2)
    assert len(place.reactor.processes) == 2


def test_a_slot_that_is_stopped_ends_its_process_and_starts_no_other(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.slot.stop()
    assert place.process.signals == ["TERM"]
    place.process.end()
    assert place.told == ["ready", "ended"]
    assert place.slot.child is None
    place.slot.start()
    assert len(place.reactor.processes) == 1
    assert lines == []


def test_a_slot_that_is_stopped_in_a_pause_starts_no_other() -> None:
    place = Place()
    place.process.say("ready")
    place.process.end(1)
    place.slot.stop()
    assert place.pauses() == []


def test_a_process_that_is_gone_already_is_sent_no_signal() -> None:
    place = Place()
    place.process.gone = True
    place.slot.stop()
    assert place.process.signals == []


def test_one_that_stands_in_for_a_worker_that_served_is_replaced_from_the_first(lines: Lines) -> None:
    place = Place(persistent=True)
    assert place.die() == FIRST_PAUSE
    place.process.say("failed", "it is not possible now")
    assert place.die() == 2 * FIRST_PAUSE
    assert place.told == ["ended", "ended"]
    assert "worker 2 cannot start: it is not possible now" in lines
