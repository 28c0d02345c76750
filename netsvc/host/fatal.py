"""Ends the process for a reason that is read by whoever started it."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence

from twisted.logger import Logger, LoggingFile

from netsvc.errors import StartError

__all__ = ["die", "start_error"]

_log = Logger(namespace="netsvc")


def start_error(mistakes: Sequence[str]) -> StartError:
    """Make the error that ends the process, and see to it that it is read.

    twistd may have turned stderr into a part of the log by now, and in a daemon nobody sees it: so the lines
    go to the log, and to the real stderr, and Python shall not print them once more.
    """
    error = StartError("\n".join(mistakes))
    if isinstance(sys.stderr, LoggingFile):
        if not _same_terminal():
            for mistake in mistakes:
                _log.critical("{mistake}", mistake=mistake)
        _print(error)
        error.code = 1
    return error


def _same_terminal() -> bool:
    """Tell whether the log and the errors go to one terminal, where a line need not stand twice."""
    try:
        return os.isatty(1) and os.isatty(2) and os.path.sameopenfile(1, 2)
    except OSError:
        return False


def _print(error: StartError) -> None:
    if sys.__stderr__ is not None:
        print(error, file=sys.__stderr__, flush=True)


def die(reason: str) -> None:
    """End the process with `reason` on stderr and exit status 1, from inside the running reactor."""
    from twisted.internet import reactor

    def leave() -> None:
        sys.stdout.flush()
        os._exit(1)

    _log.critical("{reason}", reason=reason)
    _print(StartError(reason))
    # The reactor swallows a SystemExit; twistd's clean-up shall run all the same.
    atexit.register(leave)
    reactor.stop()
