"""Clients get time to close, all by one timer."""

from __future__ import annotations

from twisted.internet.task import Clock

from netsvc.services.files.transport import LINGER, HalfClosed


class Ending:
    """A transport that tells when it was asked to close, and of its loss, as Twisted's do."""

    def __init__(self, lingering: HalfClosed) -> None:
        self.lingering = lingering
        self.closed = 0

    def loseConnection(self) -> None:
        self.closed += 1
        self.lingering.remove(self)


def test_each_connection_is_closed_in_its_time() -> None:
    clock = Clock()
    lingering = HalfClosed(clock)
    first, second, third = (Ending(lingering) for _ in range(3))
    lingering.add(first)
    clock.advance(0.5)
    lingering.add(second)
    lingering.add(third)
    clock.advance(LINGER - 0.5)
    assert (first.closed, second.closed) == (1, 0)
    clock.advance(0.4)
    assert second.closed == 0
    clock.advance(0.2)
    assert (first.closed, second.closed, third.closed) == (1, 1, 1)
    assert clock.getDelayedCalls() == []


def test_one_timer_serves_all_and_none_is_left_when_all_have_closed() -> None:
    clock = Clock()
    lingering = HalfClosed(clock)
    endings = [Ending(lingering) for _ in range(10)]
    for ending in endings:
        lingering.add(ending)
    assert len(clock.getDelayedCalls()) == 1
    for ending in endings:
        lingering.remove(ending)
        lingering.remove(ending)
    assert clock.getDelayedCalls() == []
    lingering.add(endings[0])
    clock.advance(LINGER)
    assert [ending.closed for ending in endings] == [1] + 9 * [0]
