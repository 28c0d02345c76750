"""The plan is read again when a signal or a command asks for that, and what comes of it is told."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from netsvc.client import asking as client
from netsvc.client.failure import ClientError
from netsvc.errors import MistakeError
from netsvc.host.control import Answer, control_names, pid_name
from netsvc.host.reload import Reload, Reloading, from_directory
from netsvc.plan import Plan
from tests.conftest import LoggedErrors
from tests.logs import Lines, collected
from tests.turned import Net

PLAN = Plan({}, ())


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


class Asked:
    """A reload whose parts do what a test says."""

    def __init__(self, *results: Any) -> None:
        self.clock = Clock()
        self.results = list(results)
        self.reads = 0
        self.fault: BaseException | None = None
        self.reload = Reload(self.clock, self.read, self.run)

    def read(self) -> tuple[Plan, Any]:
        self.reads += 1
        if self.fault:
            raise self.fault
        return PLAN, None

    def run(self, plan: Plan, load: Any) -> Any:
        assert plan is PLAN
        return self.results.pop(0)

    def answer(self) -> Answer:
        [answer] = self.answers()
        return answer

    def answers(self) -> list[Answer]:
        answers: list[Answer] = []
        self.reload.answer().addCallback(answers.append)
        return answers


def test_what_changed_is_answered_and_logged(lines: Lines) -> None:
    asked = Asked(succeed("1 listener kept"))
    assert asked.answer() == Answer(0, ["reloaded: 1 listener kept"])
    assert lines == ["reloaded: 1 listener kept"]


def test_mistakes_are_answered_and_logged(lines: Lines) -> None:
    asked = Asked(fail(MistakeError(["one", "two"])))
    assert asked.answer() == Answer(1, ("one", "two"))
    asked.fault = MistakeError(["three"])
    assert asked.answer() == Answer(1, ("three",))
    assert lines == ["not reloaded: one", "not reloaded: two", "not reloaded: three"]
    assert lines.levels == ["error"] * 3


@pytest.mark.parametrize("error", [RuntimeError("oops"), SystemExit(3)])
def test_what_nobody_expected_is_a_line_as_well(error: BaseException) -> None:
    asked = Asked()
    asked.fault = error
    answer = asked.answer()
    assert answer.status == 1
    assert answer.lines[0].startswith(f"it cannot be read: {type(error).__name__}: ")


def test_a_reload_that_fails_unexpectedly_is_logged(logged_errors: LoggedErrors) -> None:
    asked = Asked(fail(ZeroDivisionError("oops")))
    assert asked.answer().lines[0].startswith("ZeroDivisionError: oops")
    assert logged_errors.flush(ZeroDivisionError)


def test_a_command_while_one_is_under_way_is_refused_and_a_signal_is_remembered_once() -> None:
    waiting: Deferred[str] = Deferred()
    asked = Asked(waiting, succeed("second"))
    first = asked.answers()
    assert asked.answer() == Answer(1, ["a reload is under way; wait until it is over"])
    asked.reload.hang_up()
    asked.reload.hang_up()
    assert asked.reads == 1
    waiting.callback("first")
    assert first == [Answer(0, ["reloaded: first"])]
    asked.clock.advance(0)
    assert asked.reads == 2
    asked.clock.advance(1)
    assert asked.reads == 2


def test_nothing_is_read_any_more_when_the_process_stops() -> None:
    asked = Asked()
    asked.reload.closed = True
    asked.reload.hang_up()
    assert asked.reads == 0


def test_relative_paths_are_those_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, later = tmp_path / "started", tmp_path / "later"
    started.mkdir()
    later.mkdir()
    monkeypatch.chdir(later)
    seen: list[str] = []

    def read() -> Any:
        seen.append(os.getcwd())
        if len(seen) > 1:
            raise MistakeError(["wrong"])
        return PLAN, None

    assert from_directory(read, str(started))()[0] is PLAN
    with pytest.raises(MistakeError, match=r"^wrong$"):
        from_directory(read, str(started))()
    with pytest.raises(MistakeError, match=r"^wrong\nthe process runs in a changed root, --chroot /jail: files are"):
        from_directory(read, str(started), "/jail")()
    assert seen == [str(started)] * 3
    assert os.getcwd() == str(later)
    gone = str(tmp_path / "gone")
    with pytest.raises(MistakeError, match="gone, where the process was started, cannot be entered: no such file"):
        from_directory(read, gone)()
    with pytest.raises(MistakeError, match="cannot be entered: --chroot /jail hides it; start it anew"):
        from_directory(read, gone, "/jail")()


def test_a_daemon_whose_present_directory_was_removed_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    seen: list[str] = []

    def read() -> Any:
        seen.append(os.getcwd())
        return PLAN, None

    assert from_directory(read, str(tmp_path))()[0] is PLAN
    assert seen == [str(tmp_path)]
    monkeypatch.chdir(tmp_path)


class Base(Service):
    """Stands in for a host."""

    def __init__(self, reactor: Any, plan: Plan) -> None:
        self.plan = plan
        self._reactor = reactor
        self.plans: list[Plan] = []
        self.draining: Deferred[Any] | None = None

    def activity(self) -> str:
        return "nothing"

    def stopService(self) -> Any:
        super().stopService()
        return self.draining

    def reload(self, plan: Plan, load: Any) -> Deferred[str]:
        self.plans.append(plan)
        return succeed("done") if plan.drain != 1 else fail(MistakeError(["one", "\x1b[2Jtwo"]))


class Root(Reloading, Base):
    """The same, right below the application."""


@pytest.fixture
def net() -> Iterator[Net]:
    """Turn a reactor by hand."""
    made = Net()
    yield made
    made.close()


def start(net: Net, plan: Plan) -> tuple[Any, list[Any]]:
    when_running: list[Any] = []
    net.reactor.callWhenRunning = lambda *call: when_running.append(call)
    root: Any = Root(net.reactor, plan)
    root.read = lambda: (plan, None)
    root.startService()
    return root, when_running


def ask(net: Net, config: str) -> Answer:
    """Ask, while the reactor turns."""
    from threading import Thread

    answers: list[Answer] = []

    def ask_reload() -> None:
        try:
            answers.append(client.ask(client.of_config(config), "reload"))
        except ClientError as error:
            answers.append(Answer(2, [str(error)]))

    thread = Thread(target=ask_reload)
    thread.start()
    while thread.is_alive():
        net.turn()
    thread.join()
    return answers[0]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
@pytest.mark.parametrize("drain", [4, 1])
def test_the_process_of_a_file_can_be_asked(net: Net, tmp_path: Path, drain: float) -> None:
    config = str(tmp_path / "n.toml")
    plan = Plan({}, (), drain=drain, config=config)
    root, when_running = start(net, plan)
    answer = ask(net, config)
    assert root.plans == [plan]
    assert answer == (Answer(1, ["one", "\\x1b[2Jtwo"]) if drain == 1 else Answer(0, ["reloaded: done"]))
    [(take_over, _, hang_up)] = when_running
    assert take_over.__name__ == "take_over_hangup"
    hang_up()
    assert root.plans == [plan, plan]
    stop(net, root)
    hang_up()
    assert root.plans == [plan, plan]
    assert ask(net, config).status == 2


def stop(net: Net, root: Any) -> None:
    stopped: list[Any] = []
    root.stopService().addCallback(stopped.append)
    net.turn(3)
    assert stopped == [None]


def test_without_a_file_it_is_asked_by_its_pid(net: Net) -> None:
    root, when_running = start(net, PLAN)
    assert len(when_running) == 1
    assert (root._control is None) is (sys.platform != "linux")
    stop(net, root)


def test_while_it_drains_it_still_answers_by_its_file(net: Net, tmp_path: Path) -> None:
    root, _ = start(net, Plan({}, (), config=str(tmp_path / "n.toml")))
    root.draining = Deferred()
    root.stopService()
    with socket.socket(socket.AF_UNIX) as by_file:
        assert by_file.connect_ex(control_names(str(root.plan.config))[0]) == 0
    net.turn()
    root.draining.callback("over")
    net.turn(3)


def test_while_it_drains_after_an_upgrade_it_has_left_its_file_and_answers_by_its_pid(net: Net, tmp_path: Path) -> None:
    plan = Plan({}, (), config=str(tmp_path / "n.toml"))
    root, _ = start(net, plan)
    root.draining = Deferred()
    root.has_successor = True
    stopped: list[Any] = []
    root.stopService().addCallback(stopped.append)
    with socket.socket(socket.AF_UNIX) as by_file, socket.socket(socket.AF_UNIX) as by_pid:
        assert by_file.connect_ex(control_names(str(plan.config))[0]) == errno.ECONNREFUSED
        by_pid.connect(pid_name(os.getpid()))
        net.turn()
        root.draining.callback("over")
        net.turn(3)
    assert stopped == ["over"]


def test_without_a_reader_there_is_nothing(net: Net) -> None:
    root = Root(net.reactor, PLAN)
    root.startService()
    root.stopService()
    assert root._requests is None
