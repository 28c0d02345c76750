"""Ends code that runs without an end, so that a check of it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from netsvc.testing.frames import is_service

__all__ = ["OverrunError", "Watchdog"]

#: Seconds of processor time after which it is interrupted again, if it has caught the first `OverrunError`.
_AGAIN = 0.5


class OverrunError(BaseException):
    """The code has used up its processor time. Not an `Exception`, so that the code does not catch it."""


class Watchdog:
    """Interrupts the main thread when `limit` seconds of processor time have passed since the last `feed`.

    It counts the time of the process (ITIMER_VIRTUAL), so that a busy machine does not matter. In another thread, which
    Python cannot interrupt, it does nothing.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._runs = False
        #: Where the code was when its time had passed; None if it has not.
        self.overran: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch a block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: Any = signal.signal(signal.SIGVTALRM, self._interrupt)
        self._runs = True
        self.feed()
        try:
            yield
        finally:
            self._runs = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)

    def feed(self) -> None:
        """Restart the count."""
        if self._runs:
            signal.setitimer(signal.ITIMER_VIRTUAL, self._limit, _AGAIN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._runs:
            return
        innermost = frame
        while frame is not None and not is_service(frame):
            frame = frame.f_back
        frame = frame or innermost
        if self.overran is None and frame is not None:
            self.overran = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_qualname})"
        raise OverrunError
