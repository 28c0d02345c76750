"""Several workers change their plan: new ones take the places of the old, or all stays as it was."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsvc.plan.plan import ServiceUse
from netsvc.server.difference import compare, describe_changes
from netsvc.workers.channel import FIRST_SOCKET
from netsvc.workers.group import SETTLE, steer, unsteer
from netsvc.workers.handover import START_LIMIT
from netsvc.workers.workers import KILL_GRACE, SETTLED, Workers
from tests.builders.children import FakeProcess, FakeReactor
from tests.builders.facts import lacks, states
from tests.builders.logs import Lines, collected
from tests.builders.processes import free_port
from tests.builders.turnover import ReloadedWorkers, plan, service

#: The summary of a reload that changes nothing.
SAME = describe_changes(plan("127.0.0.1:0"), plan("127.0.0.1:0"), compare(plan("127.0.0.1:0"), plan("127.0.0.1:0")))


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def retirement(process: FakeProcess) -> dict[str, Any]:
    match = re.fullmatch(rb"retire (.*)\n", process.orders)
    assert match, process.orders
    read: dict[str, Any] = json.loads(match[1])
    return read


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_new_workers_get_the_same_sockets_and_serve_when_all_are_ready(lines: Lines) -> None:
    first = plan("127.0.0.1:0", "udp 127.0.0.1:0")
    world = ReloadedWorkers(first)
    old = list(world.processes)
    sockets = [[process.descriptors[number] for number in (FIRST_SOCKET, FIRST_SOCKET + 1)] for process in old]
    new = world.begin(replace(first, uses={"one": ServiceUse("one", {"text": "new"})}))
    assert [[process.descriptors[number] for number in (FIRST_SOCKET, FIRST_SOCKET + 1)] for process in new] == sockets
    assert all(process.start.paused for process in new)
    assert [process.start.plan.uses["one"].settings for process in new] == [{"text": "new"}] * 2
    new[1].say("ready")
    assert world.results == []
    assert [process.orders for process in (*old, *new)] == [b""] * 4
    new[0].say("ready")
    assert [states(line, "2 ", " kept", "changed: ", "one") for line in world.results] == [True]
    assert [retirement(process) for process in old] == [{"closed": [], "drained": [], "seconds": 4}] * 2
    assert [process.orders for process in new] == [b"serve\n"] * 2
    for process in old:
        process.end()
    assert len(world.processes) == 4
    world.end()
    assert lines[-1].startswith("stopped: 2 ")
    assert "killed" not in lines[-1]


def test_what_is_opened_and_closed() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", "localhost:0"))
    closed = world.port(1)
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", "127.0.0.1:0", drain=2))
    assert states(world.results[0], "1 listener kept", "1 opened", "1 closed", "changed: ", "drain 2 s")
    assert [retirement(process) for process in old] == [{"closed": [1], "drained": [1], "seconds": 2}] * 2
    assert refused(closed)
    assert not refused(world.port(1))
    assert [port.sockets for port in new[0].handoff.ports] == [[FIRST_SOCKET], [FIRST_SOCKET + 1]]
    world.end()


def test_a_worker_that_dies_later_is_replaced_by_one_of_the_new_plan_that_serves_at_once() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", text="new"))
    old[0].end(signal=9)
    world.reactor.advance(60)
    assert len(world.processes) == 4
    new[1].end(signal=9)
    assert [process.link.covered for process in (old[1], new[0])] == [{}, {1: [0]}]
    world.reactor.advance(1)
    [later] = world.processes[4:]
    assert later.start.plan.uses["one"].settings == {"text": "new"}
    assert not later.start.paused
    later.say("ready")
    world.end()


def test_a_worker_that_cannot_start_fails_the_reload_and_the_old_ones_stay(lines: Lines) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    old = list(world.processes)
    free = free_port()
    new = world.begin(plan("127.0.0.1:0", f"127.0.0.1:{free}", text="new"))
    new[0].say("ready")
    new[1].say("failed", "no", "and no")
    assert [lacks(line, "worker 2", why) for line, why in zip(world.errors(), (": no", ": and no"), strict=True)] == [
        [],
        [],
    ]
    assert [process.is_told_to_stop for process in (*old, *new)] == [False, False, True, True]
    assert [process.orders for process in old] == [b""] * 2
    assert refused(free)
    for process in new:
        process.end(1)
    assert len(world.processes) == 4
    assert world.deaths == []
    assert world.reactor.getDelayedCalls() == []
    new = world.reload(plan("127.0.0.1:0"))
    assert world.results == [SAME]
    world.end()


@pytest.mark.parametrize("ready", [True, False])
def test_a_worker_that_dies_before_all_are_ready_fails_it(ready: bool) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0"))
    if ready:
        new[0].say("ready")
    new[0].end(signal=9)
    assert lacks(world.errors()[0], "worker 1") == []
    new[1].end()
    world.end()


def test_a_system_that_starts_no_process_fails_it() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    world.reactor.fault = OSError(11, "Resource temporarily unavailable")
    assert world.begin(plan("127.0.0.1:0")) == []
    assert "Resource temporarily unavailable" in world.errors()[0]
    world.end()


def test_workers_that_are_never_ready_fail_it() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    world.begin(plan("127.0.0.1:0"))
    world.reactor.advance(START_LIMIT)
    [line] = world.errors()
    assert lacks(line, "ready", f" {START_LIMIT:g} s") == []
    world.end()


def test_every_mistake_is_told_and_no_worker_is_started(tmp_path: Path) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert world.begin(plan(f"127.0.0.1:{number}", text="bad", deny=f"@{tmp_path}/none")) == []
    lines = world.errors()
    assert lines[0] == "the text is bad"
    assert f"{tmp_path}/none" in lines[1]
    assert states(lines[2], "one tcp", f"127.0.0.1:{number}", f"port {number}")
    assert not refused(world.port())
    world.end()


def test_more_workers_have_sockets_of_their_own_which_take_nothing_before_they_serve() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", "udp 127.0.0.1:0"))
    port = world.port()
    new = world.begin(plan("127.0.0.1:0", "udp 127.0.0.1:0", workers=4))
    assert len({process.descriptors[FIRST_SOCKET] for process in new}) == 4
    group = world.workers.generation.groups[0]
    listens = [bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for bound in group._beside]
    assert listens == [1, 0, 0]
    for process in new:
        process.say("ready")
    assert states(world.results[0], "2 ", " kept", "changed: ", "4 workers")
    listens = [bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for bound in group._beside]
    assert listens == [1, 1, 1]
    assert world.port() == port
    world.end()


def reached(world: ReloadedWorkers) -> set[int]:
    """Send datagrams to the first listener from forty peers; return the workers, from 0, at whose sockets they wait."""
    group = world.workers.generation.groups[0]
    for _ in range(40):
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.sendto(b"hello", ("127.0.0.1", world.port()))
    found = set()
    for worker in range(1 + len(group._beside)):
        with suppress(BlockingIOError):
            while group.socket_of(worker).recv(10):
                found.add(worker)
    return found


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("succeeds", [True, False])
def test_no_datagram_waits_for_a_worker_that_still_starts(before: int, succeeds: bool) -> None:
    world = ReloadedWorkers(plan("udp 127.0.0.1:0", workers=before))
    new = world.begin(plan("udp 127.0.0.1:0", workers=4))
    assert len(world.workers.generation.groups[0]._beside) == 3
    assert reached(world) <= set(range(before))
    if succeeds:
        for process in new:
            process.say("ready")
        assert len(reached(world)) > before
    else:
        for process in new:
            process.end(1)
        assert reached(world) == set(range(before))
    world.end()


def test_with_fewer_workers_the_system_distributes_datagrams_again_when_the_others_have_left() -> None:
    world = ReloadedWorkers(plan("udp 127.0.0.1:0", workers=3))
    world.reload(plan("udp 127.0.0.1:0", workers=2))
    world.reactor.advance(SETTLE)
    world.reactor.advance(SETTLED)
    # By the steering program, peers without a connected socket would all be those of the first worker.
    assert reached(world) == {0, 1}
    world.end()


@pytest.mark.parametrize("successors", [1, 2])
def test_nothing_new_goes_to_workers_without_a_counterpart_while_they_retire(successors: int) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", "udp 127.0.0.1:0", workers=4))
    workers = world.workers
    assert workers.prepare(successors) == SETTLE
    ports = workers.ports()
    for step in range(4):
        workers.pause(step, successors, ports)
        for group in workers.generation.groups:
            assert len(group._beside) == (3 if step < successors else successors - 1)
            # It would fail if they were not steered any more.
            unsteer(group.socket_of(0))
            steer(group.socket_of(0), successors)
    assert [retirement(process)["closed"] for process in world.processes] == [[]] * successors + [[0, 1]] * (
        4 - successors
    )
    world.end()


def test_if_they_cannot_start_their_sockets_are_closed_again() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0", workers=3))
    new[0].say("failed", "no")
    assert len(world.workers.generation.groups[0]._beside) == 1
    for process in new:
        process.end(1)
    world.end()


def test_with_fewer_workers_those_beyond_take_what_waits_for_them() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", workers=3))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", workers=2))
    assert len(new) == 2
    # Until nothing new comes to the socket that goes.
    assert world.results == [] and [process.orders for process in old] == [b""] * 3
    world.reactor.advance(SETTLE)
    assert states(world.results[0], "1 listener kept", "changed: ", "2 workers")
    assert [retirement(process)["closed"] for process in old] == [[], [], [0]]
    assert [retirement(process)["drained"] for process in old] == [[]] * 3
    assert len(world.workers.generation.groups[0]._beside) == 1
    world.end()


def test_if_a_new_worker_dies_before_that_the_old_ones_are_as_before() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", workers=3))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", workers=2))
    new[0].end(1)
    [line] = world.errors()
    assert lacks(line, "worker 1") == []
    world.reactor.advance(SETTLE)
    assert [process.orders for process in old] == [b""] * 3
    assert len(world.workers.generation.groups[0]._beside) == 2
    new[1].end()
    world.end()


def test_several_become_one_if_there_may_be_two_meanwhile() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    assert len(world.reload(plan("127.0.0.1:0", workers=1))) == 1
    world.reactor.advance(SETTLE)
    assert states(world.results[0], "1 listener kept", "changed: ", "1 workers")
    assert len(world.reload(plan("127.0.0.1:0", workers=2))) == 2
    world.end()
    lonely = service(parallel=False)
    world = ReloadedWorkers(plan("127.0.0.1:0"), lonely)
    world.begin(plan("127.0.0.1:0", workers=1))
    [line] = world.errors()
    assert line.startswith("workers 1: ")
    world.end()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.1:{}", "{}"),
        ("{}", "127.0.0.1:{}"),
        ("127.0.0.1:{}", "tcp:{}"),
        ("tcp:{}:interface=127.0.0.1", "127.0.0.1:{}"),
        ("udp 127.0.0.1:{}", "udp {}"),
    ],
)
def test_a_port_that_is_given_up_is_not_in_the_way_of_one_that_overlaps(old: str, new: str) -> None:
    number = free_port()
    world = ReloadedWorkers(plan(old.format(number)))
    before = list(world.processes)
    processes = world.reload(plan(new.format(number)))
    assert states(world.results[0], "1 listener opened", "1 closed")
    assert "kept" not in world.results[0]
    same = "interface" in old
    assert [retirement(process)["closed"] for process in before] == [[] if same else [0]] * 2
    assert [retirement(process)["drained"] for process in before] == [[0]] * 2
    assert len({process.descriptors[FIRST_SOCKET] for process in processes}) == 2
    if not old.startswith("udp"):
        assert not refused(number)
    world.end()


def test_a_socket_file_cannot_be_taken_over_with_other_words(tmp_path: Path) -> None:
    world = ReloadedWorkers(plan(f"unix:{tmp_path}/sock"))
    world.begin(plan(f"unix:{tmp_path}/sock:mode=600"))
    [line] = world.errors()
    assert lacks(line, f"unix:{tmp_path}/sock:mode=600") == []
    assert (tmp_path / "sock").exists()
    world.end()


def test_a_reload_under_way_and_one_that_stops_or_starts_refuse_another() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0"))
    first = world.results
    under_way = world.workers.occupied("reloaded")
    world.begin(plan("127.0.0.1:0"))
    assert world.errors() == (under_way,)
    world.workers.stopService().addCallback(world.stopped.append)
    assert len(first[0].value.errors) == 1
    assert all(process.is_told_to_stop for process in new)
    world.begin(plan("127.0.0.1:0"))
    stopping = world.workers.occupied("reloaded")
    assert world.errors() == (stopping,)
    for process in world.processes:
        assert world.stopped == []
        process.end()
    assert world.stopped == [None]
    reactor = FakeReactor()
    workers = Workers(plan("127.0.0.1:0"), lambda use: service(), reactor)
    workers.privilegedStartService()
    workers.startService()
    reactor.run()
    results: list[Any] = []
    workers.reload(plan("127.0.0.1:0")).addBoth(results.append)
    starting = workers.occupied("reloaded")
    assert results[0].value.errors == (starting,)
    assert len({under_way, stopping, starting, ""}) == 4
    workers.stopService()
    for process in reactor.processes:
        process.end()


def test_a_stop_ends_those_that_retire_as_well_and_kills_them_if_need_be(lines: Lines) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0"))
    old[0].end()
    world.workers.stopService().addCallback(world.stopped.append)
    assert [process.is_told_to_stop for process in (*old, *new)] == [False, True, True, True]
    for process in new:
        process.end()
    assert world.stopped == []
    world.workers.force()
    assert old[1].orders.endswith(b"\nforce\n")
    world.reactor.advance(0.6 + KILL_GRACE)
    assert old[1].is_killed
    old[1].end(signal=9)
    assert world.stopped == [None]
    assert states(lines[-1], "stopped: 2 ", "1 ", "killed")


def test_a_worker_that_is_just_being_replaced_is_started_no_more() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    world.processes[0].end(signal=9)
    world.reload(plan("127.0.0.1:0"))
    assert world.results == [SAME]
    world.reactor.advance(60)
    assert len(world.processes) == 4
    world.end()
