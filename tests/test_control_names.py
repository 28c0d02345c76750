"""Where commands are answered: at the name of the process, and at those of its file as long as nobody else does."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from netsvc.host.control import FAREWELL, RETRY, SELDOM, TELL, Answer, Control, control_names, pid_name
from tests.logs import Lines, collected
from tests.looks import unused_pids
from tests.turned import Net

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
    assert lines == []


def test_who_takes_over_has_the_file_as_soon_as_it_is_given_up(tmp_path: Path, net: Steady, lines: Lines) -> None:
    config = str(tmp_path / "n.toml")
    [name] = control_names(config)
    old, new = two(net, config)
    net.advance(TELL / 2)
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
    net.advance(3 * TELL)
    assert lines == [
        f"another process runs with {config}, and takes the commands for it; "
        f"stop that one, or name this one by --pid {PID + 1}"
    ]
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
        net.clock.advance(FAREWELL)
        assert closed == [None]
        net.turn(3)
