"""Access records are gathered, and written in order, a moment later at most."""

from __future__ import annotations

import threading

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from netsvc.log.access import LONGEST_WAIT, LONGEST_WRITE, MOST_GATHERED, AccessLog, _joined, log_record
from netsvc.log.formats import TextLines
from netsvc.plan.record import Record
from tests.builders.logs import Lines
from tests.builders.recorded import DATAGRAMS, STREAM


class GatheredLog:
    """An access log whose lines are the services of the records."""

    def __init__(self, most: int = LONGEST_WRITE) -> None:
        self.clock = Clock()
        self.written: list[str] = []
        self.log: AccessLog[Record] = AccessLog(
            lambda record: f"{record.service}\n", self.written.append, self.clock, most
        )

    def record(self, *services: str) -> None:
        for service in services:
            self.log.record(STREAM._replace(service=service))


def test_records_wait_for_others_but_not_long() -> None:
    world = GatheredLog()
    world.record("a")
    world.clock.advance(LONGEST_WAIT / 2)
    world.record("b")
    assert world.written == []
    world.clock.advance(LONGEST_WAIT / 2)
    assert world.written == ["a\nb\n"]
    world.clock.advance(10)
    assert not world.clock.getDelayedCalls()
    world.record("c")
    world.clock.advance(LONGEST_WAIT)
    assert world.written == ["a\nb\n", "c\n"]


def test_no_more_than_so_many_wait() -> None:
    world = GatheredLog()
    world.record(*"a" * (MOST_GATHERED - 1))
    assert world.written == []
    world.record("b", "c")
    assert world.written == ["a\n" * (MOST_GATHERED - 1) + "b\n"]
    world.clock.advance(LONGEST_WAIT)
    assert world.written[1:] == ["c\n"]


def test_what_is_written_at_once_has_a_limit() -> None:
    world = GatheredLog(most=6)
    world.record("a", "b", "c", "d", "long line", "e")
    world.clock.advance(LONGEST_WAIT)
    assert world.written == ["a\nb\nc\n", "d\n", "long line\n", "e\n"]
    # Two threads may have flushed at once.
    assert list(_joined([], 6)) == []


def test_who_writes_to_the_same_place_has_them_written_first() -> None:
    world = GatheredLog()
    world.log.flush()
    world.record("a")
    world.log.flush()
    world.log.flush()
    assert world.written == ["a\n"]
    # What comes in the same moment still has its time.
    world.record("b")
    world.clock.advance(LONGEST_WAIT)
    assert world.written == ["a\n", "b\n"]


def test_nothing_is_lost_at_the_end_and_nothing_waits() -> None:
    world = GatheredLog()
    world.record("a")
    world.log.close()
    world.log.close()
    assert world.written == ["a\n"] and not world.clock.getDelayedCalls()


def test_threads_that_flush_lose_and_double_nothing() -> None:
    world = GatheredLog()
    running = True

    def flush() -> None:
        while running:
            world.log.flush()

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    world.record(*map(str, range(3000)))
    running = False
    for thread in threads:
        thread.join()
    world.log.close()
    assert "".join(world.written).split() == [str(number) for number in range(3000)]


def test_the_longest_record_is_shorter_than_what_a_worker_reports_at_once() -> None:
    long = DATAGRAMS._replace(service="\0" * 999, protocol="\0" * 999, listener="\0" * 999, peer="\0" * 999)
    assert len(TextLines(256).record(long)) < 16384


def test_in_a_log_that_is_somebody_else_s_a_record_is_an_event_with_its_fields() -> None:
    lines = Lines()
    events: list[dict[str, object]] = []
    for observer in (lines, events.append):
        globalLogPublisher.addObserver(observer)  # type: ignore[arg-type]
    log_record(STREAM)
    for observer in (lines, events.append):
        globalLogPublisher.removeObserver(observer)  # type: ignore[arg-type]
    assert lines == ["echo tcp 192.0.2.7:5123 listener=0.0.0.0:9001 bytes_in=6 bytes_out=7 seconds=1.250 reason=peer"]
    assert lines.systems == ["netsvc.access"]
    assert events[0]["peer"] == "192.0.2.7" and events[0]["bytes_out"] == 7
