"""The application starts and stops its parts in one order, and leaves nothing open when a start fails."""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.app.application import Application
from netsvc.app.state import STATE_FILE
from netsvc.base.errors import StartError
from netsvc.base.signals import process_signals
from netsvc.plan.address import parse_address
from netsvc.plan.plan import AdminUse, Plan
from netsvc.server.pidfile import PidFile
from tests.builders.fake_server import FakeServer
from tests.builders.logs import Lines, collected
from tests.builders.turned import Net

lines = pytest.fixture(collected)


@pytest.fixture
def net() -> Any:
    made = Net()
    made.reactor.callWhenRunning = lambda *call: None
    yield made
    made.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def administered(port: int, **more: Any) -> Plan:
    return replace(Plan({}, (), **more), admin=AdminUse(parse_address(f"127.0.0.1:{port}", "stream"), None))


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def make(net: Net, server: FakeServer, **more: Any) -> Application:
    read: Any = lambda: (server.plan, None)  # noqa: E731
    return Application(server, net.reactor, read, **more)


def test_it_is_ready_in_its_state_file_before_the_log_says_so(net: Net, tmp_path: Path, lines: Lines) -> None:
    server = FakeServer(Plan({}, (), state=str(tmp_path)))
    application = make(net, server)
    application.startService()
    assert server.calls == ["open", "start"]
    assert not (tmp_path / STATE_FILE).exists()
    server.became_ready()
    assert lines == ["ready"]
    states = []
    server.stopping = Deferred()
    stopping = application.stopService()
    states.append(json.loads((tmp_path / STATE_FILE).read_text())["state"])
    server.stopping.callback(None)
    states.append(json.loads((tmp_path / STATE_FILE).read_text())["state"])
    net.until(lambda: stopping.called)
    assert states == ["draining", "stopped"]


def test_signals_wait_until_it_is_ready(net: Net, lines: Lines) -> None:
    process_signals.take_over()
    server = FakeServer(Plan({}, ()))
    application = make(net, server)
    net.reactor.callFromThread = lambda call: call()
    application.startService()
    for number in (signal.SIGHUP, signal.SIGUSR2):
        signal.raise_signal(number)
    assert server.calls == ["open", "start"] and lines == []
    server.became_ready()
    assert server.calls == ["open", "start", ("reload", server.plan)]
    assert lines[-2:] == ["reloaded: done", "ready"]
    # It was not started in a way that can be repeated.
    signal.raise_signal(signal.SIGUSR2)
    assert not application.upgrader.has_successor
    application.stopService()


@pytest.mark.parametrize("step", ["privilegedStartService", "startService"])
def test_a_start_that_fails_leaves_neither_the_admin_address_nor_the_pid_file(
    net: Net, tmp_path: Path, step: str
) -> None:
    port, pid_file = free_port(), tmp_path / "pid"
    server = FakeServer(administered(port))

    def fail() -> None:
        assert is_open(port)
        assert pid_file.exists()
        raise StartError("no")

    setattr(server, step, fail)
    with pytest.raises(StartError):
        make(net, server, pid_file=PidFile(str(pid_file))).startService()
    net.turn(3)
    assert not is_open(port)
    assert not pid_file.exists()


def test_a_state_directory_that_cannot_be_made_stops_the_start_before_a_port_is_opened(
    net: Net, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    port = free_port()
    server = FakeServer(administered(port, state=str(tmp_path / "file")))
    with pytest.raises(StartError, match=f"--state {tmp_path}/file: "):
        make(net, server).startService()
    net.turn(3)
    assert server.calls == []
    assert not is_open(port)


def test_the_admin_address_answers_until_the_server_has_stopped(net: Net) -> None:
    port = free_port()
    server = FakeServer(administered(port))
    application = make(net, server)
    application.startService()
    server.stopping = Deferred()
    stopping = application.stopService()
    assert is_open(port)
    net.turn(3)
    server.stopping.callback(None)
    net.until(lambda: stopping.called)
    assert not is_open(port)
