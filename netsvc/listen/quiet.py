"""Suppresses log lines of Twisted for events that netsvc reports itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.logger import LogLevel
from twisted.python import context
from twisted.python.log import ILogContext

_P = ParamSpec("_P")
_T = TypeVar("_T")


def quietly(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function; what it logs through `twisted.python.log` becomes empty events of level debug.

    Text logs omit an event without text. Events of `twisted.logger` are unchanged.
    """
    quiet = {**(context.get(ILogContext) or {}), "log_format": "", "log_level": LogLevel.debug}
    return context.call({ILogContext: quiet}, function, *args, **kwargs)  # type: ignore[no-any-return]
