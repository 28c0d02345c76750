"""The process that is to take the place of this one, as seen from here: from its start until it serves, or does not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from netsvc.text import plain
from netsvc.workers.briefing import ORDERS, REPORTS
from netsvc.workers.child import LAST_WORDS
from netsvc.workers.reports import LONGEST_LINE, LONGEST_REPORT, LineCutter, read_report

__all__ = ["KILL_AFTER", "MOST_LINES", "Successor"]

#: Seconds that it has to end when it is told to, before it is killed.
KILL_AFTER = 5.0
#: Lines of what it prints before it can say what is wrong: the last ones of a traceback say most.
MOST_LINES = 10


class Successor(ProcessProtocol):
    """One process. What it is told first is `briefing`.

    `reported` is called with the words of each of its reports, and `ended` with how it ended, once. `lines` are the
    last that it has printed.
    """

    transport: Any

    def __init__(
        self,
        clock: Any,
        briefing: bytes,
        reported: Callable[[str, tuple[str, ...]], None],
        ended: Callable[[str], None],
    ) -> None:
        self.pid = 0
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        #: How it has ended, as `os.waitpid` has it, once it has.
        self.status: int | None = None
        self._clock = clock
        self._briefing = briefing
        self._reported = reported
        self._tell_ended = ended
        self._has_ended = False
        self._deadline: Any = None
        self._cutters: Mapping[int, LineCutter] = {
            1: LineCutter(LONGEST_LINE),
            2: LineCutter(LONGEST_LINE),
            REPORTS: LineCutter(LONGEST_REPORT),
        }

    def connectionMade(self) -> None:
        """Tell it what there is."""
        self.pid = self.transport.pid
        self.transport.writeToChild(ORDERS, self._briefing)

    def order(self, line: bytes) -> None:
        """Give it an order, if it is still there to take it."""
        if ORDERS in self.transport.pipes:
            self.transport.writeToChild(ORDERS, line)

    def signal(self, name: str) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def end(self) -> None:
        """Have it end, by force if it takes its time."""
        if not self._has_ended and self._deadline is None:
            self.order(b"end\n")
            self.signal("TERM")
            self._deadline = self._clock.callLater(KILL_AFTER, self.signal, "KILL")

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
        if descriptor == REPORTS:
            word, *rest = read_report(line)
            self._reported(word, tuple(rest))
        elif text := plain(line.decode("utf-8", "backslashreplace")).rstrip():
            self.lines.append(text)

    def processExited(self, reason: Failure) -> None:
        """Wait for the rest of what it said, but not for ever."""
        self._cancel()
        self._deadline = self._clock.callLater(LAST_WORDS, self.processEnded, reason)

    def processEnded(self, reason: Failure) -> None:
        """Tell how it ended."""
        if self._has_ended:
            return
        self._has_ended = True
        self._cancel()
        for descriptor in self._cutters:
            self.childConnectionLost(descriptor)
        error: Any = reason.value
        self.status = error.status or 0
        self._tell_ended(f"by signal {error.signal}" if error.signal else f"with status {error.exitCode or 0}")

    def _cancel(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
