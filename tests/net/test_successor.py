from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.listen.handoff import Handoff, OfferedPort
from netsvc.upgrade.program import VARIABLE, Program
from netsvc.upgrade.successor import KILL_AFTER, MOST_LINES, Upgrade
from netsvc.workers.channel import EXIT_READ_LIMIT, REPORTS, report
from netsvc.workers.handover import SERVE_LIMIT, START_LIMIT
from tests.builders.offered import NoOwner
from tests.builders.successors import Reactor


class Serving:
    """Serves nothing, and notes what it is told."""

    def __init__(self, ports: list[OfferedPort], count: int) -> None:
        self.told: list[Any] = []
        self._ports = ports
        self._count = count
        self.seconds = 0.0

    def ports(self) -> list[OfferedPort]:
        return self._ports

    def processes(self) -> int:
        return self._count

    def serve(self, step: int, steps: int) -> None:
        """Take over from nothing."""

    def prepare(self, successors: int) -> float:
        self.told.append(("prepare", successors))
        return self.seconds

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        self.told.append(("pause", step, successors, [port.name for port in ports]))

    def resume(self, ports: Sequence[OfferedPort]) -> None:
        self.told.append(("resume", [port.name for port in ports]))

    def serve_step(self, step: int, steps: int) -> None:
        raise AssertionError("it takes over from nothing")


class Owner(NoOwner):
    """Notes that it has released its port."""

    def __init__(self, name: str, released: list[str]) -> None:
        self.name = name
        self.released = released

    def release(self) -> None:
        self.released.append(self.name)


class StartedSuccessor:
    """An upgrade, and all that it meets."""

    def __init__(self, bound: Sequence[socket.socket], count: int = 1) -> None:
        self.reactor = Reactor()
        self.released: list[str] = []
        ports = [
            OfferedPort(
                "listener",
                f"echo {number}",
                "stream",
                "9001",
                [each],
                Owner(str(number), self.released),
            )
            for number, each in enumerate(bound)
        ]
        self.serving = Serving(ports, count)
        program = Program(["twistd", "-n", "netsvc"], "/", {"HOME": "/root"}, [1])
        self.upgrade = Upgrade(
            self.reactor, self.serving, program, proxy=0, detached=True, environment={"NOTIFY_SOCKET": "@"}, pid=5
        )
        self.results: list[Any] = []
        self.upgrade.done.addBoth(self.results.append)

    @property
    def orders(self) -> bytes:
        """What the process was told, after its handoff."""
        return self.reactor.process.written.partition(b"\n")[2]

    def say(self, *words: str) -> None:
        """Let the process report something."""
        self.upgrade.successor.childDataReceived(REPORTS, report(*words))

    def end(self, reason: BaseException) -> None:
        """Let the process end."""
        self.upgrade.successor.processEnded(Failure(reason))

    @property
    def errors(self) -> list[str]:
        """Why it has come to nothing."""
        [failure] = self.results
        assert failure.check(UserError)
        return list(failure.value.errors)


@pytest.fixture
def bound() -> Iterator[list[socket.socket]]:
    sockets = [socket.socket() for _ in range(2)]
    yield sockets
    for each in sockets:
        each.close()


