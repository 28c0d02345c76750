"""The plan is read again when a signal or a command asks for that, and what comes of it is told."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from netsvc.app.application import Application
from netsvc.app.reload import Reload, in_directory
from netsvc.base.errors import UserError
from netsvc.cli import processes as client
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import by_config, by_pid
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan
from tests.builders.fake_server import FakeServer
from tests.builders.logs import Lines, collected
from tests.builders.looks import connected
from tests.builders.turned import Net
from tests.conftest import LoggedErrors

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
    asked = Asked(fail(UserError(["one", "two"])))
    assert asked.answer() == Answer(1, ("one", "two"))
    asked.fault = UserError(["three"])
    assert asked.answer() == Answer(1, ("three",))
    assert lines == ["not reloaded: one", "not reloaded: two", "not reloaded: three"]
    assert lines.levels == ["error"] * 3


@pytest.mark.parametrize("error", [RuntimeError("oops"), SystemExit(3)])
def test_what_nobody_expected_is_a_line_as_well(error: BaseException) -> None:
    asked = Asked()
    asked.fault = error
    answer = asked.answer()
    assert answer.status == 1
    [line] = answer.lines
    assert f": {type(error).__name__}: " in line


def test_a_reload_that_fails_unexpectedly_is_logged(logged_errors: LoggedErrors) -> None:
    asked = Asked(fail(ZeroDivisionError("oops")))
    assert asked.answer().lines[0].startswith("ZeroDivisionError: oops")
    assert logged_errors.flush(ZeroDivisionError)


def test_a_command_while_one_is_under_way_is_refused_and_a_signal_is_remembered_once() -> None:
    waiting: Deferred[str] = Deferred()
    asked = Asked(waiting, succeed("second"))
    first = asked.answers()
    refused = asked.answer()
    assert (refused.status, len(refused.lines)) == (1, 1)
    asked.reload.on_sighup()
    asked.reload.on_sighup()
    assert asked.reads == 1
    waiting.callback("first")
    assert first == [Answer(0, ["reloaded: first"])]
    asked.clock.advance(0)
    assert asked.reads == 2
    asked.clock.advance(1)
    assert asked.reads == 2


class Changing:
    """Another change of the process, which notes how often it was started, and ends when a test says so."""

    def __init__(self) -> None:
        self.ends: list[Deferred[Answer]] = []
        self.answers: list[Answer] = []

    def start(self) -> Deferred[Answer]:
        self.ends.append(Deferred())
        return self.ends[-1]

    def ask(self, asked: Asked) -> None:
        asked.reload.between(self.start).addCallback(self.answers.append)


def test_another_change_waits_for_the_reload_under_way_and_comes_before_the_next() -> None:
    waiting: Deferred[str] = Deferred()
    asked, other = Asked(waiting, succeed("second"), succeed("third")), Changing()
    first = asked.answers()
    other.ask(asked)
    # Reloads that follow each other all the time do not keep it waiting.
    asked.reload.on_sighup()
    assert (len(other.ends), asked.reads) == (0, 1)
    waiting.callback("first")
    asked.clock.advance(1)
    assert (len(first), len(other.ends), asked.reads) == (1, 1, 1)
    asked.reload.on_sighup()
    other.ends[0].callback(Answer(1, ["failed"]))
    asked.clock.advance(0)
    assert (other.answers, asked.reads) == ([Answer(1, ["failed"])], 2)
    asked.clock.advance(1)
    assert asked.reads == 2


def test_one_change_waits_and_another_is_refused() -> None:
    asked, other = Asked(Deferred()), Changing()
    asked.answers()
    for _ in range(2):
        other.ask(asked)
    assert [answer.status for answer in other.answers] == [1]
    assert other.ends == []


def test_a_change_is_made_at_once_while_nothing_is_reloaded() -> None:
    asked, other = Asked(succeed("reloaded")), Changing()
    for _ in range(2):
        other.ask(asked)
    assert len(other.ends) == 2
    asked.reload.on_sighup()
    other.ends[1].callback(Answer(1, ["refused"]))
    asked.clock.advance(1)
    assert asked.reads == 0
    other.ends[0].callback(Answer(1, ["failed"]))
    asked.clock.advance(0)
    assert asked.reads == 1


def test_a_signal_is_passed_on_to_a_process_that_has_replaced_this_one_meanwhile() -> None:
    asked, other = Asked(), Changing()
    passed: list[bool] = []

    def pass_on() -> bool:
        passed.append(bool(other.answers))
        return passed[-1]

    asked.reload = Reload(asked.clock, asked.read, asked.run, passed_on=pass_on)
    other.ask(asked)
    asked.reload.on_sighup()
    assert passed == []
    other.ends[0].callback(Answer(0, ["upgraded"]))
    asked.clock.advance(0)
    asked.reload.closed = True
    asked.reload.on_sighup()
    assert (passed, asked.reads) == ([True, True], 0)


def test_what_a_reload_leaves_out_is_in_its_answer_and_in_the_log(lines: Lines) -> None:
    outcomes = [succeed("one"), fail(UserError(["wrong"]))]
    reload = Reload(Clock(), lambda: (PLAN, None), lambda *_: outcomes.pop(0), hints=lambda: ["code"])  # type: ignore[arg-type, return-value]
    answers: list[Answer] = []
    for _ in range(2):
        reload.answer().addCallback(answers.append)
    assert answers == [Answer(0, ["reloaded: one", "code"]), Answer(1, ("wrong",))]
    assert lines == ["reloaded: one", "code", "not reloaded: wrong"]


def test_nothing_is_read_any_more_when_the_process_stops() -> None:
    asked = Asked()
    asked.reload.closed = True
    asked.reload.on_sighup()
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
            raise UserError(["wrong"])
        return PLAN, None

    assert in_directory(read, str(started))()[0] is PLAN
    with pytest.raises(UserError, match=r"^wrong$"):
        in_directory(read, str(started))()
    with pytest.raises(UserError, match=r"^wrong\n.*--chroot /jail\b"):
        in_directory(read, str(started), "/jail")()
    assert seen == [str(started)] * 3
    assert os.getcwd() == str(later)
    gone = str(tmp_path / "gone")
    with pytest.raises(UserError, match=re.escape(gone)):
        # It asks for the present directory.
        in_directory(read, gone)()
    with pytest.raises(UserError, match="cannot be entered: --chroot /jail "):
        in_directory(read, gone, "/jail")()


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

    assert in_directory(read, str(tmp_path))()[0] is PLAN
    assert seen == [str(tmp_path)]
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def net() -> Iterator[Net]:
    """Turn a reactor by hand."""
    made = Net()
    yield made
    made.close()


def start(net: Net, plan: Plan, errors: Sequence[str] = ()) -> tuple[Application, FakeServer]:
    net.reactor.callWhenRunning = lambda *call: None
    server = FakeServer(plan)
    server.errors = list(errors)
    root = Application(server, net.reactor, lambda: (plan, None))  # type: ignore[arg-type, return-value]
    root.startService()
    return root, server


def ask(net: Net, config: str) -> Answer:
    """Ask, while the reactor turns."""
    from threading import Thread

    answers: list[Answer] = []

    def ask_reload() -> None:
        try:
            answers.append(client.ask(client.by_config(config), "reload"))
        except ClientError as error:
            answers.append(Answer(2, [str(error)]))

    thread = Thread(target=ask_reload)
    thread.start()
    while thread.is_alive():
        net.turn()
    thread.join()
    return answers[0]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
@pytest.mark.parametrize("errors", [[], ["one", "\x1b[2Jtwo"]])
def test_the_process_of_a_file_can_be_asked(net: Net, tmp_path: Path, errors: list[str]) -> None:
    config = str(tmp_path / "n.toml")
    plan = Plan({}, (), config=config)
    root, server = start(net, plan, errors)
    answer = ask(net, config)
    once = ["open", "start", ("reload", plan)]
    assert server.calls == once
    assert answer == (Answer(1, ["one", "\\x1b[2Jtwo"]) if errors else Answer(0, ["reloaded: done"]))
    hang_up = root.reloader.on_sighup
    hang_up()
    twice = [*once, ("reload", plan)]
    assert server.calls == twice
    stop(net, root)
    hang_up()
    assert server.calls == [*twice, "stop"]
    assert ask(net, config).status == 2


def stop(net: Net, root: Any) -> None:
    stopped: list[Any] = []
    root.stopService().addCallback(stopped.append)
    net.turn(3)
    assert stopped == [None]


def test_without_a_file_it_is_asked_by_its_pid(net: Net) -> None:
    root, _ = start(net, PLAN)
    assert (root.control is None) is (sys.platform != "linux")
    stop(net, root)


def test_while_it_drains_it_still_answers_by_its_file(net: Net, tmp_path: Path) -> None:
    root, server = start(net, Plan({}, (), config=str(tmp_path / "n.toml")))
    server.stopping = Deferred()
    root.stopService()
    by_file = connected(by_config(str(server.plan.config)))
    assert by_file is not None
    by_file.close()
    net.turn()
    server.stopping.callback(None)
    net.turn(3)


def test_while_it_drains_after_an_upgrade_it_has_left_its_file_and_answers_by_its_pid(net: Net, tmp_path: Path) -> None:
    plan = Plan({}, (), config=str(tmp_path / "n.toml"))
    root, server = start(net, plan)
    server.stopping = Deferred()
    root.upgrader.has_successor = True
    stopped: list[Any] = []
    root.stopService().addCallback(stopped.append)
    assert connected(by_config(str(plan.config))) is None
    own = connected(by_pid(os.getpid()))
    assert own is not None
    net.turn()
    server.stopping.callback(None)
    net.turn(3)
    own.close()
    assert stopped == [None]
