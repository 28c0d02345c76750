"""How the process is: whether its event loop keeps up, and what it uses."""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from typing import Any

from netsvc.status import Vitals

__all__ = ["INTERVAL", "Pulse", "look"]

#: Seconds between two measurements, and how many are remembered: a minute's.
INTERVAL = 0.5
_REMEMBERED = 120
_FORGETFUL = 60.0

_PAGE = resource.getpagesize()


class Pulse:
    """Measures by how much the event loop is late: something is to be called at a moment, and is called after it.

    It does so from when it is first looked at, until nobody has looked for `_FORGETFUL` seconds. `monotonic()` is a
    clock that nobody sets.
    """

    def __init__(self, clock: Any, monotonic: Any = time.monotonic) -> None:
        self.delays: deque[float] = deque([0.0], maxlen=_REMEMBERED)
        self._clock = clock
        self._monotonic = monotonic
        self._due = 0.0
        self._call: Any = None
        self._beats = 0
        self._is_over = False

    def keep_on(self) -> None:
        """Go on to measure, as somebody looks."""
        self._beats = int(_FORGETFUL / INTERVAL)
        if self._call is None and not self._is_over:
            self._await_beat()

    def _await_beat(self) -> None:
        self._due = self._monotonic() + INTERVAL
        self._call = self._clock.callLater(INTERVAL, self._beat)

    def _beat(self) -> None:
        self._call = None
        self.delays.append(max(0.0, self._monotonic() - self._due))
        self._beats -= 1
        if self._beats > 0:
            self._await_beat()

    def stop(self) -> None:
        """Measure no more, whoever looks."""
        self._is_over = True
        if self._call is not None:
            self._call.cancel()
            self._call = None


def look(pulse: Pulse, reactor: Any) -> Vitals:
    """Look at the process. What the system does not tell is 0."""
    pulse.keep_on()
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Vitals(
        pulse.delays[-1],
        max(pulse.delays),
        _descriptors(),
        soft,
        _memory(),
        used.ru_utime + used.ru_stime,
        len(reactor.getDelayedCalls()),
    )


def _descriptors() -> int:
    try:
        # Since Linux 6.2 it is as large as there are; to list thousands takes milliseconds.
        size = os.stat("/proc/self/fd").st_size
        # One of those listed is that of the directory itself.
        return size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return 0


def _memory() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
