"""The channel between a process and its child: orders to the child and reports from it, a line each.

An order is a word and its arguments. A report is a JSON list of strings; the first one is its kind: `["ready"]`,
`["failed", line, …]`, and the reports of `netsvc.workers.reports`, `netsvc.workers.status` and `netsvc.upgrade`. The
first line of the orders is a `netsvc.listen.handoff.Handoff`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from netsvc.base.signals import TAKEN
from netsvc.listen.handoff import Handoff

#: Descriptors of the child: the two pipes; the real stdout and stderr of a successor, whose output goes to this process
#: first; and the first inherited socket.
ORDERS, REPORTS, STDOUT, STDERR, FIRST_SOCKET = 3, 4, 5, 6, 7
#: Of a worker, in the place of STDOUT: the link of `netsvc.workers.cover`.
COVER = 5
#: The signals that a worker ignores: requests to its parent.
IGNORED = (signal.SIGINT, *TAKEN)
#: Bytes of an order: room for the numbers of thousands of listeners.
LONGEST_ORDER = 1 << 16
#: Bytes of a report: room for a status with the maximum number of connections and any peer names.
LONGEST_REPORT = 2 << 20
#: Bytes of a printed line.
LONGEST_LINE = 8192
#: Seconds to read the last output of a process that has ended; its own children may keep the pipes open.
EXIT_READ_LIMIT = 0.5

_LEVELS = frozenset(level.name for level in LogLevel.iterconstants())


class LineCutter:
    """Splits the bytes of a pipe into lines of at most `limit` bytes; the rest of longer lines is dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes; return the lines that they complete, without line ends."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._add(part)
            yield self._take()
        self._add(rest)

    def end(self) -> Iterator[bytes]:
        """Return the last line if it has no line end."""
        if self._line:
            yield self._take()

    def _add(self, part: bytes) -> None:
        room = self._limit - len(self._line)
        self._line += part[:room]
        self._dropped += max(0, len(part) - room)

    def _take(self) -> bytes:
        line = bytes(self._line) + (b"... (%d more)" % self._dropped if self._dropped else b"")
        self._line.clear()
        self._dropped = 0
        return line


def report(*parts: str) -> bytes:
    """Serialize a report."""
    return json.dumps(parts).encode("ascii") + b"\n"


def read_report(line: bytes) -> tuple[str, ...]:
    """Parse a report. Returns `("",)` for any other line: the child died while writing, or printed into the pipe."""
    try:
        parts = json.loads(line)
    except ValueError:
        return ("",)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        return ("",)
    if parts[0] == "log" and not (5 <= len(parts) <= 6 and parts[1] in _LEVELS):
        return ("",)
    if len(parts) != {"access": 2, "requests": 2, "answer": 3, "final": 2}.get(parts[0], len(parts)):
        return ("",)
    return tuple(parts)


@dataclass(frozen=True)
class Retirement:
    """The order to a worker that is replaced by another one. Listeners are indices into its plan.

    No other process has the sockets of `closed` listeners; the connections of `drained` listeners have `seconds` to
    end.
    """

    closed: tuple[int, ...]
    drained: tuple[int, ...]
    seconds: float

    def to_line(self) -> bytes:
        """Serialize the order."""
        return b"retire " + json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_arguments(cls, arguments: bytes) -> Retirement:
        """Parse the arguments of a `retire` order."""
        read = json.loads(arguments)
        return cls(tuple(read["closed"]), tuple(read["drained"]), read["seconds"])


class Reporter:
    """Writes complete reports to a descriptor of its own. Reports are dropped once no process reads them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, line: bytes) -> None:
        """Write a report. Blocks while the reader does not read, as a log file on a slow disk does."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except OSError:
                return


