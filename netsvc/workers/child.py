"""One worker, as seen by the process that started it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from netsvc.workers.briefing import ORDERS, REPORTS, Briefing
from netsvc.workers.inquiry import Inquiry
from netsvc.workers.reports import (
    LONGEST_LINE,
    LONGEST_REPORT,
    LineCutter,
    read_report,
    relay,
    relay_access,
    relay_line,
)

__all__ = ["Child"]

_STDOUT, _STDERR = 1, 2
#: Seconds to read what a process has said, once it has ended. Whoever it started may still have its pipes.
LAST_WORDS = 0.5


class Child(ProcessProtocol):
    """One worker process, from its start to its end.

    `ready` is called when it serves, `failed` with lines when it says that it cannot, and `ended` with how it ended
    (`ended by signal 9`, `ended with status 1`), once, when all that it said has been read.
    """

    transport: Any

    def __init__(
        self,
        number: int,
        clock: Any,
        *,
        ready: Callable[[], None],
        failed: Callable[[Sequence[str]], None],
        ended: Callable[[str], None],
    ) -> None:
        self.number = number
        self.pid: int | None = None
        self.inquiry = Inquiry(clock, self.order)
        #: What came of its drain, once that is over.
        self.drained: Sequence[str] = ()
        self._clock = clock
        #: What it is told; to be set before it is started.
        self.briefing: Briefing | None = None
        self._ready = ready
        self._failed = failed
        self._tell_ended = ended
        self._has_ended = False
        self._deadline: Any = None
        self._cutters: Mapping[int, LineCutter] = {
            _STDOUT: LineCutter(LONGEST_LINE),
            _STDERR: LineCutter(LONGEST_LINE),
            REPORTS: LineCutter(LONGEST_REPORT),
        }

    def connectionMade(self) -> None:
        """Tell it what to serve."""
        self.pid = self.transport.pid
        assert self.briefing is not None
        self.transport.writeToChild(ORDERS, self.briefing.to_line())

    def signal(self, name: str) -> None:
        """Send a signal, `TERM` or `KILL`, if it is still there to get it."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def force(self) -> None:
        """Have it cut all conversations short."""
        self.order(b"force\n")

    def order(self, line: bytes) -> None:
        """Give it an order, if it is still there to take it."""
        if self.transport is not None and ORDERS in self.transport.pipes:
            self.transport.writeToChild(ORDERS, line)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Take in what it says."""
        for line in self._cutters[childFD].feed(data):
            self._said(childFD, line)

    def childConnectionLost(self, childFD: int) -> None:
        """Take in what it was about to say."""
        if childFD in self._cutters:
            for line in self._cutters[childFD].end():
                self._said(childFD, line)

    def _said(self, descriptor: int, line: bytes) -> None:
        words = read_report(line) if descriptor == REPORTS else ("",)
        if words[0] == "log":
            relay(self.number, *words[1:])
        elif words[0] == "access":
            relay_access(words[1])
        elif words[0] == "drained":
            self.drained = words[1:]
        elif words[0] == "ready":
            self._ready()
        elif words[0] == "answer":
            self.inquiry.answered(*words[1:])
        elif words[0] == "farewell":
            self.inquiry.farewell(words[1])
        elif words[0] == "failed":
            self._failed(words[1:])
        else:
            relay_line(self.number, line, error=descriptor != _STDOUT)

    def processExited(self, reason: Failure) -> None:
        """Wait for the rest of what it said, but not for ever."""
        self._deadline = self._clock.callLater(LAST_WORDS, self.processEnded, reason)

    def processEnded(self, reason: Failure) -> None:
        """Tell how it ended."""
        if self._has_ended:
            return
        self._has_ended = True
        self.inquiry.close()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        for descriptor in self._cutters:
            self.childConnectionLost(descriptor)
        error: Any = reason.value
        self._tell_ended(
            f"ended by signal {error.signal}" if error.signal else f"ended with status {error.exitCode or 0}"
        )
