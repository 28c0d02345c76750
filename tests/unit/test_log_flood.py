"""So many access records in a second, and no more; how many more there would have been is a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from netsvc.log.access import AT_ONCE, INTERVAL, MOST_RECORDS, RecordLimit
from netsvc.plan.limits import LIMITS
from netsvc.plan.record import Record
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.recorded import STREAM


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


class LimitedFlood:
    """A flood of which three records are let through in an interval, and five at once."""

    def __init__(self, most: int = 3, at_once: int = 5) -> None:
        self.clock = Clock()
        self.passed: list[Record] = []
        self.flood = RecordLimit(self.passed.append, self.clock, most, at_once)

    def record(self, count: int) -> int:
        """Record so many, and return how many of them pass."""
        before = len(self.passed)
        for _ in range(count):
            self.flood.record(STREAM)
        return len(self.passed) - before


def test_as_many_as_there_may_be_pass_and_nothing_is_said(lines: Lines) -> None:
    world = LimitedFlood()
    for _ in range(4):
        assert world.record(3) == 3
        world.clock.advance(INTERVAL)
    assert not lines and not world.clock.getDelayedCalls()


def test_more_do_not_pass_and_are_counted_in_a_line_a_second(lines: Lines) -> None:
    world = LimitedFlood()
    assert world.record(2) == 2
    world.clock.advance(INTERVAL / 2)
    assert world.record(5) == 3 and not lines
    world.clock.advance(INTERVAL / 2)
    assert len(lines) == 1 and states(lines[0], "2 ", " 1 s") and lines.levels == ["warn"]
    # For as long as it lasts there are so many a second, and a line.
    for _ in range(3):
        assert world.record(4) == 3
        world.clock.advance(INTERVAL)
    assert len(lines) == 4 and all(states(line, "1 ", " 1 s") for line in lines[1:])


def test_a_quiet_time_makes_room_for_as_many_as_may_come_at_once() -> None:
    world = LimitedFlood()
    for _ in range(2):
        assert world.record(10) == 5
        for _ in range(2):
            assert world.clock.getDelayedCalls()
            world.clock.advance(INTERVAL)
        assert not world.clock.getDelayedCalls()
        world.clock.advance(86400)


def test_at_the_end_it_is_said_as_well_and_nothing_waits(lines: Lines) -> None:
    world = LimitedFlood()
    world.record(12)
    world.flood.close()
    world.flood.close()
    assert [line.split()[0] for line in lines] == ["7"] and not world.clock.getDelayedCalls()


def test_by_itself_it_lets_through_what_the_documents_promise() -> None:
    passed: list[Record] = []
    clock = Clock()
    flood = RecordLimit(passed.append, clock)
    for most in (AT_ONCE, MOST_RECORDS):
        for _ in range(most + 1):
            flood.record(STREAM)
        clock.advance(INTERVAL)
        assert len(passed) == most
        passed.clear()
    flood.close()
    document = Path(__file__).parents[2].joinpath("docs/reference/log.md").read_text("utf-8")
    assert f"{MOST_RECORDS:,} a second" in document and f"{AT_ONCE:,} at once" in document


def test_it_has_room_for_all_that_may_be_there_by_default() -> None:
    at_a_time: Any = [LIMITS[name].default for name in ("connections", "sessions")]
    assert sum(at_a_time) <= AT_ONCE


def test_whoever_reads_the_line_may_end_something_and_have_it_recorded() -> None:
    world = LimitedFlood(1, 1)

    def end_another(_event: object) -> None:
        if len(world.passed) < 2:
            world.record(1)

    globalLogPublisher.addObserver(end_another)  # type: ignore[arg-type]
    try:
        world.record(2)
        world.clock.advance(INTERVAL)
    finally:
        globalLogPublisher.removeObserver(end_another)  # type: ignore[arg-type]
    assert len(world.passed) == 2
    world.flood.close()
    assert not world.clock.getDelayedCalls()
