"""Signals that come before a process can act on them are remembered, and acted on when it is ready."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netsvc.base.signals import TAKEN, Signals, _has_terminal, blocked, unblock
from tests.builders.processes import PATIENCE

NUMBERS = (*TAKEN, signal.SIGTERM)


@contextmanager
def free() -> Iterator[list[int]]:
    """Give the signals their default, collect SIGTERM, and put back what was there.

    No fixture: the reactor that runs the tests installs its own handlers after the first test's fixtures.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.parametrize("number", TAKEN)
def test_a_signal_that_comes_early_is_acted_on_once_and_later_ones_at_once(number: int) -> None:
    acted: list[int] = []
    with free():
        signals = Signals(lambda: False)
        signals.take_over()
        for _ in range(3):
            signal.raise_signal(number)
        signals.act_on(number, lambda: acted.append(1))
        assert acted == [1]
        signal.raise_signal(number)
        assert acted == [1, 1]


def test_one_that_did_not_come_is_not_acted_on() -> None:
    acted: list[int] = []
    with free():
        signals = Signals(lambda: False)
        signals.take_over()
        signal.raise_signal(signal.SIGHUP)
        signals.act_on(signal.SIGUSR2, lambda: acted.append(1))
        assert not acted


def test_a_handler_that_is_there_is_left_alone_and_what_was_ignored_is_known() -> None:
    calls: list[int] = []
    with free():
        signal.signal(signal.SIGUSR1, lambda number, _: calls.append(number))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals = Signals(lambda: True)
        for _ in range(2):
            signals.take_over()
        signal.raise_signal(signal.SIGUSR1)
        assert calls == [signal.SIGUSR1]
        assert not signals.is_free(signal.SIGUSR1) and signals.is_free(signal.SIGUSR2)
        assert signals.was_ignored(signal.SIGHUP) and not signals.was_ignored(signal.SIGUSR2)
        signals.act_on(signal.SIGUSR2, lambda: None)
        assert not signals.is_free(signal.SIGUSR2)


@pytest.mark.parametrize(
    ("had", "has", "ignored", "stops"),
    [
        (True, False, "", True),
        (True, True, "", False),
        (False, False, "", False),
        (True, False, "by itself", False),
        (True, False, "by its predecessor", False),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_hangup_of_the_terminal_that_it_had_stops_it(
    had: bool, has: bool, ignored: str, stops: bool, early: bool
) -> None:
    terminal, acted = [had], list[int]()
    with free() as stopped:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored == "by itself" else signal.SIG_DFL)
        signals = Signals(lambda: terminal[-1])
        signals.take_over()
        if ignored == "by its predecessor":
            signals.ignore(signal.SIGHUP)
        if not early:
            signals.act_on(signal.SIGHUP, lambda: acted.append(1))
        terminal.append(has)
        signal.raise_signal(signal.SIGHUP)
        if early:
            signals.act_on(signal.SIGHUP, lambda: acted.append(1))
        assert stopped == ([signal.SIGTERM] if stops else [])
        assert acted == ([] if stops else [1])


def test_a_process_inherits_what_was_blocked_and_can_unblock_it() -> None:
    program = (
        "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); "
        "from netsvc.base.signals import process_signals; process_signals.take_over(); "
        "process_signals.act_on(signal.SIGUSR2, lambda: print('acted'))"
    )
    with free(), blocked():
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "acted\n", "")


def test_blocking_ends_as_it_began() -> None:
    with free():
        with blocked([signal.SIGUSR1]), blocked([signal.SIGUSR1, signal.SIGUSR2]):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= {signal.SIGUSR1, signal.SIGUSR2}
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGUSR1, signal.SIGUSR2}
        with blocked([signal.SIGUSR1]):
            unblock([signal.SIGUSR1])
            assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_importing_the_library_takes_no_signal() -> None:
    program = (
        "import signal, netsvc.tap, netsvc.service, netsvc.testing, netsvc.cli.run, netsvc.app.application, "
        "netsvc.workers.worker, netsvc.embedded.endpoint, netsvc.__main__\n"
        "print([signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)] "
        "== [signal.SIG_DFL] * 3)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_a_terminal_is_seen_as_long_as_it_is_there() -> None:
    assert _has_terminal() in (False, True)
    pid, ours = pty.fork()
    if not pid:
        # In the child, whose terminal it is.
        seen = _has_terminal()
        os._exit(0 if seen else 1)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ours)
    pid = os.fork()
    if not pid:
        os.setsid()
        os._exit(1 if _has_terminal() else 0)
    assert os.waitpid(pid, 0)[1] == 0
