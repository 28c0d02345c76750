"""Opens the log that a plan and twistd's options configure."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from zope.interface import implementer

from netsvc.base.errors import StartError
from netsvc.base.requests import GATHERED
from netsvc.base.signals import process_signals
from netsvc.base.text import escape
from netsvc.log import standard
from netsvc.log.access import AccessLog, RecordLimit, log_record
from netsvc.log.common import record_line
from netsvc.log.file import LogFile
from netsvc.log.formats import ACCESS_SOURCE, PRINTED, RELAYED_ACCESS, RELAYED_REQUESTS, JsonLines, LogLines, TextLines
from netsvc.log.output import Output
from netsvc.log.queued import QueuedOutput, may_block
from netsvc.plan.plan import Plan, access_form
from netsvc.plan.record import AnyRecord, Record

_log = Logger(namespace="netsvc")
_access_log = Logger(namespace=ACCESS_SOURCE)


@implementer(ILogObserver)
class Log:
    """Writes each event to an output at once, after the records and requests that were collected before it."""

    def __init__(self, lines: LogLines, output: Output) -> None:
        self.output = output
        #: Collects what is written together. Without it, everything is written at once.
        self.gathered: AccessLog[Record | LogEvent] | None = None
        self._lines = lines

    def gather(self, reactor: Any) -> AccessLog[Record | LogEvent]:
        """Begin to collect requests, and access records for the same output; `settle` ends it."""
        self.gathered = AccessLog(self._line, self.output.write, reactor)
        return self.gathered

    def _line(self, entry: Record | LogEvent) -> str:
        return self._lines.record(entry) if isinstance(entry, Record) else self._lines.event(entry) or ""

    def __call__(self, event: LogEvent) -> None:
        """Write an event, if it has text."""
        gathered = self.gathered
        if gathered is not None and GATHERED in event:
            gathered.record(event)
            return
        if PRINTED in event and not isinstance(self.output, LogFile):
            return
        text = self._lines.event(event)
        if text:
            if gathered is not None:
                gathered.flush()
            self.output.write(text)

    def settle(self) -> None:
        """Write what was collected, and everything else at once from now on."""
        gathered, self.gathered = self.gathered, None
        if gathered is not None:
            gathered.close()


@implementer(ILogObserver)
class _WorkerLines:
    """Writes the lines that workers report, by the field of their event; as events, if the log is not ours."""

    def __init__(self, outputs: Mapping[str, Output | None]) -> None:
        self._outputs = outputs

    def __call__(self, event: LogEvent) -> None:
        for field, output in self._outputs.items():
            lines = event.get(field)
            if lines is None:
                continue
            if output is not None:
                output.write(lines)
                continue
            logger = _access_log if field == RELAYED_ACCESS else _log
            for line in lines.splitlines():
                # Such a log adds the time and the source itself.
                logger.info("{line}", line=line.partition("#info] ")[2] or line)


class OpenLog:
    """The log of a process and its access log.

    With `--logger`, `--syslog` or `--debug`, and under twist, the log is not ours (`foreign`): `observer` is None, and
    access records without a file of their own are logged as events. Raises `StartError` if a file cannot be opened.
    """

    def __init__(self, options: Mapping[str, Any], form: str = "text", access: str = "log") -> None:
        self.lines: LogLines = JsonLines() if form == "json" else TextLines()
        self.observer: Log | None = None
        self._off = access == "off"
        self._form, access = access_form(access)
        self._record_line = record_line(self.lines, self._form)
        self._access: Output | None = None
        self._access_log: AccessLog[Any] | None = None
        self._limit: RecordLimit | None = None
        self._worker_lines: _WorkerLines | None = None
        # The user that the process will have changed to when it reopens a file, or is upgraded.
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
        """Whether twistd or twist writes the log."""
        return self.observer is None

    @property
    def lost(self) -> int:
        """The number of lines that could not be written."""
        return sum(output.lost for output in self._outputs())

    def _outputs(self) -> list[Output]:
        both = [self.observer.output if self.observer else None, self._access]
        return list(dict.fromkeys(output for output in both if output is not None))

    def _open_log(self, options: Mapping[str, Any]) -> Output | None:
        if "nodaemon" not in options or any(options.get(other) for other in ("logger", "syslog", "debug")):
            return None
        name = options.get("logfile")
        if name == "-" and not options["nodaemon"]:
            raise StartError("a daemon cannot log to stdout; give --logfile another name, or add -n")
        if name == "-" or (options["nodaemon"] and not name):
            return _standard_output(self._notice)
        return self._open_file(name or "twistd.log", "log file", "--logfile")

    def _open_file(self, name: str, what: str, option: str) -> LogFile:
        try:
            return LogFile(name, self._notice, owner=self._owner)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StartError(f"{what} {escape(name)}: {reason}; give {option} a file that can be written") from None

    def _notice(self, text: str) -> str:
        event = {"log_format": "{text}", "text": text, "log_time": time.time(), "log_level": LogLevel.error}
        return self.lines.event({**event, "log_namespace": "netsvc.log"}) or ""

    def recorder(self, reactor: Any) -> Callable[[AnyRecord], None] | None:
        """Return the function that takes access records until the reactor has stopped; None if they are off."""
        # By then all connections have ended, and were recorded.
        reactor.addSystemEventTrigger("after", "shutdown", self._settle)
        gathered = None if self.observer is None else self.observer.gather(reactor)
        if self._off:
            return None
        if self._access is not None:
            is_same = self.observer is not None and self.observer.output is self._access and not self._form
            self._access_log = gathered if is_same else AccessLog(self._record_line, self._access.write, reactor)
        self._limit = RecordLimit(log_record if self._access_log is None else self._access_log.record, reactor)
        return self._limit.record

    def _settle(self) -> None:
        if self._limit is not None:
            self._limit.close()
        if self._access_log is not None:
            self._access_log.close()
        if self.observer is not None:
            self.observer.settle()

    def relay(self) -> None:
        """Take the access records and the requests of workers, until this is closed."""
        outputs = {RELAYED_REQUESTS: self.observer.output if self.observer is not None else None}
        if not self._off:
            outputs[RELAYED_ACCESS] = self._access
        self._worker_lines = _WorkerLines(outputs)
        globalLogPublisher.addObserver(self._worker_lines)

    def reopen(self) -> None:
        """Reopen the files, after another program has moved them."""
        # Earlier records belong to the old files.
        if self._access_log is not None:
            self._access_log.flush()
        if self.observer is not None and self.observer.gathered is not None:
            self.observer.gathered.flush()
        for output in self._outputs():
            if isinstance(output, LogFile):
                output.reopen()

    def reopen_on_signal(self) -> None:
        """Reopen the files on SIGUSR1, unless that signal has a handler, or the log is not ours."""
        # Installed for stdout too, where it does nothing: without a handler the signal would end the process.
        if self._outputs() and process_signals.is_free(signal.SIGUSR1):
            with suppress(ValueError):
                # Raised outside the main thread.
                process_signals.act_on(signal.SIGUSR1, self._signalled)

    def _signalled(self) -> None:
        from twisted.internet import reactor

        # Later: a signal may arrive in the middle of a line.
        reactor.callFromThread(self.reopen)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Write what is pending, and close the files."""
        self._settle()
        if self._worker_lines is not None:
            globalLogPublisher.removeObserver(self._worker_lines)
        for output in self._outputs():
            if isinstance(output, LogFile):
                output.close()
            else:
                output.settle()


def _standard_output(notice: Callable[[str], str]) -> Output | None:
    """Return an output to stdout; None if stdout has no descriptor (a Python object replaced it)."""
    out = sys.stdout
    if out is None:
        # It was closed; its descriptor number may belong to something else by now.
        return Output(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "stdout", notice)
    try:
        descriptor = out.fileno()
        with suppress(OSError):
            # What was printed earlier comes first.
            out.flush()
    except (AttributeError, OSError, ValueError):
        return None
    if (output := standard.queued(descriptor, notice)) is not None:
        return output
    kind = QueuedOutput if may_block(descriptor) else Output
    return kind(descriptor, "stdout", notice, encoding=out.encoding)


def open_log(application: Any, options: Mapping[str, Any], plan: Plan) -> OpenLog:
    """Open the log that a plan and twistd's options configure, and set it on `application`. Raises `StartError`.

    With options of anything but twistd, the log is not ours.
    """
    log = OpenLog(options, plan.log, plan.access)
    log.reopen_on_signal()
    if log.observer is not None:
        application.setComponent(ILogObserver, log.observer)
    elif plan.log != "text":
        _log.warn("log {form}: not supported here, where twistd or another program writes the log", form=plan.log)
    return log
