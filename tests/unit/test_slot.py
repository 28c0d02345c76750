"""A worker that dies is replaced, after pauses that grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from netsvc.listen.handoff import Handoff
from netsvc.workers.slot import HEALTHY_AFTER, MAX_RESTART_DELAY, RESTART_DELAY, Child, Slot
from tests.builders.children import FakeProcess, FakeReactor
from tests.builders.facts import lacks, states
from tests.builders.logs import Lines, collected


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


#: The reasons of a process that cannot start.
WHY = ("this", "that")


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
        child.handoff = Handoff(1, [])
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
    died, replaced = lines
    assert states(died, "worker 2 ", "1000", "signal 9", " 1 s")
    assert states(replaced, "worker 2 ", "1001", "ready")


def test_pauses_double_up_to_a_limit() -> None:
    place = Place()
    place.process.say("ready")
    assert [place.die() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (RESTART_DELAY, MAX_RESTART_DELAY) == (1, 30)


@pytest.mark.parametrize(("life", "expected"), [(HEALTHY_AFTER, [0, 1, 2]), (HEALTHY_AFTER - 0.1, [4, 8, 16])])
def test_a_long_life_is_followed_by_no_pause_and_by_short_ones(
    life: float, expected: list[float], lines: Lines
) -> None:
    place = Place()
    place.process.say("ready")
    place.die()
    place.die()
    place.reactor.advance(life)
    assert [round(place.die()) for _ in range(3)] == expected
    # Without a pause there are no seconds in the line.
    assert states(lines[2], "signal 9", f" {expected[0]} s") == (expected[0] != 0)


@pytest.mark.parametrize(
    ("status", "signal", "how"), [(0, None, "status 0"), (3, None, "status 3"), (0, 15, "signal 15")]
)
def test_a_first_process_that_ends_before_it_serves_is_a_failure(status: int, signal: Any, how: str) -> None:
    place = Place()
    place.process.end(status, signal)
    reason, ended = place.told
    assert states(reason, "worker 2 ", "1000", how)
    assert ended == "ended"
    assert place.pauses() == []


def test_a_first_process_that_says_why_it_cannot_start_is_quoted() -> None:
    place = Place()
    place.process.say("failed", *WHY)
    [reasons] = place.told
    assert [lacks(line, "worker 2 ", f": {why}") for line, why in zip(reasons.split("\n"), WHY, strict=True)] == [
        [],
        [],
    ]


def test_a_later_one_that_cannot_start_is_logged_and_tried_again(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.die()
    place.process.say("failed", *WHY)
    assert [lacks(line, "worker 2 ", f": {why}") for line, why in zip(lines[1:], WHY, strict=True)] == [[], []]
    place.process.end(1)
    [line] = lines[3:]
    assert states(line, "worker 2 ", "1001", "status 1", " 2 s")


def test_a_process_that_the_system_does_not_start_is_one_that_died(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.reactor.fault = OSError(11, "Resource temporarily unavailable")
    place.process.end(signal=9)
    place.reactor.advance(RESTART_DELAY)
    [line] = lines[1:]
    assert states(line, "worker 2 ", "Resource temporarily unavailable", " 2 s")
    place.reactor.fault = None
    place.reactor.advance(2)
    assert len(place.reactor.processes) == 2


def test_a_slot_that_is_stopped_ends_its_process_and_starts_no_other(lines: Lines) -> None:
    place = Place()
    place.process.say("ready")
    place.slot.stop()
    assert place.process.is_told_to_stop
    place.process.end()
    assert place.told == ["ready", "ended"]
    assert place.slot.child is None
    place.slot.start()
    assert len(place.reactor.processes) == 1
    assert lines == []


def test_a_process_that_retires_and_is_stopped_is_told_so_in_that_order() -> None:
    place = Place()
    place.process.say("ready")
    place.slot.retire(b"retire {}\n")
    place.slot.stop()
    # A signal would overtake the order before it.
    assert place.process.signals == []
    assert place.process.orders == b"retire {}\ndrain\n"
    place.process.end()


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


def test_requests_to_a_process_that_ends_are_over_at_once() -> None:
    place = Place()
    place.process.say("ready")
    assert place.slot.child is not None
    closed: list[bool] = []
    place.slot.child.inquiry.close_connection("1").addCallback(closed.append)
    place.process.end(signal=9)
    assert closed == [False]


def test_one_that_stands_in_for_a_worker_that_served_is_replaced_from_the_first(lines: Lines) -> None:
    place = Place(persistent=True)
    assert place.die() == RESTART_DELAY
    place.process.say("failed", "it is not possible now")
    assert place.die() == 2 * RESTART_DELAY
    assert place.told == ["ended", "ended"]
    assert any(states(line, "worker 2 ", "possible") for line in lines)
