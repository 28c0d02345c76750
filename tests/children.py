"""Stands in for worker processes: a reactor whose processes are objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.workers.briefing import ORDERS, REPORTS, Briefing
from netsvc.workers.child import Child
from netsvc.workers.reports import report


class FakeProcess:
    """One process: what it was sent, and what it is made to do."""

    def __init__(self, child: Child, pid: int, descriptors: Mapping[int, Any]) -> None:
        self.child = child
        self.pid = pid
        self.descriptors = descriptors
        self.pipes = {number: None for number, what in descriptors.items() if what in ("r", "w")}
        self.signals: list[str] = []
        self.told = b""
        self.gone = False
        child.makeConnection(self)

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == ORDERS
        self.told += data

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)

    @property
    def briefing(self) -> Briefing:
        return Briefing.from_line(self.told.partition(b"\n")[0])

    @property
    def orders(self) -> bytes:
        return self.told.partition(b"\n")[2]

    def say(self, *words: str) -> None:
        self.child.childDataReceived(REPORTS, report(*words))

    def end(self, status: int = 0, signal: int | None = None) -> None:
        """End, as a process does whose pipes nobody else has."""
        reason = Failure(ProcessTerminated(status, signal) if status or signal else ProcessDone(0))
        self.gone = True
        self.pipes.clear()
        self.child.processExited(reason)
        for descriptor in (1, 2, ORDERS, REPORTS):
            self.child.childConnectionLost(descriptor)
        self.child.processEnded(reason)


class FakeReactor(Clock):
    """A clock that starts such processes, and calls at once what shall be called when it runs, signals aside."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.spawned: list[list[Any]] = []
        self.whenRunning: list[Callable[[], None]] = []
        self.fault: OSError | None = None

    def spawnProcess(self, child: Any, program: str, args: Any = (), env: Any = None, childFDs: Any = None) -> None:
        if self.fault:
            raise self.fault
        self.spawned.append([program, args, env])
        self.processes.append(FakeProcess(child, 1000 + len(self.processes), childFDs))

    def callWhenRunning(self, function: Callable[..., None], *args: Any) -> None:
        self.whenRunning.append(lambda: function(*args))

    def callFromThread(self, function: Callable[[], None]) -> None:
        function()

    def run(self) -> None:
        """Do what waits for the reactor to run, but leave the signals of this process alone."""
        for call in self.whenRunning[1:]:
            call()
