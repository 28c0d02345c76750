"""Writes the log of twistd: the same lines to the same place, in a fraction of the time.

An access line for each of thousands of requests a second costs more than the requests, as Twisted writes it. Here the
time is put into words once a second, and a format that has nothing but names of fields is filled in by Python itself.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping
from functools import lru_cache
from math import floor
from threading import RLock
from typing import Any

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, formatEventAsClassicLogText, formatTime
from twisted.python.logfile import LogFile
from zope.interface import implementer

from netsvc.errors import StartError
from netsvc.text import escape

__all__ = ["LogsText", "TextLog", "text_log"]

#: Formats that Python fills in as Twisted does: no calls, attributes, conversions, or doubled braces.
_SIMPLE = re.compile(r"(?:[^{}]++|\{[a-z]\w*+\})*+", re.ASCII)


@implementer(ILogObserver)
class TextLog:
    """Writes events to a text file, each at once, as `twisted.logger.textFileLogObserver` does.

    The lines are the same to the byte. It may be called by several threads at once if `out` may.
    """

    def __init__(self, out: Any) -> None:
        self._write = out.write
        self._flush = out.flush
        #: A second and its words: one object, for threads.
        self._now: tuple[float, str] = (0.0, formatTime(0.0))

    def __call__(self, event: LogEvent) -> None:
        """Write an event, if there is anything to say."""
        line = self._line(event)
        if line:
            self._write(line)
            self._flush()

    def _line(self, event: LogEvent) -> str | None:
        template = event.get("log_format")
        if type(template) is str and _is_simple(template):
            system, level = event.get("log_system"), event.get("log_level")
            if system is None and level is not None:
                system = f"{event.get('log_namespace', '-')}#{level.name}"
            if type(system) is str and "log_failure" not in event and "log_flattened" not in event:
                try:
                    text = template.format_map(event)
                except Exception:  # noqa: BLE001  (a field is missing, or cannot be shown: Twisted says so, below)
                    text = None
                if text is not None:
                    line = f"{self._time(event.get('log_time'))} [{system}] {text}"
                    return line.replace("\n", "\n\t") + "\n" if text else None
        return formatEventAsClassicLogText(event, self._time)

    def _time(self, when: float | None) -> str:
        if when is None:
            return formatTime(None)
        second, words = self._now
        if not second <= when < second + 1:
            second = floor(when)
            words = formatTime(second)
            self._now = (second, words)
        return words


@lru_cache(maxsize=256)
def _is_simple(template: str) -> bool:
    return _SIMPLE.fullmatch(template) is not None


class _File(LogFile):
    """A log file that takes lines with one lock and one call, from any thread."""

    size: int
    rotateLength: int

    def __init__(self, name: str, directory: str) -> None:
        self._lock = RLock()
        super().__init__(name, directory)

    def write(self, data: str) -> None:
        line = data.encode()
        with self._lock:
            if self.size >= self.rotateLength:
                self.rotate()
            self._file.write(line)
            self.size += len(line)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def rotate(self) -> None:
        with self._lock:
            super().rotate()


def text_log(options: Mapping[str, Any]) -> TextLog | None:
    """Open the log that the options of twistd ask for; None if it is one that twistd has to open.

    Those are `--logger` and `--syslog`, the log of `--debug`, and every log of twist or of another system than
    POSIX. SIGUSR1 rotates a log file, unless somebody else takes that signal. Raises `StartError` if the file
    cannot be opened.
    """
    if "nodaemon" not in options or any(options.get(other) for other in ("logger", "syslog", "debug")):
        return None
    name = options.get("logfile")
    if name == "-" and not options["nodaemon"]:
        raise StartError("a daemon cannot log to stdout: give --logfile another name, or give -n")
    if name == "-" or (options["nodaemon"] and not name):
        return TextLog(sys.stdout)
    name = name or "twistd.log"
    try:
        file = _File.fromFullPath(name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"log file {escape(name)}: {reason}; give --logfile a name that can be written") from None
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: _rotate(file))
    return TextLog(file)


def _rotate(file: Any) -> None:
    from twisted.internet import reactor

    # Not from here: a signal comes at any moment, in the middle of a line too.
    reactor.callFromThread(file.rotate)  # type: ignore[attr-defined]


class LogsText(Service):
    """A root service that brings its application a `TextLog`, if `twistd_options` are those of a twistd."""

    twistd_options: Mapping[str, Any] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, which twistd asks for its log once it is complete."""
        super().setServiceParent(parent)
        log = text_log(self.twistd_options or {})
        if log is not None:
            parent.setComponent(ILogObserver, log)
