"""The plan is read again when a signal or a command asks for that, and what comes of it is told."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from netsvc.client import reload as client
from netsvc.client.failure import ClientError
from netsvc.errors import MistakeError
from netsvc.host.control import Answer, control_names
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


def in_thread(net: Net, *arguments: str) -> Result:
    """Run the command, while the reactor turns."""
    from threading import Thread

    results: list[Result] = []
    thread = Thread(target=lambda: results.append(CliRunner().invoke(client.command, arguments)))
    thread.start()
    while thread.is_alive():
        net.turn()
    thread.join()
    return results[0]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
@pytest.mark.parametrize("drain", [4, 1])
def test_the_command_asks_the_process_of_its_file(net: Net, tmp_path: Path, drain: float) -> None:
    config = str(tmp_path / "n.toml")
    plan = Plan({}, (), drain=drain, config=config)
    root, when_running = start(net, plan)
    result = in_thread(net, "--config", config)
    assert root.plans == [plan]
    if drain == 1:
        assert result.exit_code == 1
        assert result.stderr == "netsvc: one\nnetsvc: \\\\x1b[2Jtwo\n".replace("\\\\", "\\")
        assert result.stdout == ""
    else:
        assert (result.exit_code, result.stdout, result.stderr) == (0, "reloaded: done\n", "")
    [(take_over, _, hang_up)] = when_running
    assert take_over.__name__ == "take_over_hangup"
    hang_up()
    assert root.plans == [plan, plan]
    root.stopService()
    net.turn()
    hang_up()
    assert root.plans == [plan, plan]
    result = in_thread(net, "--config", config)
    assert result.exit_code == 1
    assert result.stderr == (
        f"netsvc: no process runs with --config {config}, and there is no such file; "
        "name the file that it was started with\n"
    )


def test_without_a_file_there_is_the_signal_alone(net: Net) -> None:
    root, when_running = start(net, PLAN)
    assert root._control is None
    assert len(when_running) == 1
    root.stopService()


def test_without_a_reader_there_is_nothing(net: Net) -> None:
    root = Root(net.reactor, PLAN)
    root.startService()
    root.stopService()
    assert root._requests is None


def serve(config: str, reply: bytes) -> Any:
    """Take the name of a file's process, and answer one request."""
    from threading import Thread

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(control_names(config)[-1])
    listening.listen()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            # Who asks may be gone, for it looks whom it has met.
            with suppress(OSError):
                connection.recv(100)
                connection.sendall(reply)

    thread = Thread(target=answer)
    thread.start()
    return thread


@pytest.mark.parametrize("reply", [b"", b"nonsense\n", b'{"out": "part'])
def test_an_answer_that_is_none_is_an_error(tmp_path: Path, reply: bytes) -> None:
    config = str(tmp_path / "n.toml")
    thread = serve(config, reply)
    with pytest.raises(ClientError, match="closed the connection: it answers its own user, and root"):
        client.ask(config, "reload")
    thread.join()


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.01)
    config = str(tmp_path / "n.toml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(control_names(config)[0])
        listening.listen()
        with pytest.raises(ClientError, match="does not answer; its log may say why"):
            client.ask(config, "reload")


def test_a_name_that_another_user_has_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "peer_user", lambda connection: 4242)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config = str(tmp_path / "n.toml")
    thread = serve(config, b"")
    with pytest.raises(
        ClientError, match="the process that answers is that of user 4242; ask as that user, or as root"
    ):
        client.ask(config, "reload")
    thread.join()


def test_root_may_ask_anybodys_process_and_is_told_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "peer_user", lambda connection: 4242)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    config = str(tmp_path / "n.toml")
    thread = serve(config, Answer(0, ["reloaded: it"]).to_bytes())
    assert client.ask(config, "reload") == Answer(0, ["reloaded: it"])
    assert capsys.readouterr().err == "netsvc: warning: the process that answers is that of user 4242\n"
    thread.join()


def test_a_process_that_hears_nobody_is_tried_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TRIES", 2)
    monkeypatch.setattr(client, "_PAUSE", 0)
    config = str(tmp_path / "n.toml")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(control_names(config)[0])
        listening.listen(0)
        other.connect(control_names(config)[0])
        with pytest.raises(ClientError, match="has no time; try again"):
            client.ask(config, "reload")


def test_elsewhere_the_command_tells_of_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ClientError, match="this needs Linux; send the process a SIGHUP: kill -HUP PID"):
        client.ask("n.toml", "reload")


def test_the_file_is_the_one_here_if_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netsvc.toml").touch()
    result = CliRunner().invoke(client.command, [])
    assert result.stderr == (
        f"netsvc: no process runs with --config {tmp_path}/netsvc.toml; name the file that it was started with\n"
    )
