"""Opens the log that a plan and the options of twistd ask for, and brings it to the application."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from zope.interface import implementer

from netsvc.errors import StartError
from netsvc.log.access import AccessLog, log_record
from netsvc.log.fields import ACCESS_SOURCE, Lines
from netsvc.log.file import LogFile
from netsvc.log.flood import Flood
from netsvc.log.jsonlines import JsonLines
from netsvc.log.output import Output
from netsvc.log.text import TextLines
from netsvc.plan import Plan
from netsvc.records import Record
from netsvc.text import escape
from netsvc.workers.reports import RELAYED_ACCESS

__all__ = ["Log", "Logging", "OpenLog"]

_log = Logger(namespace="netsvc")
_access_log = Logger(namespace=ACCESS_SOURCE)


@implementer(ILogObserver)
class Log:
    """Writes events to an output, each at once, after the access records that were there before it."""

    def __init__(self, lines: Lines, output: Output) -> None:
        self.output = output
        #: Writes what waits to be written to the same place.
        self.flush: Callable[[], None] = _nothing
        self._lines = lines

    def __call__(self, event: LogEvent) -> None:
        """Write an event, if there is anything to say."""
        text = self._lines.event(event)
        if text:
            self.flush()
            self.output.write(text)


@implementer(ILogObserver)
class _Relayed:
    """Writes the access records that workers have made, or logs them where the log is somebody else's."""

    def __init__(self, output: Output | None) -> None:
        self._output = output

    def __call__(self, event: LogEvent) -> None:
        lines = event.get(RELAYED_ACCESS)
        if lines is None:
            return
        if self._output is not None:
            self._output.write(lines)
            return
        for line in lines.splitlines():
            # Such a log says itself when it was, and of what it is.
            _access_log.info("{line}", line=line.partition(f"[{ACCESS_SOURCE}#info] ")[2] or line)


