"""Signals that come again while the process stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from netsvc.signals import take_over


@pytest.fixture
def calls() -> Iterator[list[tuple[str, int]]]:
    """Stand in for the reactor's handlers, and put back what was there."""
    calls: list[tuple[str, int]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: calls.append(("stop", number)))
    yield calls
    for number, original in before.items():
        signal.signal(number, original)


def test_the_first_signal_stops_the_reactor_and_repeats_do_nothing(calls: list[tuple[str, int]]) -> None:
    take_over(lambda: calls.append(("force", 0)))
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [("stop", signal.SIGTERM)]


def test_a_repeated_interrupt_forces(calls: list[tuple[str, int]]) -> None:
    take_over(lambda: calls.append(("force", 0)))
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [("stop", signal.SIGINT)]
    os.kill(os.getpid(), signal.SIGINT)
    assert calls == [("stop", signal.SIGINT), ("force", 0)]


def test_without_handlers_of_a_reactor_nothing_is_touched(calls: list[tuple[str, int]]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    take_over(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
