"""What belongs to the whole process: its signals, and how many descriptors it may open."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["allow_descriptors", "take_over_hangup", "take_over_signals"]

#: Descriptors. More than any machine has ports and memory for; a hard limit may be "infinity".
_ENOUGH = 1 << 20


def allow_descriptors() -> None:
    """Raise the soft limit of open files, commonly 1,024, to the hard one: each connection is a descriptor.

    The soft limit is low for the sake of programs that use select(2), as Go and nginx know too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def take_over_signals(reactor: Any, force: Callable[[], None]) -> None:
    """Stand before the reactor's handlers of SIGTERM and SIGINT: each stops the reactor, once.

    Repeats change nothing (a container runtime sends several, and the reactor would log a traceback for
    each), but a repeated SIGINT calls `force`: somebody at the keyboard does not want to wait. To be called
    when the reactor runs, in the main thread; where the reactor has no handlers, nothing is done.
    """
    received: list[int | None] = []

    def on_signal(number: int, frame: FrameType | None) -> Any:
        received.append(number)
        if len(received) == 1:
            return originals[number](number, frame)
        if number == signal.SIGINT:
            force()

    originals: dict[int, Callable[[int, FrameType | None], Any]] = {}
    # A reactor that something else has stopped is not to be stopped by a signal once more.
    reactor.addSystemEventTrigger("before", "shutdown", received.append, None)
    for number in (signal.SIGTERM, signal.SIGINT):
        original = signal.getsignal(number)
        if callable(original) and original is not signal.default_int_handler:
            originals[number] = original
            signal.signal(number, on_signal)


def take_over_hangup(reactor: Any, reload: Callable[[], None], has_terminal: Callable[[], bool] | None = None) -> None:
    """Have SIGHUP call `reload` from the reactor; several that come at once are one.

    But when the terminal that the process belongs to is gone, and SIGHUP says that, it is a SIGTERM: who closes the
    window of a server that runs in it does not want to have it for ever. Not so if SIGHUP was ignored (nohup).
    """
    looks = has_terminal or _has_terminal
    had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and looks()
    waiting = False

    def on_hangup(_number: int, _frame: FrameType | None) -> None:
        nonlocal waiting
        if had_terminal and not looks():
            signal.raise_signal(signal.SIGTERM)
        elif not waiting:
            waiting = True
            reactor.callFromThread(hung_up)

    def hung_up() -> None:
        nonlocal waiting
        waiting = False
        reload()

    signal.signal(signal.SIGHUP, on_hangup)


def _has_terminal() -> bool:
    """Tell whether there is a terminal that controls this process (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
