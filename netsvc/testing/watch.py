"""Notices what a service raises, logs as an error, or leaves behind."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from twisted.python import failure
from zope.interface import implementer

from netsvc.text import escape

__all__ = ["BreachError", "call_name", "describe", "watched"]

_REACTOR = "twisted.internet.reactor"
#: Frames in Twisted, in this package and in the import system say nothing about the service they lead to.
_MACHINERY = (str(Path(failure.__file__).parent.parent), str(Path(__file__).parent), "<frozen ")


class BreachError(AssertionError):
    """A service does not keep the contract; the text says in one sentence where."""


def _descriptors() -> set[int]:
    # Reading the directory takes a descriptor itself: the lowest free one, both times.
    return {int(name) for name in os.listdir("/dev/fd")}


def _real_calls() -> set[Any]:
    """Return what is scheduled on the process's own reactor, if there is one."""
    return set(sys.modules[_REACTOR].getDelayedCalls()) if _REACTOR in sys.modules else set()


def call_name(call: Any) -> str:
    """Name what a delayed call would call."""
    return str(getattr(call.func, "__qualname__", call.func))


def describe(error: BaseException) -> str:
    """Name an error in one line, and where in the service it comes from."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    own = [place for place in places if not place.startswith(_MACHINERY)]
    reason = escape(" ".join(f"{type(error).__name__}: {error}".split()), 400)
    return f"{reason} at {own[-1]}" if own else reason


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Run a block that exercises a service. `what` names it for the sentence: `build()`, say.

    Raises `BreachError` if the block raises, if an error is logged, or if a descriptor stays open or a call
    stays scheduled on the process's own reactor that were not there before.
    """
    failures: list[str] = []
    errors: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if event.get("log_failure") is not None:
            failures.append(describe(event["log_failure"].value))
        elif event.get("log_level") in (LogLevel.error, LogLevel.critical):
            errors.append(escape(formatEvent(event)))

    descriptors, calls, had_reactor = _descriptors(), _real_calls(), _REACTOR in sys.modules
    globalLogPublisher.addObserver(observe)
    try:
        yield
        # A Deferred that failed unheard is logged when it is collected.
        gc.collect()
    except BreachError:
        raise
    except (Exception, SystemExit) as error:
        raise BreachError(f"{what} raised {describe(error)}") from error
    finally:
        globalLogPublisher.removeObserver(observe)
    if failures or errors:
        raise BreachError(f"{what} logged an error: {(failures or errors)[0]}")
    scheduled = [call for call in _real_calls() - calls if call.active()]
    if scheduled:
        name = call_name(scheduled[0])
        for call in scheduled:
            call.cancel()
        raise BreachError(f"{what} left a call on the process's own reactor ({name}); use context.reactor")
    # A reactor that came to be meanwhile has descriptors of its own.
    left = len(_descriptors() - descriptors)
    if left and had_reactor == (_REACTOR in sys.modules):
        raise BreachError(f"{what} left {left} file descriptor{'s' * (left > 1)} open")
