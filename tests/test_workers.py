"""The process that holds the ports starts its workers, counts them, and ends them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage

from netsvc.address import parse_address
from netsvc.errors import MistakeError, StartError
from netsvc.interfaces import Context, INetworkService
from netsvc.plan import Listener, Plan, ServiceUse
from netsvc.service import Service
from netsvc.workers.briefing import FIRST_SOCKET, ORDERS, REPORTS
from netsvc.workers.spawning import reactor_module
from netsvc.workers.workers import KILL_GRACE, Workers
from tests.children import FakeProcess, FakeReactor
from tests.logs import Lines, collected


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def service(check: Callable[[], None] = lambda: None) -> INetworkService:
    class Core:
        def __init__(self, options: usage.Options, context: Context) -> None:
            """Know nothing."""

        def check(self) -> None:
            check()

    return Service("one", "A test", core=Core, streams={"tcp": Protocol}, datagrams={"udp": DatagramProtocol})


class World:
    """Workers on a reactor whose processes are objects."""

    def __init__(self, *addresses: str, workers: int = 2, made: INetworkService | None = None, **kwargs: Any) -> None:
        self.reactor = FakeReactor()
        self.deaths: list[str] = []
        listeners = [
            Listener("one", "tcp", parse_address(address, "stream")) for address in addresses or ["127.0.0.1:0"]
        ]
        plan = Plan({"one": ServiceUse("one", {})}, tuple(listeners), 4, workers)
        self.workers = Workers(
            plan, lambda use: made or service(), self.reactor, ["a warning"], self.deaths.append, **kwargs
        )
        self.stopped: list[object] = []

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def start(self, *, ready: bool = True) -> World:
        self.workers.privilegedStartService()
        self.workers.startService()
        self.reactor.run()
        for process in self.processes if ready else ():
            process.say("ready")
        return self

    def stop(self) -> None:
        self.workers.stopService().addCallback(self.stopped.append)

    def end(self) -> None:
        """Stop, and let every process end."""
        self.stop()
        for process in self.processes:
            if not process.gone:
                process.end()
        assert self.stopped == [None]
        assert self.reactor.getDelayedCalls() == []


def test_every_worker_gets_the_plan_and_sockets_of_its_own(tmp_path: Path, lines: Lines) -> None:
    world = World("127.0.0.1:0", f"unix:{tmp_path}/sock", "tcp:0", workers=3).start(ready=False)
    first = world.processes[0]
    assert first.descriptors.keys() == {0, 1, 2, ORDERS, REPORTS, 5, 6, 7}
    assert (first.descriptors[1], first.descriptors[ORDERS], first.descriptors[REPORTS]) == ("r", "w", "r")
    for number, own in ((5, 3), (6, 1), (7, 3)):
        assert len({process.descriptors[number] for process in world.processes}) == own
    briefing = first.briefing
    assert briefing.descriptors == ((FIRST_SOCKET,), (6,), (7,))
    assert [each.address.text for each in briefing.plan.listeners] == [
        "127.0.0.1:0",
        f"unix:{tmp_path}/sock",
        "tcp:0",
    ]
    assert briefing.key_files == ({}, {}, {})
    assert briefing.search_path == tuple(sys.path)
    assert briefing.python_path == os.environ.get("PYTHONPATH")
    program, arguments, environment = world.reactor.spawned[0]
    assert (program, arguments) == (sys.executable, [sys.executable, "-P", "-m", "netsvc.worker"])
    assert environment["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]
    world.end()
    assert list(tmp_path.iterdir()) == []


def test_what_listens_where_is_said_once_and_ready_when_all_are(lines: Lines) -> None:
    world = World("127.0.0.1:0")
    world.start(ready=False)
    number = world.workers._held[0].listening.place()
    assert lines == ["a warning", f"one tcp listens on {number}"]
    world.processes[1].say("ready")
    assert "ready" not in lines
    world.processes[0].say("ready")
    assert lines[-1] == "ready"
    # Those that replace them are not counted.
    world.processes[0].end(signal=9)
    world.reactor.advance(1)
    world.processes[2].say("ready")
    assert lines.count("ready") == 1
    world.end()


def test_without_a_privileged_start_it_binds_on_starting() -> None:
    world = World()
    world.workers.startService()
    assert len(world.workers._held) == 1
    world.end()


def test_without_a_reactor_given_it_takes_the_installed_one() -> None:
    from twisted.internet import reactor

    workers = Workers(Plan({}, (), workers=2), lambda use: service())
    workers.privilegedStartService()
    assert workers._reactor is reactor


def test_every_mistake_is_told_before_a_worker_is_started(tmp_path: Path) -> None:
    def check() -> None:
        raise MistakeError(["the check fails"])

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        world = World(f"unix:{tmp_path}/sock", address, made=service(check))
        with pytest.raises(StartError) as raised:
            world.start()
    assert [line.partition(" is in use")[0] for line in str(raised.value).splitlines()] == [
        "netsvc: the check fails",
        f"netsvc: one tcp cannot listen on {address}: port {taken_port(address)}",
    ]
    assert world.processes == []
    assert list(tmp_path.iterdir()) == []


def taken_port(address: str) -> str:
    return address.rpartition(":")[2]


def test_a_protocol_that_cannot_be_built_is_a_mistake() -> None:
    world = World(made=Service("one", "A test", streams={"tcp": 7}))
    with pytest.raises(StartError, match="netsvc: one tcp cannot be built: TypeError: 7 is neither"):
        world.start()


def test_a_python_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    world = World(f"unix:{tmp_path}/sock", python="/no/such/python")
    with pytest.raises(StartError, match=r"^netsvc: --workers: user \d+ may not run /no/such/python, or it is"):
        world.start()
    assert list(tmp_path.iterdir()) == []


def test_the_first_worker_that_cannot_start_ends_the_start_and_the_others(lines: Lines) -> None:
    world = World(workers=3).start(ready=False)
    world.processes[0].say("ready")
    world.processes[1].say("failed", "no")
    world.processes[2].say("failed", "no")
    assert world.deaths == ["worker 2 cannot start: no"]
    world.stop()
    assert [process.signals for process in world.processes] == [["TERM"]] * 3
    assert [process.orders for process in world.processes] == [b"force\n"] * 3
    for process in world.processes:
        process.end(1)
    assert world.deaths == ["worker 2 cannot start: no"]
    assert world.stopped == [None]


def test_a_system_that_starts_no_process_ends_the_start() -> None:
    world = World(workers=3)
    world.reactor.fault = OSError(11, "Resource temporarily unavailable")
    world.start()
    assert world.deaths == ["worker 1 could not be started (Resource temporarily unavailable), and was never ready"]
    world.end()


def test_stopping_closes_the_ports_first_and_waits_for_every_worker(lines: Lines) -> None:
    world = World().start()
    place = world.workers._held[0].listening.place()
    world.stop()
    assert [process.signals for process in world.processes] == [["TERM"], ["TERM"]]
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", int(taken_port(place))))
    world.processes[1].end()
    assert world.stopped == []
    world.processes[0].end()
    assert world.stopped == [None]
    assert lines[-1] == "stopped: 2 workers ended"
    assert world.reactor.getDelayedCalls() == []


def test_a_worker_that_does_not_end_is_killed(lines: Lines) -> None:
    world = World().start()
    world.stop()
    world.processes[0].end()
    world.reactor.advance(4 + 0.5 + 0.1 + KILL_GRACE - 0.01)
    assert world.processes[1].signals == ["TERM"]
    world.reactor.advance(0.02)
    assert world.processes[1].signals == ["TERM", "KILL"]
    assert world.processes[0].signals == ["TERM"]
    world.processes[1].end(signal=9)
    assert world.stopped == [None]
    assert lines[-1] == "stopped: 2 workers ended, 1 of them killed"


def test_forcing_cuts_the_drain_short_and_kills_soon() -> None:
    world = World().start()
    world.workers.force()
    assert [process.orders for process in world.processes] == [b"", b""]
    world.stop()
    world.processes[0].end()
    world.workers.force()
    assert [process.orders for process in world.processes] == [b"", b"force\n"]
    world.reactor.advance(1)
    assert world.processes[1].signals == ["TERM", "KILL"]
    world.workers.force()
    world.processes[1].end(signal=9)
    assert world.stopped == [None]


def test_a_worker_that_is_not_there_is_not_waited_for() -> None:
    world = World().start()
    world.processes[0].end(signal=9)
    world.stop()
    world.processes[1].end()
    assert world.stopped == [None]


def test_a_stop_before_the_workers_are_started_starts_none() -> None:
    world = World()
    world.workers.privilegedStartService()
    world.workers.startService()
    world.stop()
    assert world.stopped == [None]
    world.reactor.run()
    assert world.processes == []


def test_a_failure_while_it_stops_is_none() -> None:
    world = World().start(ready=False)
    world.stop()
    world.processes[0].say("failed", "no")
    world.processes[0].say("ready")
    world.processes[1].say("ready")
    for process in world.processes:
        process.end()
    assert world.stopped == [None]
    assert world.deaths == []


def test_signals_are_taken_over_before_a_worker_is_started() -> None:
    reactor = MemoryReactorClock()
    workers = Workers(Plan({}, (), workers=2), lambda use: service(), reactor)
    workers.privilegedStartService()
    workers.startService()
    (first, _, _), (second, _, _) = reactor.whenRunningHooks
    assert first.__name__ == "take_over_signals"
    assert second == workers._start


def test_the_reactor_is_the_fast_one_or_the_one_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = MemoryReactorClock()
    assert reactor_module(reactor, chosen=True) == "twisted.internet.testing"
    assert reactor_module(reactor, chosen=False) == "netsvc.reactor"
    # As on a system without epoll.
    monkeypatch.setitem(sys.modules, "netsvc.reactor", None)
    assert reactor_module(reactor, chosen=False) == "twisted.internet.testing"


def test_keys_are_read_before_privileges_are_dropped(tmp_path: Path) -> None:
    from tests.certificates import write_certificate

    key, certificate = write_certificate(tmp_path, "localhost")
    world = World(f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
    world.workers.privilegedStartService()
    key.unlink()
    world.workers.startService()
    world.reactor.run()
    assert "PRIVATE KEY" in world.processes[0].briefing.key_files[0]["privateKey"]
    world.end()
