"""Exceptions that show the line of a test, and the code that failed, without the frames of netsvc between them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

import twisted
from netsvc.base.errors import ANYTHING, UserError

#: unittest cuts the traceback of a failed assertion here.
__unittest = True

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_KIT = f"{Path(__file__).parent}/"
_NETSVC = f"{Path(__file__).parents[1]}/"
_SERVICES = f"{_NETSVC}services/"
_TWISTED = tuple(f"{path}/" for path in twisted.__path__)


def shown_at_caller(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function that tests call: an exception shows the line that called it, then the code of the service.

    The traceback begins with the last frame of that code. If none of it ran, the frames of this package are left out,
    and for an `AssertionError` or a `UserError` all others as well: the message says what is wrong.
    """

    @wraps(function)
    def call(*arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Result:
        __tracebackhide__ = True
        try:
            return function(*arguments, **keywords)
        except ANYTHING as error:
            raise error.with_traceback(_shortened(error)) from error.__cause__

    return call


def _shortened(error: BaseException) -> TracebackType | None:
    levels: list[TracebackType] = []
    level = error.__traceback__
    while level is not None:
        levels.append(level)
        level = level.tb_next
    last = max((place for place, each in enumerate(levels) if is_service(each.tb_frame)), default=None)
    if last is not None:
        kept = [each for each in levels[:last] if is_service(each.tb_frame)] + levels[last:]
    elif isinstance(error, AssertionError | UserError):
        kept = []
    else:
        kept = [each for each in levels if not _file(each.tb_frame).startswith(_KIT)]
    shortened: TracebackType | None = None
    for each in reversed(kept):
        shortened = TracebackType(shortened, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return shortened


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def is_service(frame: FrameType) -> bool:
    """Return whether a frame is of the service: not of netsvc, Twisted or the standard library."""
    file = _file(frame)
    if file.startswith(_SERVICES):
        return True
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return not (file.startswith((_NETSVC, *_TWISTED, "<")) or module in sys.stdlib_module_names)
