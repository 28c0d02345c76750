"""How this process was started: so the program that is installed now is started in its place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from netsvc.host.notify import OWN
from netsvc.host.standin import FORWARDED
from netsvc.text import escape

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """A command, with the directory and the environment in which it was given, and the signals it was to ignore."""

    words: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    ignored: Sequence[int] = ()

    @classmethod
    def current(cls) -> Program:
        """Return that of this process. To be called before anything has left the directory that it was started in."""
        ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
        return cls(tuple(sys.orig_argv), _directory(), dict(os.environ), ignored)

    @property
    def path(self) -> str:
        """The file to execute."""
        named = self.words[0]
        path = os.path.join(self.directory, named) if "/" in named else ""
        return path if path and os.access(path, os.X_OK, effective_ids=True) else sys.executable

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment, with `more`, and without what was said to this process alone."""
        return {name: value for name, value in self.environment.items() if name not in OWN} | dict(more)

    def refusal(self) -> str:
        """Say why it cannot be started again, if it cannot."""
        if not os.access(self.path, os.X_OK, effective_ids=True):
            return f"user {os.geteuid()} may not run {escape(self.path)}, or it is not below a changed root"
        if not os.access(self.directory, os.X_OK, effective_ids=True):
            return (
                f"user {os.geteuid()} cannot enter {escape(self.directory)}, where it was started, or it is not below "
                "a changed root"
            )
        return ""


def _directory() -> str:
    """Return the working directory, as it was named: a link may point to another version by the time of an upgrade."""
    named = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    return os.getcwd()
