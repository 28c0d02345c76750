"""What systemd hears: when it is ready, reloads and stops, and that its loop runs."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from netsvc.app.application import Application
from netsvc.app.reload import Reload
from netsvc.base.errors import UserError
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan, ServiceUse
from netsvc.server.notify import LONGEST_STATUS, RETRY_INTERVAL, STATUS_INTERVAL, Notifier, take_environment
from tests.builders.fake_server import FakeServer
from tests.builders.hosts import ServerInMemory
from tests.builders.workers import FakeWorkers


class Manager:
    """The other end: a datagram socket that somebody reads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name}

    def fill(self) -> None:
        """Let others send so much that there is no room. What one of them may send has a limit of its own."""
        for _ in range(8):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
                other.setblocking(False)
                other.connect(self.name)
                while True:
                    other.send(b"x")

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_it_says_that_it_is_ready_and_then_that_it_stops(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    notifier.ready()
    notifier.stopping(14.5)
    notifier.stopping(1)
    assert manager.heard() == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=14500000"]
    notifier.close()
    notifier.close()
    notifier.ready()
    assert manager.heard() == []


def test_a_name_of_the_abstract_namespace_begins_with_an_at(tmp_path: Path) -> None:
    manager = Manager(f"@netsvc-test-{tmp_path}")
    notifier = Notifier(manager.environment)
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.close()
    manager.socket.close()


def test_a_reload_has_an_end_and_the_time_of_its_begin(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    notifier.ready()
    notifier.reloading()
    notifier.reloaded()
    ready, reloading, again = manager.heard()
    assert (ready, again) == ("READY=1", "READY=1")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
    notifier.close()


def test_what_is_not_ready_yet_or_stops_does_not_become_ready_by_a_reload(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    notifier.reloading()
    notifier.reloaded()
    assert manager.heard() == []
    notifier.ready()
    notifier.stopping(1)
    manager.heard()
    notifier.reloading()
    notifier.reloaded()
    assert manager.heard() == []
    notifier.close()


def test_the_watchdog_is_fed_twice_as_often_as_it_asks(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier({**manager.environment, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, pid=7)
    notifier.start(clock)
    notifier.start(clock)
    assert manager.heard() == ["WATCHDOG=1"]
    clock.pump([1, 1, 1])
    assert manager.heard() == ["WATCHDOG=1"] * 3
    notifier.close()
    assert clock.getDelayedCalls() == []


def test_a_watchdog_in_a_hurry_gets_no_more_than_twenty_messages_a_second(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier({**manager.environment, "WATCHDOG_USEC": "1"})
    notifier.start(clock)
    manager.heard()
    clock.pump([0.01] * 101)
    assert len(manager.heard()) <= 20
    notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "8"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "often"},
        {"WATCHDOG_USEC": "9" * 16},
    ],
)
def test_no_watchdog_is_fed_that_is_not_there_or_wants_another_process(
    manager: Manager, environment: dict[str, str]
) -> None:
    clock = Clock()
    notifier = Notifier({**manager.environment, **environment}, pid=7)
    notifier.start(clock)
    assert clock.getDelayedCalls() == []
    assert manager.heard() == []
    notifier.close()


def test_what_goes_on_is_told_when_it_is_ready_and_something_else_goes_on(manager: Manager) -> None:
    clock, now = Clock(), "1 connection"
    notifier = Notifier(manager.environment)
    notifier.start(clock, lambda: now)
    assert manager.heard() == []
    notifier.ready()
    clock.advance(STATUS_INTERVAL)
    clock.advance(STATUS_INTERVAL)
    now = "\x1b2\nREADY=0" + "x" * LONGEST_STATUS
    clock.advance(STATUS_INTERVAL)
    first, second, third = manager.heard()
    assert [first, second] == ["READY=1", "STATUS=1 connection"]
    assert third.startswith("STATUS=\\x1b2\\x0aREADY=0x")
    assert len(third) == LONGEST_STATUS + len("STATUS=")
    notifier.close()


def test_what_finds_no_room_is_sent_later_and_only_the_last_of_each(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier({**manager.environment, "WATCHDOG_USEC": "60000000"})
    notifier.start(clock)
    manager.fill()
    notifier.ready()
    notifier.status("one")
    notifier.status("two")
    clock.advance(30)
    assert set(manager.heard()[1:]) == {"x"}
    clock.advance(RETRY_INTERVAL)
    assert manager.heard() == ["READY=1\nSTATUS=two"]
    manager.fill()
    notifier.status("three")
    manager.heard()
    notifier.status("four")
    clock.advance(RETRY_INTERVAL)
    assert manager.heard() == ["STATUS=four"]
    notifier.close()


def test_what_finds_no_room_is_lost_before_there_is_a_clock(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    manager.fill()
    notifier.ready()
    manager.heard()
    # With the next.
    notifier.status("one")
    assert manager.heard() == ["READY=1\nSTATUS=one"]
    notifier.close()


@pytest.mark.parametrize(
    "address", ["", "@", "/", "relative", "vsock:2:1234", "/no/such/socket", "/" + "x" * 200, "/\0"]
)
def test_a_socket_that_is_not_there_does_no_harm(address: str) -> None:
    clock = Clock()
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    notifier.start(clock, lambda: "nothing")
    notifier.ready()
    notifier.stopping(1)
    assert clock.getDelayedCalls() == []


def test_one_that_goes_away_does_no_harm(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier({**manager.environment, "WATCHDOG_USEC": "2000000"})
    notifier.start(clock, lambda: "nothing")
    manager.socket.close()
    clock.advance(1)
    notifier.ready()
    notifier.ready()
    assert clock.getDelayedCalls() == []


def test_one_that_goes_away_while_a_look_is_taken_is_not_looked_for_again(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier(manager.environment)
    notifier.start(clock, lambda: "nothing")
    notifier.ready()
    manager.socket.close()
    clock.advance(STATUS_INTERVAL)
    assert clock.getDelayedCalls() == []


def test_the_environment_of_children_says_nothing_of_it() -> None:
    environ = {"PATH": "/bin", "NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2"}
    environ |= {"LISTEN_PID": "2", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "echo"}
    taken = take_environment(environ)
    assert environ == {"PATH": "/bin"}
    # Whoever takes over feeds the watchdog, whatever its pid is.
    assert Notifier(taken).environment() == {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1"}
    assert take_environment(environ) == {}


def test_a_successor_is_named_and_all_that_follows_is_about_that_one(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    notifier.ready()
    notifier.main_pid(42)
    notifier.stopping(1)
    assert manager.heard() == ["READY=1", "MAINPID=42"]


def test_a_reload_is_told_however_it_ends(manager: Manager) -> None:
    def unreadable() -> tuple[Plan, Any]:
        raise UserError(["it has a mistake"])

    def readable() -> tuple[Plan, Any]:
        return Plan({}, ()), None

    notifier = Notifier(manager.environment)
    notifier.ready()
    for read, status in ((unreadable, 1), (readable, 0)):
        reload = Reload(Clock(), read, lambda plan, load: succeed("nothing has changed"), notifier)
        answers: list[Answer] = []
        reload.answer().addCallback(answers.append)
        assert [answer.status for answer in answers] == [status]
    assert [message.partition("\n")[0] for message in manager.heard()] == ["READY=1", *["RELOADING=1", "READY=1"] * 2]
    notifier.close()


def test_an_application_tells_of_its_start_and_its_end(manager: Manager) -> None:
    reactor: Any = MemoryReactorClock()
    server = FakeServer(Plan({"one": ServiceUse("one", drain=7.0)}, (), drain=2.0))
    notifier = Notifier({**manager.environment, "WATCHDOG_USEC": "2000000"})
    root = Application(server, reactor, lambda: (server.plan, None), notifier=notifier)  # type: ignore[arg-type, return-value]
    root.startService()
    server.became_ready()
    root.stopService()
    assert manager.heard() == ["WATCHDOG=1", "READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=17000000"]
    assert reactor.getDelayedCalls() == []


def test_one_process_says_how_many_connections_there_are() -> None:
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"))
    world.start()
    assert world.host.activity() == "0 connections"
    world.host.stopService()
    assert world.host.activity() == "draining: 0 connections"


def test_several_processes_are_counted() -> None:
    world = FakeWorkers().start()
    assert world.workers.activity() == "2 workers"
    world.processes[0].end()
    world.stop()
    assert world.workers.activity() == "draining: 1 worker"
    world.processes[1].end()
    assert world.stopped == [None]
