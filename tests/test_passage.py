from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet import task
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.python.failure import Failure

from netsvc.errors import MistakeError
from netsvc.listeners.handed import HandedPort
from netsvc.upgrade.briefing import VARIABLE, Briefing
from netsvc.upgrade.passage import SERVE_LIMIT, START_LIMIT, Passage
from netsvc.upgrade.program import Program
from netsvc.upgrade.successor import KILL_AFTER, MOST_LINES, Successor
from netsvc.workers.briefing import ORDERS, REPORTS
from netsvc.workers.child import LAST_WORDS
from netsvc.workers.reports import report


class Process:
    """The transport of a process that is not there."""

    def __init__(self) -> None:
        self.pid = 77
        self.pipes = {ORDERS: object()}
        self.written = b""
        self.signals: list[str] = []
        self.gone = False

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == ORDERS
        self.written += data

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)


class Reactor(task.Clock):
    """Starts no process, but says how it would be."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, Any] = {}
        self.process = Process()
        self.refuses = False

    def spawnProcess(self, protocol: Successor, executable: str, words: Sequence[str], **named: Any) -> None:
        if self.refuses:
            raise OSError(12, "Cannot allocate memory")
        self.started = {"program": executable, "words": words, **named}
        protocol.transport = self.process
        protocol.connectionMade()


class Serving:
    """Serves nothing, and notes what it is told."""

    def __init__(self, ports: list[HandedPort], count: int) -> None:
        self.told: list[Any] = []
        self._ports = ports
        self._count = count
        self.seconds = 0.0

    def ports(self) -> list[HandedPort]:
        return self._ports

    def steps(self) -> int:
        return self._count

    def prepare(self, successors: int) -> float:
        self.told.append(("prepare", successors))
        return self.seconds

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        self.told.append(("give way", step, successors, [port.name for port in ports]))

    def go_on(self, ports: Sequence[HandedPort]) -> None:
        self.told.append(("go on", [port.name for port in ports]))


class World:
    """A passage, and all that it meets."""

    def __init__(self, bound: Sequence[socket.socket], count: int = 1) -> None:
        self.reactor = Reactor()
        self.let_go: list[str] = []
        ports = [
            HandedPort(
                "listener",
                f"echo {number}",
                "stream",
                "9001",
                [[each]],
                let_go=lambda name=str(number): self.let_go.append(name),  # type: ignore[misc]
            )
            for number, each in enumerate(bound)
        ]
        self.serving = Serving(ports, count)
        program = Program(["twistd", "-n", "netsvc"], "/", {"HOME": "/root"}, [1])
        self.passage = Passage(
            self.reactor, self.serving, program, standin=0, detached=True, environment={"NOTIFY_SOCKET": "@"}, pid=5
        )
        self.results: list[Any] = []
        self.passage.done.addBoth(self.results.append)

    @property
    def orders(self) -> bytes:
        """What the process was told, after its briefing."""
        return self.reactor.process.written.partition(b"\n")[2]

    def say(self, *words: str) -> None:
        """Let the process report something."""
        self.passage.successor.childDataReceived(REPORTS, report(*words))

    def end(self, reason: BaseException) -> None:
        """Let the process end."""
        self.passage.successor.processEnded(Failure(reason))

    @property
    def mistakes(self) -> list[str]:
        """Why it has come to nothing."""
        [failure] = self.results
        assert failure.check(MistakeError)
        return list(failure.value.mistakes)


@pytest.fixture
def bound() -> Iterator[list[socket.socket]]:
    sockets = [socket.socket() for _ in range(2)]
    yield sockets
    for each in sockets:
        each.close()


def test_the_program_is_started_as_it_was_with_the_ports_in_its_briefing(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    started = world.reactor.started
    assert started["words"][1:] == ["-n", "netsvc"]
    assert started["path"] == "/"
    assert started["env"] == {"HOME": "/root", "NOTIFY_SOCKET": "@", VARIABLE: "3"}
    assert started["childFDs"] == {
        **{0: 0, 1: "r", 2: "r", 3: "w", 4: "r", 5: 1, 6: 2},
        **{7: bound[0].fileno(), 8: bound[1].fileno(), 9: 0},
    }
    briefing = Briefing.from_line(world.reactor.process.written)
    assert [port.sockets for port in briefing.ports] == [[[7]], [[8]]]
    assert (briefing.pid, briefing.standin, briefing.detached, briefing.ignored) == (5, 9, True, [1])
    world.say("failed")
    world.end(ProcessTerminated(1))


def test_what_the_new_process_has_taken_is_closed_here_once_it_serves(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    world.say("ready", "1", "1")
    assert world.serving.told == [("prepare", 1)]
    world.reactor.advance(0)
    assert world.serving.told[1:] == [("give way", 0, 1, ["echo 1"])]
    assert world.orders == b"serve 0 1\n"
    assert not world.let_go
    world.say("serving", "0")
    assert world.results == [None]
    assert world.let_go == ["1"]
    assert not world.reactor.getDelayedCalls()
    # What follows is its own affair.
    world.say("failed", "late")
    world.passage.fail("late")
    world.end(ProcessDone(0))
    assert world.passage.successor.status == 0
    assert world.results == [None]


def test_worker_by_worker_each_waits_for_its_counterpart(bound: list[socket.socket]) -> None:
    world = World(bound, 2)
    world.serving.seconds = 0.5
    world.passage.begin()
    world.say("ready", "0,1,7,x", "3")
    world.say("ready", "0", "1")
    assert world.orders == b""
    world.reactor.advance(0.5)
    assert world.orders == b"serve 0 2\n"
    world.say("serving", "1")
    world.say("serving", "0")
    assert world.orders == b"serve 0 2\nserve 1 2\n"
    assert world.serving.told[1:] == [("give way", step, 3, ["echo 0", "echo 1"]) for step in (0, 1)]
    world.say("serving", "1")
    assert world.results == [None]


def test_what_it_says_is_wrong_is_told_when_it_is_gone(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    world.say("failed", "netsvc.toml:2: no", "and another")
    assert not world.results
    assert world.reactor.process.signals == ["TERM"]
    assert world.orders == b"end\n"
    world.say("failed", "once more")
    world.say("ready", "0", "1")
    world.end(ProcessTerminated(1))
    assert world.mistakes == ["netsvc.toml:2: no", "and another"]
    assert world.serving.told == []
    assert not world.reactor.getDelayedCalls()


def test_one_that_says_nothing_is_known_by_its_last_lines(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    for number in range(2 * MOST_LINES):
        world.passage.successor.childDataReceived(2, b"line %d \x1b[2J\n\n" % number)
    world.passage.successor.childDataReceived(1, b"the last")
    world.end(ProcessTerminated(1, status=256))
    lines = world.mistakes
    assert lines[0] == "the new process ended with status 1, and was never ready"
    assert len(lines) == 1 + MOST_LINES
    assert lines[-1] == "the last"
    assert "\x1b" not in "".join(lines)


def test_one_that_is_killed_changes_nothing(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    world.say("ready", "0", "1")
    world.reactor.advance(0)
    successor = world.passage.successor
    successor.processExited(Failure(ProcessTerminated(None, 9, 9)))
    assert not world.results
    # Somebody that it has started has its pipes.
    world.reactor.advance(LAST_WORDS)
    assert world.mistakes == ["the new process ended by signal 9, and was never ready"]
    assert world.serving.told[-1] == ("go on", ["echo 0"])
    world.end(ProcessTerminated(None, 9, 9))
    assert not world.reactor.getDelayedCalls()


def test_one_that_is_not_ready_in_time_is_ended(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    world.reactor.advance(START_LIMIT)
    assert world.reactor.process.signals == ["TERM"]
    world.reactor.advance(KILL_AFTER)
    assert world.reactor.process.signals == ["TERM", "KILL"]
    world.end(ProcessTerminated(None, 9, 9))
    assert world.mistakes == ["the new process is not ready after 60 s"]


def test_one_that_is_ready_and_does_not_serve_is_ended(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.passage.begin()
    world.say("ready", "0", "x")
    world.reactor.advance(0)
    world.reactor.advance(SERVE_LIMIT)
    assert world.serving.told[-1] == ("go on", ["echo 0"])
    world.reactor.process.gone = True
    world.reactor.process.pipes.clear()
    world.passage.successor.order(b"late\n")
    world.end(ProcessTerminated(1))
    assert world.mistakes == ["the new process was ready, and does not serve after 10 s"]
    world.reactor.advance(KILL_AFTER)


def test_what_cannot_be_started_is_told_at_once(bound: list[socket.socket]) -> None:
    world = World(bound)
    world.reactor.refuses = True
    with pytest.raises(MistakeError, match="could not be started: Cannot allocate memory"):
        world.passage.begin()
    assert not world.reactor.getDelayedCalls()


def test_the_sockets_of_systemd_are_passed_on(bound: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import endpoints
    from twisted.python.systemd import ListenFDs

    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", ListenFDs([bound[0].fileno()], ["web"]))
    world = World([])
    world.passage.begin()
    assert json.loads(world.reactor.process.written)["systemd"] == [["web", 8]]
    assert world.reactor.started["childFDs"][8] == bound[0].fileno()
    world.passage.fail()
    world.end(ProcessTerminated(1))
    assert world.mistakes == ["the new process cannot start"]
