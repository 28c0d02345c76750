"""The process that holds the ports starts its workers, counts them, and ends them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from netsvc.base.errors import StartError, UserError
from netsvc.plan.plan import Plan
from netsvc.service import Service
from netsvc.workers.channel import COVER, FIRST_SOCKET, ORDERS, REPORTS
from netsvc.workers.workers import KILL_GRACE, Workers, reactor_module
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.workers import FakeWorkers, service


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_every_worker_gets_the_plan_and_sockets_of_its_own(tmp_path: Path, lines: Lines) -> None:
    world = FakeWorkers("127.0.0.1:0", f"unix:{tmp_path}/sock", "tcp:0", workers=3).start(ready=False)
    first = world.processes[0]
    assert first.descriptors.keys() == {0, 1, 2, ORDERS, REPORTS, COVER, *range(FIRST_SOCKET, FIRST_SOCKET + 3)}
    assert (first.descriptors[1], first.descriptors[ORDERS], first.descriptors[REPORTS]) == ("r", "w", "r")
    for number, own in enumerate((3, 1, 3), FIRST_SOCKET):
        assert len({process.descriptors[number] for process in world.processes}) == own
    handoff = first.handoff
    start = handoff.worker
    assert start is not None
    assert [port.sockets for port in handoff.ports] == [[FIRST_SOCKET], [FIRST_SOCKET + 1], [FIRST_SOCKET + 2]]
    assert [each.address.text for each in start.plan.listeners] == [
        "127.0.0.1:0",
        f"unix:{tmp_path}/sock",
        "tcp:0",
    ]
    assert [port.key_files for port in handoff.ports] == [{}, {}, {}]
    assert start.search_path == sys.path
    assert start.python_path == os.environ.get("PYTHONPATH")
    program, arguments, environment = world.reactor.spawned[0]
    assert (program, arguments) == (sys.executable, [sys.executable, "-P", "-m", "netsvc.workers.worker"])
    assert environment["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]
    world.end()
    assert list(tmp_path.iterdir()) == []


def test_what_listens_where_is_said_once_and_ready_when_all_are(lines: Lines) -> None:
    world = FakeWorkers("127.0.0.1:0")
    world.start(ready=False)
    number = world.workers.generation.groups[0].opened.place()
    assert lines[0] == "a warning" and states(lines[1], "one tcp", number) and len(lines) == 2
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


def test_every_mistake_is_told_before_a_worker_is_started(tmp_path: Path) -> None:
    def check() -> None:
        raise UserError(["the check fails"])

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        world = FakeWorkers(f"unix:{tmp_path}/sock", address, made=service(check))
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
    world = FakeWorkers(made=Service("one", "A test", streams={"tcp": 7}))
    with pytest.raises(StartError, match=r"^netsvc: one tcp .*: TypeError: .*\bint\b"):
        world.start()


def test_a_python_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    world = FakeWorkers(f"unix:{tmp_path}/sock", python="/no/such/python")
    with pytest.raises(StartError, match=r"^netsvc: --workers: user \d+ may not run /no/such/python, or it is"):
        world.start()
    assert list(tmp_path.iterdir()) == []


def test_the_first_worker_that_cannot_start_ends_the_start_and_the_others(lines: Lines) -> None:
    world = FakeWorkers(workers=3).start(ready=False)
    world.processes[0].say("ready")
    world.processes[1].say("failed", "no")
    world.processes[2].say("failed", "no")
    assert len(world.deaths) == 1 and states(world.deaths[0], "worker 2", ": no")
    world.stop()
    assert all(process.is_told_to_stop and b"force" in process.orders.splitlines() for process in world.processes)
    for process in world.processes:
        process.end(1)
    assert len(world.deaths) == 1 and states(world.deaths[0], "worker 2", ": no")
    assert world.stopped == [None]


def test_a_system_that_starts_no_process_ends_the_start() -> None:
    world = FakeWorkers(workers=3)
    world.reactor.fault = OSError(11, "Resource temporarily unavailable")
    world.start()
    [death] = world.deaths
    assert states(death, "worker 1", "Resource temporarily unavailable", "never ready")
    world.end()


def test_stopping_closes_the_ports_first_and_waits_for_every_worker(lines: Lines) -> None:
    world = FakeWorkers().start()
    place = world.workers.generation.groups[0].opened.place()
    world.stop()
    assert all(process.is_told_to_stop for process in world.processes)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", int(taken_port(place))))
    world.processes[1].end()
    assert world.stopped == []
    world.processes[0].end()
    assert world.stopped == [None]
    assert lines[-1] == "stopped: 2 workers ended"
    assert world.reactor.getDelayedCalls() == []


def test_a_worker_that_does_not_end_is_killed(lines: Lines) -> None:
    world = FakeWorkers().start()
    world.stop()
    world.processes[0].end()
    world.reactor.advance(4 + 0.5 + 0.1 + KILL_GRACE - 0.01)
    assert not world.processes[1].is_killed
    world.reactor.advance(0.02)
    assert world.processes[1].is_killed
    assert not world.processes[0].is_killed
    world.processes[1].end(signal=9)
    assert world.stopped == [None]
    assert states(lines[-1], "stopped", "2 workers", "1 ", "killed")


def test_forcing_cuts_the_drain_short_and_kills_soon() -> None:
    world = FakeWorkers().start()
    world.workers.force()
    assert [process.orders for process in world.processes] == [b"", b""]
    world.stop()
    world.processes[0].end()
    world.workers.force()
    assert [b"force" in process.orders.splitlines() for process in world.processes] == [False, True]
    world.reactor.advance(1)
    assert world.processes[1].is_killed
    world.workers.force()
    world.processes[1].end(signal=9)
    assert world.stopped == [None]


def test_a_worker_that_is_not_there_is_not_waited_for() -> None:
    world = FakeWorkers().start()
    world.processes[0].end(signal=9)
    world.stop()
    world.processes[1].end()
    assert world.stopped == [None]


def test_a_stop_before_the_workers_are_started_starts_none() -> None:
    world = FakeWorkers()
    world.workers.privilegedStartService()
    world.workers.startService()
    world.stop()
    assert world.stopped == [None]
    world.reactor.run()
    assert world.processes == []


def test_a_failure_while_it_stops_is_none() -> None:
    world = FakeWorkers().start(ready=False)
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
    assert reactor_module(reactor, chosen=False) == "netsvc.reactor.epoll"
    # As on a system without epoll.
    monkeypatch.setitem(sys.modules, "netsvc.reactor.epoll", None)
    assert reactor_module(reactor, chosen=False) == "twisted.internet.testing"


def test_keys_are_read_before_privileges_are_dropped(tmp_path: Path) -> None:
    from tests.builders.certificates import write_certificate

    key, certificate = write_certificate(tmp_path, "localhost")
    world = FakeWorkers(f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
    world.workers.privilegedStartService()
    key.unlink()
    world.workers.startService()
    world.reactor.run()
    assert "PRIVATE KEY" in world.processes[0].key_files[0]["privateKey"]
    world.end()


def test_the_sockets_of_a_worker_that_died_are_covered_until_the_next_is_ready(tmp_path: Path) -> None:
    # The workers share the UNIX socket.
    world = FakeWorkers("127.0.0.1:0", f"unix:{tmp_path}/sock", "127.0.0.1:0", workers=3)
    world.start(ready=False)
    first, second, third = world.processes
    for process in world.processes:
        process.say("ready")
        assert process.link.covered == {}
    second.end(signal=9)
    assert (first.link.covered, third.link.covered) == ({1: [0, 2]}, {1: [0, 2]})
    assert second.link.closed
    third.end(signal=9)
    assert first.link.covered == {1: [0, 2], 2: [0, 2]}
    world.reactor.advance(1)
    _, _, _, again, last = world.processes
    assert again.link.covered == {}
    again.say("ready")
    assert (first.link.covered, again.link.covered) == ({2: [0, 2]}, {2: [0, 2]})
    last.say("ready")
    assert [process.link.covered for process in (first, again, last)] == [{}] * 3
    world.end()


def test_nothing_is_covered_while_the_workers_start_or_stop() -> None:
    world = FakeWorkers(workers=2).start(ready=False)
    first, second = world.processes
    first.say("ready")
    assert first.link.covered == {}
    second.say("ready")
    world.stop()
    second.end(signal=9)
    assert first.link.covered == {}
    first.end()
    assert world.reactor.getDelayedCalls() == []
