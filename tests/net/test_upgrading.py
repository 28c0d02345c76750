from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated, ReactorNotRunning
from twisted.python.failure import Failure

from netsvc.app.application import Application
from netsvc.base.errors import StartError, UserError
from netsvc.listen.handoff import Handoff, OfferedPort, PassedPort
from netsvc.log.queued import wait
from netsvc.plan.plan import Plan
from netsvc.server.notify import Notifier
from netsvc.server.pidfile import PidFile
from netsvc.server.process import stop_reactor
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import Program
from netsvc.upgrade.upgrader import reporting
from netsvc.workers.channel import report
from tests.builders.facts import lacks, states
from tests.builders.fake_server import FakeServer
from tests.builders.logs import Lines, collected
from tests.builders.offered import NoOwner
from tests.builders.successors import Process, Reactor

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
        # The outputs of this process are not those of a server.
        if function is not wait:
            self.after.append((function, words))

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False
        self.stops += 1

    def addReader(self, reader: Any) -> None:
        """Read nothing."""

    removeReader = removeWriter = addReader


class Owner(NoOwner):
    """Notes the files that it is given."""

    def __init__(self, owned: list[Any]) -> None:
        self.owned = owned

    def own(self, files: Sequence[str]) -> None:
        self.owned.append(list(files))


