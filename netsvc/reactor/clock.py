"""A monotonic clock for timeouts and measurements. Its value looks like seconds since the epoch, but is not a date."""

from __future__ import annotations

from time import monotonic, time
from typing import Any

from twisted.internet.base import ReactorBase

__all__ = ["seconds", "use_monotonic_clock"]

#: Added because some programs take a reactor's clock for seconds since the epoch.
_OFFSET = time() - monotonic()


def seconds() -> float:
    """Return monotonic seconds, offset to the time since the epoch when the process started.

    Twisted's own reactors use the system clock. When that is set forward, all timeouts fire at once; when it is set
    back, none fires for as long.
    """
    return monotonic() + _OFFSET


def use_monotonic_clock(reactor: Any) -> None:
    """Make a reactor of Twisted use this clock for delayed calls.

    Call it before the reactor runs; delayed calls that were made earlier are due by the system clock.
    """
    if isinstance(reactor, ReactorBase) and "seconds" not in vars(reactor):
        reactor.seconds = seconds
