"""The signals of a serving process: taken over in its first line, and acted on when it is ready.

Without that, SIGHUP, SIGUSR1 and SIGUSR2 would end a process that has just been started. Importing this module takes
none. Standard library only, and little of it: it is imported before anything else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

#: The signals that are requests to a serving process, and would end any other.
TAKEN = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Signals:
    """Remembers signals until there is a function that acts on them; several of one number count as one.

    A SIGHUP sent because the controlling terminal was closed is handled as SIGTERM at once, unless SIGHUP was ignored
    at the start (nohup).
    """

    def __init__(self, has_terminal: Callable[[], bool] = _has_terminal) -> None:
        self._has_terminal = has_terminal
        self._had_terminal = False
        self._ignored: set[int] = set()
        self._received: set[int] = set()
        self._actions: dict[int, Callable[[], object]] = {}

    def take_over(self) -> None:
        """Remember the signals of `TAKEN` from now on, except for signals with a handler. For the main thread."""
        for number in TAKEN:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
                self._install(number)
        unblock(TAKEN)

    def _install(self, number: int) -> None:
        before = signal.signal(number, self._on_signal)
        if before is signal.SIG_IGN:
            self._ignored.add(number)
        if number == signal.SIGHUP:
            self._had_terminal = number not in self._ignored and self._has_terminal()

    def act_on(self, number: int, act: Callable[[], object]) -> None:
        """Call `act`, in a signal handler, for each signal from now on, and now if one was received before."""
        if signal.getsignal(number) != self._on_signal:
            self._install(number)
        self._actions[number] = act
        if number in self._received:
            self._received.discard(number)
            act()

    def is_free(self, number: int) -> bool:
        """Return whether nothing acts on a signal: it has no handler, or is only remembered."""
        handler = signal.getsignal(number)
        return handler is signal.SIG_DFL or (handler == self._on_signal and number not in self._actions)

    def was_ignored(self, number: int) -> bool:
        """Return whether a signal was ignored when this process was started, as by nohup."""
        return number in self._ignored or signal.getsignal(number) is signal.SIG_IGN

    def ignore(self, number: int) -> None:
        """Treat a signal as ignored at the start of the process that this one replaces."""
        if number in TAKEN:
            self._ignored.add(number)
            if number == signal.SIGHUP:
                self._had_terminal = False
        else:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._had_terminal and not self._has_terminal():
            signal.raise_signal(signal.SIGTERM)
        elif number in self._actions:
            self._actions[number]()
        else:
            self._received.add(number)


#: The signals of this process.
process_signals = Signals()


@contextmanager
def blocked(numbers: Iterable[int] = TAKEN) -> Iterator[None]:
    """Block signals meanwhile. A process that is started here inherits that, and must call `unblock`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock(numbers: Iterable[int]) -> None:
    """Receive signals that the parent process has blocked, when this one can handle them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
