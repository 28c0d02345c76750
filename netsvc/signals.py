"""What the process does when a signal comes again while it stops."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["take_over"]


def take_over(force: Callable[[], None]) -> None:
    """Stand before the reactor's handlers of SIGTERM and SIGINT: each stops the reactor, once.

    Repeats change nothing (a container runtime sends several, and the reactor would log a traceback for
    each), but a repeated SIGINT calls `force`: somebody at the keyboard does not want to wait. To be called
    when the reactor runs, in the main thread; where the reactor has no handlers, nothing is done.
    """
    received = []

    def on_signal(number: int, frame: FrameType | None) -> Any:
        received.append(number)
        if len(received) == 1:
            return originals[number](number, frame)
        if number == signal.SIGINT:
            force()

    originals: dict[int, Callable[[int, FrameType | None], Any]] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        original = signal.getsignal(number)
        if callable(original) and original is not signal.default_int_handler:
            originals[number] = original
            signal.signal(number, on_signal)
