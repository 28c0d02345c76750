"""A clock that nobody sets: for all that waits and measures. What it shows is no date, though it looks like one."""

from __future__ import annotations

from time import monotonic, time
from typing import Any

from twisted.internet.base import ReactorBase

__all__ = ["keep_steady", "seconds"]

#: So that it looks like seconds since the epoch, which some programs take a reactor's clock for.
_OFFSET = time() - monotonic()


def seconds() -> float:
    """Return the seconds since the epoch as if the system's clock had gone on evenly since the process began.

    Twisted's own reactors ask the system's clock. When that is set forward, every timeout comes at once, and when it
    is set back, none comes for as long as that.
    """
    return monotonic() + _OFFSET


def keep_steady(reactor: Any) -> None:
    """Have a reactor of Twisted's go by this clock, and all that is to be called from now on.

    To be called before it runs: what it was asked for earlier was asked for by the other clock.
    """
    if isinstance(reactor, ReactorBase) and "seconds" not in vars(reactor):
        reactor.seconds = seconds
