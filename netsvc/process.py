"""What belongs to the whole process: its signals, and how many descriptors it may open."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["allow_descriptors", "take_over_signals"]

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
