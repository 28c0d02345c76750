"""Signals that come again while the process stops, and the limit of open files."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from twisted.internet.testing import MemoryReactorClock

from netsvc.base.signals import Signals
from netsvc.server.process import allow_descriptors, reload_on_hangup, take_over_signals


@contextmanager
def reactor_handlers() -> Iterator[list[tuple[str, int]]]:
    """Stand in for the reactor's handlers, and put back what was there.

    No fixture: the reactor that runs the tests installs its own handlers after the first test's fixtures.
    """
    calls: list[tuple[str, int]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: calls.append(("stop", number)))
    try:
        yield calls
    finally:
        for number, original in before.items():
            signal.signal(number, original)


def test_the_first_signal_stops_the_reactor_and_repeats_do_nothing() -> None:
    with reactor_handlers() as calls:
        take_over_signals(MemoryReactorClock(), lambda: calls.append(("force", 0)))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [("stop", signal.SIGTERM)]


def test_a_repeated_interrupt_forces() -> None:
    with reactor_handlers() as calls:
        take_over_signals(MemoryReactorClock(), lambda: calls.append(("force", 0)))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [("stop", signal.SIGINT)]
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == [("stop", signal.SIGINT), ("force", 0)]


def test_a_reactor_that_something_else_stops_is_not_stopped_by_a_signal() -> None:
    with reactor_handlers() as calls:
        reactor = MemoryReactorClock()
        take_over_signals(reactor, lambda: calls.append(("force", 0)))
        for function, arguments, _ in reactor.triggers["before"]["shutdown"]:
            function(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == []
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == [("force", 0)]


def test_without_handlers_of_a_reactor_nothing_is_touched() -> None:
    with reactor_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        take_over_signals(MemoryReactorClock(), lambda: None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 4096, (4096, 4096)),
        (4096, 4096, None),
        (1024, resource.RLIM_INFINITY, (1 << 20, resource.RLIM_INFINITY)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: tuple[int, int] | None
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: raised.append(limits))
    allow_descriptors()
    assert raised == ([expected] if expected else [])


class Reactor:
    """Collects what is to be called from the reactor."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def test_a_hangup_reloads_from_the_reactor_and_several_at_once_are_one() -> None:
    reactor, reloads = Reactor(), list[str]()
    with reactor_handlers():
        reload_on_hangup(reactor, lambda: reloads.append("reload"), Signals())
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert reloads == []
        reactor.run()
        assert reloads == ["reload"]
        os.kill(os.getpid(), signal.SIGHUP)
        reactor.run()
        assert reloads == ["reload", "reload"]