def test_the_program_is_started_as_it_was_with_the_ports_in_its_handoff(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    started = world.reactor.started
    assert started["words"][1:] == ["-n", "netsvc"]
    assert started["directory"] == "/"
    assert started["env"] == {"HOME": "/root", "NOTIFY_SOCKET": "@", "PWD": "/", VARIABLE: "3"}
    assert started["childFDs"] == {
        **{0: 0, 1: "r", 2: "r", 3: "w", 4: "r", 5: 1, 6: 2},
        **{7: bound[0].fileno(), 8: bound[1].fileno(), 9: 0},
    }
    handoff = Handoff.from_line(world.reactor.process.written)
    assert [port.sockets for port in handoff.ports] == [[7], [8]]
    assert (handoff.pid, handoff.proxy, handoff.detached, handoff.ignored) == (5, 9, True, [1])
    world.say("failed")
    world.end(ProcessTerminated(1))


def test_what_the_new_process_has_taken_is_closed_here_once_it_serves(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    world.say("ready", "1", "1")
    assert world.serving.told[:1] == [("prepare", 1)]
    assert world.serving.told[1:] == [("pause", 0, 1, ["echo 1"])]
    assert world.orders == b"serve 0 1\n"
    assert not world.released
    world.say("serving", "0")
    assert world.results == [None]
    assert world.released == ["1"]
    assert not world.reactor.getDelayedCalls()
    # What follows is its own affair.
    world.say("failed", "late")
    world.upgrade.fail("late")
    world.end(ProcessDone(0))
    assert world.upgrade.successor.status == 0
    assert world.results == [None]


def test_worker_by_worker_each_waits_for_its_counterpart(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound, 2)
    world.serving.seconds = 0.5
    world.upgrade.begin()
    world.say("ready", "0,1,7,x", "3")
    world.say("ready", "0", "1")
    assert world.orders == b""
    world.reactor.advance(0.5)
    assert world.orders == b"serve 0 2\n"
    world.say("serving", "1")
    world.say("serving", "0")
    assert world.orders == b"serve 0 2\nserve 1 2\n"
    assert world.serving.told[1:] == [("pause", step, 3, ["echo 0", "echo 1"]) for step in (0, 1)]
    world.say("serving", "1")
    assert world.results == [None]


def test_what_it_says_is_wrong_is_told_when_it_is_gone(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    world.say("failed", "netsvc.toml:2: no", "and another")
    assert not world.results
    assert world.reactor.process.signals == ["TERM"]
    assert world.orders == b"end\n"
    world.say("failed", "once more")
    world.say("ready", "0", "1")
    world.end(ProcessTerminated(1))
    assert world.errors == ["netsvc.toml:2: no", "and another"]
    assert world.serving.told == []
    assert not world.reactor.getDelayedCalls()


def test_one_that_says_nothing_is_known_by_its_last_lines(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    for number in range(2 * MOST_LINES):
        world.upgrade.successor.childDataReceived(2, b"line %d \x1b[2J\n\n" % number)
    world.upgrade.successor.childDataReceived(1, b"the last")
    world.end(ProcessTerminated(1, status=256))
    lines = world.errors
    assert "status 1" in lines[0]
    assert len(lines) == 1 + MOST_LINES
    assert lines[-1] == "the last"
    assert "\x1b" not in "".join(lines)


def test_one_that_is_killed_changes_nothing(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    world.say("ready", "0", "1")
    world.reactor.advance(0)
    successor = world.upgrade.successor
    successor.processExited(Failure(ProcessTerminated(None, 9, 9)))
    assert not world.results
    # Somebody that it has started has its pipes.
    world.reactor.advance(EXIT_READ_LIMIT)
    [line] = world.errors
    assert "signal 9" in line
    assert world.serving.told[-1] == ("resume", ["echo 0"])
    world.end(ProcessTerminated(None, 9, 9))
    assert not world.reactor.getDelayedCalls()


def test_one_that_is_not_ready_in_time_is_ended(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    world.reactor.advance(START_LIMIT)
    assert world.reactor.process.signals == ["TERM"]
    world.reactor.advance(KILL_AFTER)
    assert world.reactor.process.signals == ["TERM", "KILL"]
    world.end(ProcessTerminated(None, 9, 9))
    [line] = world.errors
    assert f" {START_LIMIT:g} s" in line


def test_one_that_is_ready_and_does_not_serve_is_ended(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.upgrade.begin()
    world.say("ready", "0", "x")
    world.reactor.advance(0)
    world.reactor.advance(SERVE_LIMIT)
    assert world.serving.told[-1] == ("resume", ["echo 0"])
    world.reactor.process.gone = True
    world.reactor.process.pipes.clear()
    world.upgrade.successor.order(b"late\n")
    world.end(ProcessTerminated(1))
    [line] = world.errors
    assert line.endswith(f" {SERVE_LIMIT:g} s")
    world.reactor.advance(KILL_AFTER)


def test_what_cannot_be_started_is_told_at_once(bound: list[socket.socket]) -> None:
    world = StartedSuccessor(bound)
    world.reactor.refuses = True
    with pytest.raises(UserError, match=os.strerror(errno.ENOMEM)):
        world.upgrade.begin()
    assert not world.reactor.getDelayedCalls()


def test_the_sockets_of_systemd_are_passed_on(bound: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import endpoints
    from twisted.python.systemd import ListenFDs

    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", ListenFDs([bound[0].fileno()], ["web"]))
    world = StartedSuccessor([])
    world.upgrade.begin()
    assert json.loads(world.reactor.process.written)["systemd"] == [["web", 8]]
    assert world.reactor.started["childFDs"][8] == bound[0].fileno()
    world.upgrade.fail()
    world.end(ProcessTerminated(1))
    assert world.errors == ["the new process cannot start"]
