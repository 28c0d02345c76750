"""The errors a user can mend, each of them one line a mistake."""

from __future__ import annotations

from collections.abc import Sequence

from netsvc.text import is_unsafe

__all__ = ["MistakeError", "PluginError", "StartError"]


class MistakeError(ValueError):
    """What the user wrote cannot be run. `mistakes` holds every one found, a printable line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        # Much of it quotes others: words of a command line, file names, whatever a plugin raised.
        self.mistakes = tuple(map(_printable, mistakes))
        super().__init__("\n".join(self.mistakes))


class PluginError(MistakeError):
    """A service plugin that cannot be used: the lines name the plugin, its origin and the cure."""


class StartError(SystemExit, Exception):
    """The process cannot start, or cannot go on.

    Python ends a process that raises a `SystemExit` with its text on stderr and exit status 1, and twistd
    (`UnixApplicationRunner.postApplication`) cleans up its pid file, and tells the shell that waits for a
    daemon, for an `Exception` alone: so this is both.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("\n".join(f"netsvc: {line}" for line in reason.splitlines()))


def _printable(line: str) -> str:
    return "".join(each.encode("unicode_escape").decode("ascii") if is_unsafe(each) else each for each in line)
