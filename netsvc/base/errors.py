"""Errors that a user can fix, one line each."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from netsvc.base.text import escape, is_unsafe

#: What importing a plugin may raise; a script without `if __name__` exits.
ANYTHING = (Exception, SystemExit)
#: Frames that are not the plugin's own: of the import machinery, of asyncio, and of our code that runs it.
_HERE = Path(__file__).parents[1]
_NOT_THE_AUTHORS = (
    str(Path(importlib.__file__).parent),
    str(Path(importlib.__file__).parents[1] / "asyncio"),
    "<frozen ",
    *(f"{_HERE / part}" for part in ("base", "config", "guard", "plan", "testing")),
    *(f"{_HERE / part}.py" for part in ("coroutine", "datagram", "options", "service")),
)


class UserError(ValueError):
    """What the user wrote cannot be run. `errors` has a printable line for each error."""

    def __init__(self, errors: Sequence[str]) -> None:
        # They quote arguments, file names and errors of plugins.
        self.errors = tuple(map(_printable, errors))
        super().__init__("\n".join(self.errors))


class PluginError(UserError):
    """A service plugin that cannot be used. The lines name the plugin, its origin and the cure."""


class StartError(SystemExit, Exception):
    """The process cannot start or continue.

    Python ends a process that raises a `SystemExit` with its text on stderr and exit status 1, and twistd
    (`UnixApplicationRunner.postApplication`) cleans up its pid file, and reports to the shell that waits for a
    daemon, only for an `Exception`: so this is both.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("\n".join(f"netsvc: {line}" for line in reason.splitlines()))


def _printable(line: str) -> str:
    return "".join(each.encode("unicode_escape").decode("ascii") if is_unsafe(each) else each for each in line)


def describe(error: BaseException) -> str:
    """Describe an error in one line with its location, for the author of the code that it came from.

    That is the innermost frame outside Twisted, the import system, and netsvc's readers of plugins.
    """
    twisted = sys.modules.get("twisted")
    others = (*_NOT_THE_AUTHORS, *(twisted.__path__ if twisted else ()))
    places = [f"{frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if not place.startswith(others)]
    location = f" at {own[-1]}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        location = f" at {error.filename}:{error.lineno}"
    if isinstance(error, UserError):
        # It has a line for each error, written for users.
        return escape("; ".join(error.errors), 2000) + location
    return escape(f"{type(error).__name__}: {error}".splitlines()[0], 400) + location
