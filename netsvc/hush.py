"""Keeps lines of Twisted's out of the log that say worse what netsvc says itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python import context
from twisted.python.log import ILogContext
from zope.interface import implementer

__all__ = ["AcceptLog", "hushed"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def hushed(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function; what it logs through the old `twisted.python.log` becomes empty events of level debug.

    Text logs leave out an event that has no text. Events of `twisted.logger` pass unchanged.
    """
    quiet = {**(context.get(ILogContext) or {}), "log_format": "", "log_level": LogLevel.debug}
    return context.call({ILogContext: quiet}, function, *args, **kwargs)  # type: ignore[no-any-return]


@implementer(ILogObserver)
class AcceptLog:
    """Takes the lines that Twisted logs for each connection it cannot accept, two of them for want of a descriptor.

    Any client can cause thousands. There is one warning in `INTERVAL` seconds, with how many were turned away.
    """

    INTERVAL = 60.0

    def __init__(self, clock: Any, log: Logger) -> None:
        self._clock = clock
        self._log = log
        self._quiet_until = float("-inf")
        self._turned_away = 0

    def __call__(self, event: LogEvent) -> None:
        """Take one line."""
        self._turned_away += "Closed socket" in event["log_format"]
        now = self._clock.seconds()
        if now >= self._quiet_until:
            self._quiet_until = now + self.INTERVAL
            self._log.warn(
                "connections cannot be accepted, {count} so far were closed; is a higher ulimit -n needed?",
                count=self._turned_away,
            )