class OpenLog:
    """The log of a plan, and its access records: opened, if there is anything to open.

    A log that twistd has to open (`foreign`) is that of `--logger` and `--syslog`, the log of `--debug`, and every log
    of twist: `observer` is None then, and access records that have no file of their own are events. Raises `StartError`
    if a file cannot be opened.
    """

    def __init__(self, options: Mapping[str, Any], form: str = "text", access: str = "log") -> None:
        self.lines: Lines = JsonLines() if form == "json" else TextLines()
        self.observer: Log | None = None
        self._off = access == "off"
        self._access: Output | None = None
        self._gathered: AccessLog | None = None
        self._flood: Flood | None = None
        self._relayed: _Relayed | None = None
        # Who it will be by the time it opens a file anew, or is upgraded.
        user, group = options.get("uid"), options.get("gid")
        self._owner = None if user is None else (user, -1 if group is None else group)
        output = self._open_log(options)
        if output is not None:
            self.observer = Log(self.lines, output)
        if access in ("off", "log") or (isinstance(output, LogFile) and os.path.abspath(access) == output.path):
            self._access = output
        else:
            self._access = self._open_file(access, "access log", "--access")

    @property
    def foreign(self) -> bool:
        """Whether the log is twistd's own affair."""
        return self.observer is None

    @property
    def lost(self) -> int:
        """How many lines could not be written."""
        return sum(output.lost for output in self._outputs())

    def _outputs(self) -> list[Output]:
        both = [self.observer.output if self.observer else None, self._access]
        return list(dict.fromkeys(output for output in both if output is not None))

    def _open_log(self, options: Mapping[str, Any]) -> Output | None:
        if "nodaemon" not in options or any(options.get(other) for other in ("logger", "syslog", "debug")):
            return None
        name = options.get("logfile")
        if name == "-" and not options["nodaemon"]:
            raise StartError("a daemon cannot log to stdout: give --logfile another name, or give -n")
        if name == "-" or (options["nodaemon"] and not name):
            return _standard_output(self._notice)
        return self._open_file(name or "twistd.log", "log file", "--logfile")

    def _open_file(self, name: str, what: str, option: str) -> LogFile:
        try:
            return LogFile(name, self._notice, owner=self._owner)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StartError(f"{what} {escape(name)}: {reason}; give {option} a name that can be written") from None

    def _notice(self, text: str) -> str:
        event = {"log_format": "{text}", "text": text, "log_time": time.time(), "log_level": LogLevel.error}
        return self.lines.event({**event, "log_namespace": "netsvc.log"}) or ""

    def recorder(self, reactor: Any) -> Callable[[Record], None] | None:
        """Return what takes access records from now on, until the reactor has stopped; None if nothing shall."""
        if self._off:
            return None
        if self._access is not None:
            self._gathered = AccessLog(self.lines.record, self._access.write, reactor)
            if self.observer is not None and self.observer.output is self._access:
                self.observer.flush = self._gathered.flush
        self._flood = Flood(log_record if self._gathered is None else self._gathered.record, reactor)
        # What ends a process has its connections end before that.
        reactor.addSystemEventTrigger("after", "shutdown", self._settle)
        return self._flood.record

    def _settle(self) -> None:
        if self._flood is not None:
            self._flood.close()
        if self._gathered is not None:
            self._gathered.close()

    def relay(self) -> None:
        """Take the access records that workers have made, until this is closed."""
        if not self._off:
            self._relayed = _Relayed(self._access)
            globalLogPublisher.addObserver(self._relayed)

    def reopen(self) -> None:
        """Open the files anew, wherever somebody has moved the old ones."""
        if self._gathered is not None:
            # What has been before is in the old ones.
            self._gathered.flush()
        for output in self._outputs():
            if isinstance(output, LogFile):
                output.reopen()

    def reopen_on_signal(self) -> None:
        """Do so on SIGUSR1, unless somebody else takes that signal, or there is nothing of ours."""
        # Where it does nothing, it does not end the process either.
        if self._outputs() and not signal.getsignal(signal.SIGUSR1):
            with suppress(ValueError):
                # Only the main thread may.
                signal.signal(signal.SIGUSR1, self._signalled)

    def _signalled(self, *_: object) -> None:
        from twisted.internet import reactor

        # Not from here: a signal comes at any moment, in the middle of a line too.
        reactor.callFromThread(self.reopen)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Write what is still to be written, and close the files."""
        self._settle()
        if self._relayed is not None:
            globalLogPublisher.removeObserver(self._relayed)
        for output in self._outputs():
            if isinstance(output, LogFile):
                output.close()
            else:
                output.settle()


def _standard_output(notice: Callable[[str], str]) -> Output | None:
    """Return an output to stdout; None if that is no descriptor, but something that Python writes to."""
    out = sys.stdout
    if out is None:
        # It was closed, and its number may be something else's by now.
        return Output(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "stdout", notice)
    try:
        descriptor = out.fileno()
        with suppress(OSError):
            # What was printed so far comes first.
            out.flush()
    except (AttributeError, OSError, ValueError):
        return None
    return Output(descriptor, "stdout", notice, encoding=out.encoding)


class Logging(Service):
    """A root service that brings its application the log of its plan, if `twistd_options` are those of a twistd.

    To be mixed into one that has `plan`.
    """

    plan: Plan
    twistd_options: Mapping[str, Any] | None = None
    log: OpenLog | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, which twistd asks for its log once it is complete."""
        super().setServiceParent(parent)
        self.log = log = OpenLog(self.twistd_options or {}, self.plan.log, self.plan.access)
        log.reopen_on_signal()
        if self.plan.workers > 1:
            log.relay()
        if log.observer is not None:
            parent.setComponent(ILogObserver, log.observer)
        elif self.plan.log != "text":
            _log.warn("log {form}: this log is opened by somebody else, and has its own form", form=self.plan.log)


def _nothing() -> None:
    """Do nothing more."""
