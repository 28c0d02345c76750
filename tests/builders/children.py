"""Stands in for worker processes: a reactor whose processes are objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet import tcp, udp, unix
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.listen.handoff import Handoff, WorkerStart
from netsvc.workers.channel import ORDERS, REPORTS, report
from netsvc.workers.slot import Child


class FakeLink:
    """The link to one process: `covered` are the listeners at whose sockets it accepts, for each other worker."""

    def __init__(self) -> None:
        self.covered: dict[int, list[int]] = {}
        self.closed = False

    def cover(self, gone: Mapping[int, Mapping[int, int]]) -> None:
        self.covered = {worker: list(sockets) for worker, sockets in gone.items()}

    def close(self) -> None:
        self.closed = True


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
        self.link = FakeLink()
        if getattr(child, "link", None) is not None:
            child.link.close()  # type: ignore[union-attr]
            child.link = self.link  # type: ignore[assignment]
        child.makeConnection(self)

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == ORDERS
        self.told += data

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)

    @property
    def handoff(self) -> Handoff:
        return Handoff.from_line(self.told.partition(b"\n")[0])

    @property
    def start(self) -> WorkerStart:
        start = self.handoff.worker
        assert start is not None
        return start

    @property
    def key_files(self) -> list[Mapping[str, str]]:
        return [port.key_files for port in self.handoff.ports]

    @property
    def orders(self) -> bytes:
        return self.told.partition(b"\n")[2]

    @property
    def is_told_to_stop(self) -> bool:
        return "TERM" in self.signals or b"drain" in self.orders.splitlines()

    @property
    def is_killed(self) -> bool:
        return "KILL" in self.signals

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

    def addReader(self, reader: Any) -> None:
        """Read nothing."""

    removeReader = removeWriter = addReader

    def getReaders(self) -> list[Any]:
        return []

    @staticmethod
    def _started(port: Any) -> Any:
        port.startListening()
        return port

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return self._started(tcp.Port(port, factory, backlog, interface, self))

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        return self._started(unix.Port(address, factory, backlog, mode, self, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        return self._started(tcp.Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory))

    def adoptDatagramPort(
        self, fileDescriptor: int, addressFamily: int, protocol: Any, maxPacketSize: int = 8192
    ) -> Any:
        made = udp.Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, protocol, maxPacketSize)
        return self._started(made)
