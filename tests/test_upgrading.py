from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessTerminated, ReactorNotRunning
from twisted.python.failure import Failure

from netsvc.errors import MistakeError, StartError
from netsvc.host.notify import Notifier
from netsvc.host.pidfile import PidFile
from netsvc.listeners.handed import HandedPort
from netsvc.plan import Plan
from netsvc.upgrade.briefing import Briefing, PassedPort
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import Program
from netsvc.upgrade.upgrading import Upgrading, reporting
from netsvc.workers.reports import report
from tests.logs import Lines, collected
from tests.test_passage import Process, Reactor

lines = pytest.fixture(collected)

PROGRAM = Program(["twistd"], "/", {})


class Looping(Reactor):
    """The same, with the rest of what a root service asks of a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self.running = True
        self.after: list[Any] = []

    def callWhenRunning(self, function: Any, *words: Any) -> None:
        """Forget it: signals are for real processes."""

    def callFromThread(self, function: Any, *words: Any) -> None:
        self.callLater(0, function, *words)

    def addSystemEventTrigger(self, _phase: str, _event: str, function: Any, *words: Any) -> None:
        self.after.append((function, words))

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False
        self.stops += 1

    def addReader(self, reader: Any) -> None:
        """Read nothing."""

    removeReader = addReader


class Core(Service):
    """What serves, as far as it is asked here."""

    def __init__(self) -> None:
        self._reactor: Any = Looping()
        self.plan = Plan({}, ())
        self.told: list[Any] = []
        self.open: list[HandedPort] = []
        self.busy = ""
        self.fails: BaseException | None = None
        self.ready: Any = None

    def privilegedStartService(self) -> None:
        if self.fails is not None:
            raise self.fails

    def succeed(self, found: Any, passed: Any, ready: Any) -> None:
        self.ready = ready

    def ports(self) -> list[HandedPort]:
        return self.open

    def steps(self) -> int:
        return 1

    def prepare(self, successors: int) -> float:
        return 0.0

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        self.told.append("give way")

    def go_on(self, ports: Sequence[HandedPort]) -> None:
        self.told.append("go on")

    def serve_step(self, step: int, steps: int) -> None:
        self.told.append(("serve", step, steps))

    def became_ready(self) -> None:
        self.told.append("ready")

    def occupied(self, what: str) -> str:
        return self.busy

    def reload(self, plan: Plan, load: Any = None) -> Deferred[str]:
        return succeed("reloaded")

    def force(self) -> None:
        """Force nothing."""

    def _die(self, reason: str) -> None:
        self.told.append(("die", reason))


class Root(Upgrading, Core):
    """A root service."""

    notifier = Notifier()


def root() -> Root:
    made = Root()
    made.program = PROGRAM
    # A stand-in takes over the signals of its process.
    made.detached = True
    made.privilegedStartService()
    made.startService()
    return made


def answer(asked: Deferred[Any]) -> Any:
    results: list[Any] = []
    asked.addCallback(results.append)
    return results[0] if results else None


def test_whoever_asks_hears_when_the_other_serves_and_this_one_stops() -> None:
    served = root()
    asked = served.upgrade()
    passage: Any = served._passage
    assert answer(served.upgrade()).lines == ["an upgrade is under way; wait until it is over"]
    refused: list[Any] = []
    served.reload(Plan({}, ())).addErrback(refused.append)
    assert list(refused[0].value.mistakes) == ["an upgrade is under way; wait until it is over"]
    passage.successor.childDataReceived(4, report("ready", "", "1"))
    served._reactor.advance(0)
    passage.successor.childDataReceived(4, report("serving", "0"))
    assert served._reactor.stops == 0
    assert answer(asked).lines == [f"upgraded: process 77 serves now in the place of {os.getpid()}"]
    # There is nothing to wait for.
    assert answer(served.upgrade()).lines == [
        "process 77 serves in the place of this one, which ends when its conversations have; use --pid 77"
    ]
    served._reactor.advance(0)
    assert served._reactor.stops == 1
    served.stopService()
    assert not served._reactor.after
    # A signal may have stopped it before.
    served._stop_once()


def test_what_comes_to_nothing_is_told_and_may_be_tried_again() -> None:
    served = root()
    asked = served.upgrade()
    passage: Any = served._passage
    passage.successor.childDataReceived(4, report("failed", "netsvc.toml:1: no"))
    passage.successor.processEnded(Failure(ProcessTerminated(1)))
    told = answer(asked)
    assert (told.status, told.lines) == (1, ["netsvc.toml:1: no"])
    assert answer(served.reload(Plan({}, ()))) == "reloaded"
    served._reactor.process = Process()
    served._reactor.refuses = True
    assert answer(served.upgrade()).lines == ["the new process could not be started: Cannot allocate memory"]


def test_a_fault_of_ours_is_logged_and_told(logged_errors: Any) -> None:
    served = root()
    served.ports = None  # type: ignore[method-assign,assignment]
    assert answer(served.upgrade()).status == 1
    assert logged_errors.flush(TypeError)


@pytest.mark.parametrize("detached", [False, True])
def test_a_stop_ends_what_was_about_to_take_over(detached: bool) -> None:
    served = root()
    served.detached = detached
    served.upgrade()
    passage: Any = served._passage
    served.stopService()
    assert served._reactor.process.signals == ["TERM"]
    [(function, words)] = served._reactor.after
    function(*words)
    assert served._reactor.process.signals == ["TERM", "KILL"]
    passage.successor.processEnded(Failure(ProcessTerminated(None, 9, 9)))


def test_what_cannot_be_upgraded_says_why(tmp_path: Path) -> None:
    served = root()
    served.busy = "a reload is under way; wait until it is over"
    assert answer(served.upgrade()).lines == [served.busy]
    served.busy = ""
    served.pid_file = PidFile(str(tmp_path / "missing" / "file"))
    assert "could not be replaced" in answer(served.upgrade()).lines[0]
    served.program = None
    assert "needs Linux" in answer(served.upgrade()).lines[0]


class Other(Predecessor):
    """A process whose place is taken, which notes what it hears."""

    def __init__(self, ports: Sequence[PassedPort]) -> None:
        super().__init__(Briefing(1, ports), -1)
        self.heard: list[Any] = []
        self.serve: Any = None
        self.gone: Any = None

    def failed(self, *lines: str) -> None:
        self.heard.append(("failed", *lines))

    def ready(self, numbers: list[int], processes: int) -> None:
        self.heard.append(("ready", numbers, processes))

    def serving(self, step: int) -> None:
        self.heard.append(("serving", step))

    def listen(self, reactor: Any, serve: Any, gone: Any) -> None:
        self.serve, self.gone = serve, gone


class Taking:
    """A root service that takes the place of another process, with one UNIX socket."""

    def __init__(self, directory: Path) -> None:
        self.bound = socket.socket(socket.AF_UNIX)
        self.files = [str(directory / "socket"), str(directory / "socket.lock")]
        os.symlink("1", self.files[1])
        self.owned: list[Any] = []
        port = PassedPort("listener", "echo tcp", "stream", "unix:x", [[os.dup(self.bound.fileno())]], self.files)
        self.other = Other([port])
        self.root = Root()
        self.root.program = PROGRAM
        self.root.predecessor = self.other
        self.root.open = [HandedPort("listener", "echo tcp", "stream", "", [[self.bound]], own=self.owned.append)]
        self.root.pid_file = PidFile(str(directory / "pid"))

    def start(self) -> None:
        self.root.privilegedStartService()
        self.root.startService()


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[Taking]:
    made = Taking(tmp_path)
    yield made
    made.bound.close()


def test_it_serves_when_it_is_told_to_and_owns_what_the_other_owned(taking: Taking, tmp_path: Path) -> None:
    taking.start()
    refused: list[Any] = []
    taking.root.reload(Plan({}, ())).addErrback(refused.append)
    assert refused
    taking.other.serve(0, 2)
    assert not taking.root.told
    taking.root.ready()
    assert taking.other.heard == [("ready", [0], 1)]
    taking.other.serve(0, 2)
    assert taking.root.told == [("serve", 0, 2)]
    assert not taking.owned
    assert not (tmp_path / "pid").exists()
    taking.other.serve(1, 2)
    assert taking.root.told[1:] == [("serve", 1, 2), "ready"]
    assert taking.owned == [taking.files]
    assert os.readlink(taking.files[1]) == str(os.getpid())
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    assert taking.other.heard[1:] == [("serving", 0), ("serving", 1)]
    taking.other.serve(1, 2)
    taking.other.gone()
    assert taking.root._reactor.stops == 0
    for function, words in taking.root._reactor.after:
        function(*words)
    assert not (tmp_path / "pid").exists()


def test_a_pid_file_that_cannot_be_written_stops_nothing(taking: Taking, tmp_path: Path, lines: Lines) -> None:
    taking.root.pid_file = PidFile(str(tmp_path / "missing" / "pid"))
    taking.start()
    taking.root.ready()
    taking.other.serve(0, 1)
    assert any("cannot be written" in line for line in lines)
    assert taking.root.told[-1] == "ready"


def test_if_the_other_is_gone_it_serves_if_it_could_and_ends_if_not(taking: Taking) -> None:
    taking.start()
    taking.other.gone()
    [(what, reason)] = taking.root.told
    assert (what, reason) == ("die", "the process that was to be upgraded is gone, and this one was not ready")
    taking.root.ready()
    taking.other.gone()
    assert taking.root.told[1:] == [("serve", 0, 1), "ready"]


def test_if_the_other_has_given_it_up_it_ends(taking: Taking) -> None:
    taking.start()
    taking.root.ready()
    taking.other.has_given_up = True
    taking.other.gone()
    taking.root._reactor.advance(0)
    assert taking.root._reactor.stops == 1
    assert not taking.owned
    taking.root.running = False
    taking.other.gone()
    taking.root._orphaned()
    assert taking.root._reactor.stops == 1


def test_a_start_that_fails_is_told_to_the_other_and_leaves_no_pid_file(taking: Taking, tmp_path: Path) -> None:
    taking.root.fails = StartError("one\ntwo")
    with pytest.raises(StartError):
        taking.root.privilegedStartService()
    assert taking.other.heard == [("failed", "one", "two")]
    alone = Root()
    alone.pid_file = PidFile(str(tmp_path / "alone"))
    alone.fails = KeyError("x")
    with pytest.raises(KeyError):
        alone.privilegedStartService()
    assert not (tmp_path / "alone").exists()
    alone.pid_file = PidFile(str(tmp_path / "missing" / "alone"))
    with pytest.raises(StartError, match="cannot be written"):
        alone.privilegedStartService()


def test_a_port_that_is_no_socket_is_told_to_the_other(taking: Taking) -> None:
    taking.start()

    def no_ports() -> list[HandedPort]:
        raise MistakeError(["stdio: is no socket"])

    taking.root.ports = no_ports  # type: ignore[method-assign]
    taking.root.ready()
    assert taking.other.heard == [("failed", "stdio: is no socket")]


def test_what_goes_wrong_with_nobody_to_tell_is_raised_all_the_same() -> None:
    for error in (StartError("x"), KeyError("y")):
        with pytest.raises(type(error)), reporting(None):
            raise error
    other = Other([])
    with pytest.raises(ZeroDivisionError), reporting(other):
        raise ZeroDivisionError("z")
    [(word, line)] = other.heard
    assert word == "failed"
    assert "ZeroDivisionError: z" in line