class Orders(FileDescriptor):
    """Reads orders. `orders` maps each word to its function; `orphaned` is called when the other process has ended."""

    def __init__(
        self,
        reactor: Any,
        descriptor: int,
        orders: Mapping[bytes, Callable[[bytes], None]],
        orphaned: Callable[[], None],
    ) -> None:
        super().__init__(reactor)
        self._descriptor = descriptor
        self._orders = orders
        self._orphaned = orphaned
        self._lines = LineCutter(LONGEST_ORDER)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def doRead(self) -> Exception | None:
        """Read and execute orders."""
        data = os.read(self._descriptor, 4096)
        if not data:
            return CONNECTION_DONE
        for line in self._lines.feed(data):
            word, _, rest = line.partition(b" ")
            if word in self._orders:
                self._orders[word](rest)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """Report that the other process has ended."""
        super().connectionLost(reason)
        self._orphaned()


class ChildProcess(ProcessProtocol):
    """A child process, from its start to its end. `handoff` must be set before the start.

    `reported` is called with the elements of each report, `printed` with each printed line and whether it went to
    stderr, and `ended` once, after all output, with how the process ended (`ended by signal 9`, `ended with status 1`).
    """

    transport: Any

    def __init__(
        self,
        clock: Any,
        *,
        reported: Callable[..., None],
        printed: Callable[[bytes, bool], None],
        ended: Callable[[str], None],
        handoff: Handoff | None = None,
    ) -> None:
        self.handoff = handoff
        #: The pid; 0 before the start.
        self.pid = 0
        #: The wait status of `os.waitpid`; None before the process has ended.
        self.status: int | None = None
        self._clock = clock
        self._reported = reported
        self._printed = printed
        self._on_ended = ended
        self._has_ended = False
        self._deadline: Any = None
        self._cutters: Mapping[int, LineCutter] = {
            1: LineCutter(LONGEST_LINE),
            2: LineCutter(LONGEST_LINE),
            REPORTS: LineCutter(LONGEST_REPORT),
        }

    def connectionMade(self) -> None:
        """Send the handoff."""
        self.pid = self.transport.pid
        assert self.handoff is not None
        self.transport.writeToChild(ORDERS, self.handoff.to_line())

    def signal(self, name: str) -> None:
        """Send a signal, `TERM` or `KILL`, if the process still runs."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def order(self, line: bytes) -> None:
        """Send an order, if the process still reads orders."""
        if self.transport is not None and ORDERS in self.transport.pipes:
            self.transport.writeToChild(ORDERS, line)

    def end(self, order: bytes, seconds: float) -> None:
        """End the process by an order and SIGTERM, and by SIGKILL after `seconds`."""
        if not self._has_ended and self._deadline is None:
            self.order(order)
            self.signal("TERM")
            self._deadline = self._clock.callLater(seconds, self.signal, "KILL")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Process output of the child."""
        for line in self._cutters[childFD].feed(data):
            self._received(childFD, line)

    def childConnectionLost(self, childFD: int) -> None:
        """Process the last line, if it has no line end."""
        if childFD in self._cutters:
            for line in self._cutters[childFD].end():
                self._received(childFD, line)

    def _received(self, descriptor: int, line: bytes) -> None:
        parts = read_report(line) if descriptor == REPORTS else ("",)
        if parts[0]:
            self._reported(*parts)
        else:
            self._printed(line, descriptor != 1)

    def processExited(self, reason: Failure) -> None:
        """Wait up to `EXIT_READ_LIMIT` for the rest of the output."""
        self._cancel()
        self._deadline = self._clock.callLater(EXIT_READ_LIMIT, self.processEnded, reason)

    def processEnded(self, reason: Failure) -> None:
        """Report how the process ended."""
        if self._has_ended:
            return
        self._has_ended = True
        self._cancel()
        for descriptor in self._cutters:
            self.childConnectionLost(descriptor)
        error: Any = reason.value
        self.status = error.status or 0
        self._on_ended(
            f"ended by signal {error.signal}" if error.signal else f"ended with status {error.exitCode or 0}"
        )

    def _cancel(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