class Telling(Notifier):
    """Notes that the process is ready."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__()
        self._told = told

    def ready(self) -> None:
        self._told.append("ready")


class Root:
    """An application on such a reactor. `told` is what its server was called with, and how it ended the process."""

    def __init__(self, predecessor: Predecessor | None = None, pid_file: PidFile | None = None) -> None:
        self.reactor: Any = Looping()
        self.server = FakeServer(Plan({}, ()))
        self.application = Application(
            self.server,
            self.reactor,
            lambda: (Plan({}, ()), None),  # type: ignore[arg-type, return-value]
            notifier=Telling(self.server.calls),
            program=PROGRAM,
            predecessor=predecessor,
            pid_file=pid_file,
            # A stand-in takes over the signals of its process.
            detached=True,
        )
        self.upgrader = self.application.upgrader
        self.told = self.server.calls
        self.upgrader._die = lambda reason: self.told.append(("die", reason))

    def start(self) -> None:
        self.application.privilegedStartService()
        self.application.startService()
        # No test asks it anything.
        assert self.application.control is not None
        self.application.control.close()
        self.application.control = None
        self.told.clear()

    def upgrade(self) -> Deferred[Any]:
        return self.application.upgrade()

    def reload(self) -> Deferred[str]:
        load: Any = None
        return self.application.reload(Plan({}, ()), load)


def root() -> Root:
    made = Root()
    made.start()
    return made


def answer(asked: Deferred[Any]) -> Any:
    results: list[Any] = []
    asked.addCallback(results.append)
    return results[0] if results else None


def test_whoever_asks_hears_when_the_other_serves_and_this_one_stops() -> None:
    served = root()
    asked = served.upgrade()
    passage: Any = served.upgrader._upgrade
    second = answer(served.upgrade())
    assert (second.status, second.lines) == (1, [served.upgrader.refusal()])
    refused: list[Any] = []
    served.reload().addErrback(refused.append)
    assert list(refused[0].value.errors) == second.lines
    passage.successor.childDataReceived(4, report("ready", "", "1"))
    served.reactor.advance(0)
    passage.successor.childDataReceived(4, report("serving", "0"))
    assert served.reactor.stops == 0
    [line] = answer(asked).lines
    assert states(line, "upgraded: ", " 77 ", os.getpid())
    # There is nothing to wait for.
    [line] = answer(served.upgrade()).lines
    assert lacks(line, " 77 ", "--pid 77") == []
    served.reactor.advance(0)
    assert served.reactor.stops == 1
    served.application.stopService()
    assert not served.reactor.after
    # A signal may have stopped it before.
    stop_reactor(served.reactor)


def test_a_hangup_meanwhile_is_for_the_process_that_serves_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        # Signal 0 asks only whether a process is there.
        if number:
            sent.append((pid, number))

    monkeypatch.setattr("netsvc.app.application.os.kill", kill)
    served = root()
    served.upgrade()
    passage: Any = served.upgrader._upgrade
    served.application.reloader.on_sighup()
    passage.successor.childDataReceived(4, report("ready", "", "1"))
    served.reactor.advance(0)
    assert sent == []
    passage.successor.childDataReceived(4, report("serving", "0"))
    served.reactor.advance(0)
    assert sent == [(77, signal.SIGHUP)]
    served.application.stopService()


def test_an_upgrade_during_a_reload_is_made_after_it() -> None:
    served = root()
    reloading: Deferred[str] = Deferred()
    served.server.reload = lambda *_: reloading  # type: ignore[method-assign]
    reread: list[Any] = []
    served.application.reread().addCallback(reread.append)
    asked = served.upgrade()
    assert served.upgrader._upgrade is None
    reloading.callback("done")
    assert reread[0].status == 0
    passage: Any = served.upgrader._upgrade
    passage.successor.childDataReceived(4, report("ready", "", "1"))
    served.reactor.advance(0)
    passage.successor.childDataReceived(4, report("serving", "0"))
    assert answer(asked).status == 0
    served.reactor.advance(0)
    assert served.reactor.stops == 1


def test_what_comes_to_nothing_is_told_and_may_be_tried_again() -> None:
    served = root()
    asked = served.upgrade()
    passage: Any = served.upgrader._upgrade
    passage.successor.childDataReceived(4, report("failed", "netsvc.toml:1: no"))
    passage.successor.processEnded(Failure(ProcessTerminated(1)))
    told = answer(asked)
    assert (told.status, told.lines) == (1, ["netsvc.toml:1: no"])
    assert answer(served.reload()) == "done"
    served.reactor.process = Process()
    served.reactor.refuses = True
    [line] = answer(served.upgrade()).lines
    assert "Cannot allocate memory" in line


def test_a_fault_of_ours_is_logged_and_told(logged_errors: Any) -> None:
    served = root()
    served.server.ports = None  # type: ignore[method-assign,assignment]
    assert answer(served.upgrade()).status == 1
    assert logged_errors.flush(TypeError)


@pytest.mark.parametrize("detached", [False, True])
def test_a_stop_ends_what_was_about_to_take_over(detached: bool) -> None:
    served = root()
    served.upgrader._detached = detached
    served.upgrade()
    passage: Any = served.upgrader._upgrade
    served.application.stopService()
    assert served.reactor.process.signals == ["TERM"]
    [(function, words)] = served.reactor.after
    function(*words)
    assert served.reactor.process.signals == ["TERM", "KILL"]
    passage.successor.processEnded(Failure(ProcessTerminated(None, 9, 9)))


def test_what_cannot_be_upgraded_says_why(tmp_path: Path) -> None:
    served = root()
    served.server.occupation = "a reload is under way"
    assert answer(served.upgrade()).lines == [served.server.occupation]
    served.server.occupation = ""
    served.upgrader._pid_file = PidFile(str(tmp_path / "missing" / "file"))
    assert str(tmp_path / "missing" / "file") in answer(served.upgrade()).lines[0]
    served.upgrader._program = None
    assert "Linux" in answer(served.upgrade()).lines[0]


class Other(Predecessor):
    """A process whose place is taken, which notes what it hears."""

    def __init__(self, ports: Sequence[PassedPort]) -> None:
        super().__init__(Handoff(1, ports), -1)
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
        port = PassedPort("listener", "echo tcp", "stream", "unix:x", [os.dup(self.bound.fileno())], self.files)
        self.other = Other([port])
        self.root = Root(self.other, PidFile(str(directory / "pid")))
        opened = OfferedPort("listener", "echo tcp", "stream", "", [self.bound], Owner(self.owned))
        self.root.server.handed = [opened]

    def start(self) -> None:
        self.root.start()

    def ready(self) -> None:
        assert self.root.server.inherits is not None
        self.root.server.inherits()


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[Taking]:
    made = Taking(tmp_path)
    yield made
    made.bound.close()


def test_it_serves_when_it_is_told_to_and_owns_what_the_other_owned(taking: Taking, tmp_path: Path) -> None:
    taking.start()
    refused: list[Any] = []
    taking.root.reload().addErrback(refused.append)
    assert refused
    taking.other.serve(0, 2)
    assert not taking.root.told
    taking.ready()
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
    assert taking.root.reactor.stops == 0
    for function, words in taking.root.reactor.after:
        function(*words)
    assert not (tmp_path / "pid").exists()


def test_a_pid_file_that_cannot_be_written_stops_nothing(taking: Taking, tmp_path: Path, lines: Lines) -> None:
    taking.root.upgrader._pid_file = PidFile(str(tmp_path / "missing" / "pid"))
    taking.start()
    taking.ready()
    taking.other.serve(0, 1)
    assert any("cannot be written" in line for line in lines)
    assert taking.root.told[-1] == "ready"


def test_if_the_other_is_gone_it_serves_if_it_could_and_ends_if_not(taking: Taking) -> None:
    taking.start()
    taking.other.gone()
    [(what, reason)] = taking.root.told
    assert what == "die"
    assert "ready" in reason
    taking.ready()
    taking.other.gone()
    assert taking.root.told[1:] == [("serve", 0, 1), "ready"]


def test_if_the_other_has_given_it_up_it_ends(taking: Taking) -> None:
    taking.start()
    taking.ready()
    taking.other.has_given_up = True
    taking.other.gone()
    taking.root.reactor.advance(0)
    assert taking.root.reactor.stops == 1
    assert not taking.owned
    taking.root.application.stopService()
    taking.other.gone()
    taking.root.upgrader._orphaned()
    assert taking.root.reactor.stops == 1


def test_a_start_that_fails_is_told_to_the_other_and_leaves_no_pid_file(taking: Taking, tmp_path: Path) -> None:
    taking.root.server.fault = StartError("one\ntwo")
    with pytest.raises(StartError):
        taking.root.start()
    assert taking.other.heard == [("failed", "one", "two")]
    alone = Root(pid_file=PidFile(str(tmp_path / "alone")))
    alone.server.fault = KeyError("x")
    with pytest.raises(KeyError):
        alone.start()
    assert not (tmp_path / "alone").exists()
    alone = Root(pid_file=PidFile(str(tmp_path / "missing" / "alone")))
    with pytest.raises(StartError, match="cannot be written"):
        alone.start()


def test_a_port_that_is_no_socket_is_told_to_the_other(taking: Taking) -> None:
    taking.start()

    def no_ports() -> list[OfferedPort]:
        raise UserError(["stdio: is no socket"])

    taking.root.server.ports = no_ports  # type: ignore[method-assign]
    taking.ready()
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
