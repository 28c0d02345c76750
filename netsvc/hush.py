"""Keeps lines of Twisted's out of the log that say worse what netsvc says itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.logger import LogLevel
from twisted.python import context
from twisted.python.log import ILogContext

__all__ = ["hushed"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def hushed(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function; what it logs through the old `twisted.python.log` becomes empty events of level debug.

    Text logs leave out an event that has no text. Events of `twisted.logger` pass unchanged.
    """
    quiet = {**(context.get(ILogContext) or {}), "log_format": "", "log_level": LogLevel.debug}
    return context.call({ILogContext: quiet}, function, *args, **kwargs)  # type: ignore[no-any-return]
