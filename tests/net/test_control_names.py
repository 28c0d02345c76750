"""Where commands are answered: at the name of the process, and at those of its file as long as nobody else does."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from netsvc.control.forward import forward
from netsvc.control.location import CONFIG_SOCKET, pid_key
from netsvc.control.server import LINGER, REPORT, RETRY, SELDOM, Control
from netsvc.plan.answer import Answer
from tests.builders.logs import Lines, collected
from tests.builders.looks import control_names, pid_name, unused_pids
from tests.builders.turned import Net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def ask(net: Net, name: str, request: bytes) -> bytes:
    """Ask over a real socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        client.send(request)
        client.setblocking(False)
        data = b""
        for _ in range(1000):
            net.turn()
            try:
                more = client.recv(1000)
            except BlockingIOError:
                continue
            if not more:
                break
            data += more
        return data


PID = unused_pids(2)


class Steady(Net):
    """The same, with a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.reactor.callLater = self.clock.callLater
        self.reactor.seconds = self.clock.seconds

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / RETRY)):
            self.clock.advance(RETRY)


@pytest.fixture
def net() -> Iterator[Steady]:
    made = Steady()
    yield made
    made.close()
    assert made.clock.getDelayedCalls() == []


def answers(word: str) -> Any:
    return {"now": lambda words: Answer(0, [word])}


def two(net: Steady, config: str) -> tuple[Control, Control]:
    """Run two processes with one file, the first of which has its name."""
    old = Control(net.reactor, config, answers("old"), PID)
    new = Control(net.reactor, config, answers("new"), PID + 1)
    old.listen()
    new.listen()
    return old, new


def is_nobody(name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(name) == errno.ECONNREFUSED


def close(net: Steady, control: Control) -> None:
    closed: list[None] = []
    control.close().addCallback(closed.append)
    net.turn(3)
    assert closed == [None]


def test_over_a_real_socket_by_file_and_by_pid(tmp_path: Path, net: Steady) -> None:
    config = str(tmp_path / "n.toml")
    control = Control(net.reactor, config, answers("done"), PID)
    control.listen()
    [name] = control_names(config)
    for each in (name, pid_name(PID)):
        assert ask(net, each, b"now\n") == b'{"out": "done"}\n{"status": 0}\n'
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        net.turn()
        close(net, control)
        assert client.recv(10) == b""
    assert is_nobody(name)
    assert is_nobody(pid_name(PID))


def test_without_a_file_there_is_the_pid(net: Steady) -> None:
    control = Control(net.reactor, None, answers("done"), PID)
    control.listen()
    assert ask(net, pid_name(PID), b"now\n").startswith(b'{"out": "done"}')
    close(net, control)


def test_a_pid_that_somebody_has_taken_changes_nothing_else(tmp_path: Path, net: Steady, lines: Lines) -> None:
    config = str(tmp_path / "n.toml")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(pid_name(PID))
        control = Control(net.reactor, config, answers("done"), PID)
        control.listen()
        assert ask(net, control_names(config)[0], b"now\n").startswith(b'{"out": "done"}')
        close(net, control)
    [line] = lines
    assert str(PID) in line


def test_who_takes_over_has_the_file_as_soon_as_it_is_given_up(tmp_path: Path, net: Steady, lines: Lines) -> None:
    config = str(tmp_path / "n.toml")
    [name] = control_names(config)
    old, new = two(net, config)
    net.advance(REPORT / 2)
    assert b"old" in ask(net, name, b"now\n")
    old.give_up_config()
    # Sooner than a shell starts the next command.
    net.clock.advance(0.05)
    assert b"new" in ask(net, name, b"now\n")
    # It can still be asked how its drain goes.
    assert b"old" in ask(net, pid_name(PID), b"now\n")
    close(net, old)
    close(net, new)
    assert lines == []


def test_who_keeps_a_file_is_told_once_and_waited_for(tmp_path: Path, net: Steady, lines: Lines) -> None:
    config = str(tmp_path / "n.toml")
    [name] = control_names(config)
    old, new = two(net, config)
    net.advance(3 * REPORT)
    [line] = lines
    assert config in line
    assert line.endswith(f"--pid {PID + 1}")
    close(net, old)
    net.clock.advance(SELDOM)
    assert b"new" in ask(net, name, b"now\n")
    close(net, new)


def test_all_names_of_a_file_are_taken_or_none(tmp_path: Path, net: Steady) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    link, real = control_names(f"{tmp_path}/link/n.toml")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(real)
        control = Control(net.reactor, f"{tmp_path}/link/n.toml", answers("done"), PID)
        control.listen()
        assert is_nobody(link)
    close(net, control)


def test_what_was_answered_is_taken_before_it_ends(net: Steady) -> None:
    later: Deferred[Answer] = Deferred()
    control = Control(net.reactor, None, {"drain": lambda words: later}, PID)
    control.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(pid_name(PID))
        client.send(b"drain\n")
        net.turn(3)
        later.callback(Answer(0, ["all ended"]))
        close(net, control)
        assert client.recv(100) == b'{"out": "all ended"}\n{"status": 0}\n'


def test_who_does_not_take_an_answer_holds_up_no_end(net: Steady) -> None:
    control = Control(net.reactor, None, {"much": lambda words: Answer(0, ["x" * 900_000])}, PID)
    control.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(pid_name(PID))
        client.send(b"much\n")
        net.turn(3)
        closed: list[None] = []
        control.close().addCallback(closed.append)
        net.turn(3)
        assert closed == []
        net.clock.advance(LINGER)
        assert closed == [None]
        net.turn(3)


class TestInADirectory:
    """The sockets are files where there is a directory of our own."""

    def run(self, net: Steady, directory: Path, word: str = "done", pid: int = PID) -> Control:
        control = Control(net.reactor, "/etc/n.toml", answers(word), pid, [str(directory)])
        control.listen()
        return control

    def test_it_answers_by_file_and_by_pid_and_leaves_nothing(self, tmp_path: Path, net: Steady, lines: Lines) -> None:
        place = tmp_path / "config-x"
        control = self.run(net, place)
        for name in (CONFIG_SOCKET, pid_key(PID)):
            assert b"done" in ask(net, str(place / name), b"now\n")
            assert (place / name).stat().st_mode & 0o777 == 0o600
        assert place.stat().st_mode & 0o777 == 0o700
        assert is_nobody(pid_name(PID))
        assert is_nobody(control_names("/etc/n.toml")[0])
        close(net, control)
        assert list(tmp_path.iterdir()) == []
        assert lines == []

    def test_what_a_killed_process_left_is_replaced(self, tmp_path: Path, net: Steady) -> None:
        place = tmp_path / "config-x"
        place.mkdir()
        elsewhere = "pid-1-1"
        for name in (CONFIG_SOCKET, pid_key(PID), pid_key(PID + 1), elsewhere):
            with socket.socket(socket.AF_UNIX) as killed:
                killed.bind(str(place / name))
        control = self.run(net, place)
        assert b"done" in ask(net, str(place / CONFIG_SOCKET), b"now\n")
        # Of a process of another container nothing is known.
        assert {each.name for each in place.iterdir()} == {CONFIG_SOCKET, pid_key(PID), elsewhere}
        close(net, control)

    def test_who_takes_over_has_the_file_as_soon_as_it_is_given_up(
        self, tmp_path: Path, net: Steady, lines: Lines
    ) -> None:
        old, new = self.run(net, tmp_path, "old"), self.run(net, tmp_path, "new", os.getpid())
        net.advance(REPORT / 2)
        assert b"old" in ask(net, str(tmp_path / CONFIG_SOCKET), b"now\n")
        old.give_up_config()
        net.clock.advance(RETRY)
        assert b"new" in ask(net, str(tmp_path / CONFIG_SOCKET), b"now\n")
        close(net, old)
        assert b"new" in ask(net, str(tmp_path / CONFIG_SOCKET), b"now\n")
        close(net, new)
        assert lines == []

    def test_who_keeps_a_file_is_told_with_its_pid(self, tmp_path: Path, net: Steady, lines: Lines) -> None:
        old, new = self.run(net, tmp_path, "old"), self.run(net, tmp_path, "new", PID + 1)
        net.advance(2 * REPORT)
        [line] = lines
        assert f"process {os.getpid()} of user {os.geteuid()}" in line
        assert f"--pid {PID + 1}" in line
        close(net, old)
        close(net, new)

    def test_where_the_directory_cannot_be_used_there_is_the_abstract_name(
        self, tmp_path: Path, net: Steady, lines: Lines
    ) -> None:
        (tmp_path / "file").touch()
        control = self.run(net, tmp_path / "file")
        assert b"done" in ask(net, pid_name(PID), b"now\n")
        assert b"done" in ask(net, control_names("/etc/n.toml")[0], b"now\n")
        close(net, control)
        assert lines == []

    def test_that_there_is_no_socket_is_told_with_the_reasons(self, tmp_path: Path, net: Steady, lines: Lines) -> None:
        (tmp_path / "file").touch()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(pid_name(PID))
            other.listen()
            control = self.run(net, tmp_path / "file")
        [line] = lines
        assert f"process {PID}" in line
        assert "not a directory" in line
        assert f"process {os.getpid()} of user {os.geteuid()}" in line
        close(net, control)


class TestForwarded:
    """A process that was replaced passes commands on."""

    def passed_on(self, net: Steady, pid: int, *request: str, directories: Sequence[str] = ()) -> Answer:
        answers: list[Answer] = []
        forward(net.reactor, pid, directories, request).addCallback(answers.append)
        for _ in range(1000):
            net.turn()
            # Twisted connects in the next turn.
            net.clock.advance(0)
            if answers:
                break
        # The time to connect has not passed.
        net.clock.advance(10)
        [answer] = answers
        return answer

    def test_to_its_file_or_its_abstract_name(self, tmp_path: Path, net: Steady) -> None:
        said: list[Sequence[str]] = []

        def now(words: Sequence[str]) -> Answer:
            said.append(words)
            return Answer(3, ["one", "two"])

        control = Control(net.reactor, None, {"now": now}, os.getpid(), [str(tmp_path / "x")])
        control.listen()
        directories = [str(tmp_path / "x"), str(tmp_path / "y")]
        assert self.passed_on(net, os.getpid(), "now", "a", "b", directories=directories) == Answer(3, ["one", "two"])
        assert said == [["a", "b"]]
        close(net, control)
        control = Control(net.reactor, None, answers("abstract"), os.getpid())
        control.listen()
        for each in ((), directories):
            assert self.passed_on(net, os.getpid(), "now", directories=each) == Answer(0, ["abstract"])
        close(net, control)

    def test_to_no_other_process(self, net: Steady) -> None:
        control = Control(net.reactor, None, answers("other"), PID)
        control.listen()
        answer = self.passed_on(net, PID, "now")
        assert answer.status == 1
        assert f"process {PID}" in answer.lines[0]
        close(net, control)

    def test_without_an_answer_is_an_error(self, net: Steady) -> None:
        assert self.passed_on(net, os.getpid(), "now").status == 1
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(pid_name(os.getpid()))
            listening.listen()
            answers: list[Answer] = []
            forward(net.reactor, os.getpid(), (), ["now"]).addCallback(answers.append)
            net.clock.advance(0)
            net.turn(3)
            with listening.accept()[0] as connection:
                connection.sendall(b"x" * 100)
            net.turn(3)
            net.clock.advance(10)
            assert [answer.status for answer in answers] == [1]

    def test_an_answer_without_end_is_cut_off(self, net: Steady, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("netsvc.control.forward.LONGEST_ANSWER", 1000)
        control = Control(net.reactor, None, answers("x" * 2000), os.getpid())
        control.listen()
        assert self.passed_on(net, os.getpid(), "now").status == 1
        close(net, control)
