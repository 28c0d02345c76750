"""Several workers change their plan: new ones take the places of the old, or all stays as it was."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python import usage

from netsvc.address import parse_address
from netsvc.errors import MistakeError
from netsvc.interfaces import Context, INetworkService
from netsvc.limits import parse_limits
from netsvc.plan import Listener, Plan, ServiceUse
from netsvc.service import Service
from netsvc.workers.turnover import START_LIMIT
from netsvc.workers.workers import KILL_GRACE, Workers
from tests.children import FakeProcess, FakeReactor
from tests.logs import Lines, collected
from tests.processes import free_port


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def plan(*addresses: str, workers: int = 2, text: str = "one", drain: float = 4, **limits: str) -> Plan:
    listeners = tuple(
        Listener("one", "udp", parse_address(address.removeprefix("udp "), "datagram"))
        if address.startswith("udp ")
        else Listener("one", "tcp", parse_address(address, "stream"))
        for address in addresses
    )
    return Plan({"one": ServiceUse("one", {"text": text})}, listeners, drain, workers, parse_limits(limits))


class Options(usage.Options):
    optParameters = [["text", None, "", "A text"]]


def service(*, parallel: bool = True) -> INetworkService:
    class Core:
        def __init__(self, options: Any, context: Context) -> None:
            if options["text"] == "bad":
                raise MistakeError(["the text is bad"])

    streams: dict[str, Any] = {"tcp": Protocol}
    return Service(
        "one",
        "A test",
        options=Options,
        core=Core,
        streams=streams,
        datagrams={"udp": DatagramProtocol},
        parallel=parallel,
    )


class World:
    """Workers of a plan, started and ready, on a reactor whose processes are objects."""

    def __init__(self, first: Plan, made: INetworkService | None = None) -> None:
        self.reactor = FakeReactor()
        self.deaths: list[str] = []
        self.workers = Workers(first, lambda use: made or service(), self.reactor, (), self.deaths.append)
        self.results: list[Any] = []
        self.stopped: list[object] = []
        self.workers.privilegedStartService()
        self.workers.startService()
        self.reactor.run()
        for process in self.processes:
            process.say("ready")

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def begin(self, then: Plan) -> list[FakeProcess]:
        """Begin a reload, and return the new processes."""
        count = len(self.processes)
        self.results = []
        self.workers.reload(then).addBoth(self.results.append)
        return self.processes[count:]

    def reload(self, then: Plan) -> list[FakeProcess]:
        """Reload, and return the new processes, which are ready."""
        started = self.begin(then)
        for process in started:
            process.say("ready")
        return started

    def mistakes(self) -> tuple[str, ...]:
        [failure] = self.results
        assert failure.check(MistakeError)
        error: Any = failure.value
        return tuple(error.mistakes)

    def port(self, place: int = 0) -> int:
        return int(self.workers._held[place].listening.place().rpartition(":")[2])

    def end(self) -> None:
        """Stop, and let every process end."""
        self.workers.stopService().addCallback(self.stopped.append)
        for process in self.processes:
            if not process.gone:
                process.end()
        assert self.stopped == [None]
        assert self.reactor.getDelayedCalls() == []


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
    world = World(first)
    old = list(world.processes)
    sockets = [[process.descriptors[number] for number in (5, 6)] for process in old]
    new = world.begin(replace(first, uses={"one": ServiceUse("one", {"text": "new"})}))
    assert [[process.descriptors[number] for number in (5, 6)] for process in new] == sockets
    assert all(process.briefing.held for process in new)
    assert [process.briefing.plan.uses["one"].settings for process in new] == [{"text": "new"}] * 2
    new[1].say("ready")
    assert world.results == []
    assert [process.orders for process in (*old, *new)] == [b""] * 4
    new[0].say("ready")
    assert world.results == ["2 listeners kept; changed: options of one"]
    assert [retirement(process) for process in old] == [{"closed": [], "drained": [], "seconds": 4}] * 2
    assert [process.orders for process in new] == [b"serve\n"] * 2
    for process in old:
        process.end()
    assert len(world.processes) == 4
    world.end()
    assert lines[-1] == "stopped: 2 workers ended"


def test_what_is_opened_and_closed() -> None:
    world = World(plan("127.0.0.1:0", "localhost:0"))
    closed = world.port(1)
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", "127.0.0.1:0", drain=2))
    assert world.results == ["1 listener kept, 1 opened, 1 closed; changed: drain 2 s"]
    assert [retirement(process) for process in old] == [{"closed": [1], "drained": [1], "seconds": 2}] * 2
    assert refused(closed)
    assert not refused(world.port(1))
    assert new[0].briefing.descriptors == ((5,), (6,))
    world.end()


def test_a_worker_that_dies_later_is_replaced_by_one_of_the_new_plan_that_serves_at_once() -> None:
    world = World(plan("127.0.0.1:0"))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", text="new"))
    old[0].end(signal=9)
    world.reactor.advance(60)
    assert len(world.processes) == 4
    new[1].end(signal=9)
    world.reactor.advance(1)
    [later] = world.processes[4:]
    assert later.briefing.plan.uses["one"].settings == {"text": "new"}
    assert not later.briefing.held
    later.say("ready")
    world.end()


def test_a_worker_that_cannot_start_fails_the_reload_and_the_old_ones_stay(lines: Lines) -> None:
    world = World(plan("127.0.0.1:0"))
    old = list(world.processes)
    free = free_port()
    new = world.begin(plan("127.0.0.1:0", f"127.0.0.1:{free}", text="new"))
    new[0].say("ready")
    new[1].say("failed", "no", "and no")
    assert world.mistakes() == ("worker 2 cannot start: no", "worker 2 cannot start: and no")
    assert [process.signals for process in (*old, *new)] == [[], [], ["TERM"], ["TERM"]]
    assert [process.orders for process in old] == [b""] * 2
    assert refused(free)
    for process in new:
        process.end(1)
    assert len(world.processes) == 4
    assert world.deaths == []
    assert world.reactor.getDelayedCalls() == []
    new = world.reload(plan("127.0.0.1:0"))
    assert world.results == ["1 listener kept"]
    world.end()


@pytest.mark.parametrize("ready", [True, False])
def test_a_worker_that_dies_before_all_are_ready_fails_it(ready: bool) -> None:
    world = World(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0"))
    if ready:
        new[0].say("ready")
    new[0].end(signal=9)
    [line] = world.mistakes()
    assert line.startswith("worker 1 ")
    assert "ended" in line
    new[1].end()
    world.end()


def test_a_system_that_starts_no_process_fails_it() -> None:
    world = World(plan("127.0.0.1:0"))
    world.reactor.fault = OSError(11, "Resource temporarily unavailable")
    assert world.begin(plan("127.0.0.1:0")) == []
    assert "Resource temporarily unavailable" in world.mistakes()[0]
    world.end()


def test_workers_that_are_never_ready_fail_it() -> None:
    world = World(plan("127.0.0.1:0"))
    world.begin(plan("127.0.0.1:0"))
    world.reactor.advance(START_LIMIT)
    assert world.mistakes() == (f"the new workers are not ready after {START_LIMIT:g} s",)
    world.end()


def test_every_mistake_is_told_and_no_worker_is_started(tmp_path: Path) -> None:
    world = World(plan("127.0.0.1:0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert world.begin(plan(f"127.0.0.1:{number}", text="bad", deny=f"@{tmp_path}/none")) == []
    lines = world.mistakes()
    assert lines[0] == "the text is bad"
    assert f"{tmp_path}/none" in lines[1]
    assert lines[2].startswith(f"one tcp cannot listen on 127.0.0.1:{number}: port {number} is in use")
    assert not refused(world.port())
    world.end()


def test_more_workers_have_sockets_of_their_own_which_take_nothing_before_they_serve() -> None:
    world = World(plan("127.0.0.1:0", "udp 127.0.0.1:0"))
    port = world.port()
    new = world.begin(plan("127.0.0.1:0", "udp 127.0.0.1:0", workers=4))
    assert len({process.descriptors[5] for process in new}) == 4
    held = world.workers._held[0]
    listens = [bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for _, all_ in held._beside for bound in all_]
    assert listens == [1, 0, 0]
    for process in new:
        process.say("ready")
    assert world.results == ["2 listeners kept; changed: 4 workers"]
    listens = [bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for _, all_ in held._beside for bound in all_]
    assert listens == [1, 1, 1]
    assert world.port() == port
    world.end()


def test_if_they_cannot_start_their_sockets_are_closed_again() -> None:
    world = World(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0", workers=3))
    new[0].say("failed", "no")
    [(_, beside)] = world.workers._held[0]._beside
    assert len(beside) == 1
    for process in new:
        process.end(1)
    world.end()


def test_with_fewer_workers_those_beyond_take_what_waits_for_them() -> None:
    world = World(plan("127.0.0.1:0", workers=3))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0", workers=2))
    assert len(new) == 2
    assert world.results == ["1 listener kept; changed: 2 workers"]
    assert [retirement(process)["closed"] for process in old] == [[], [], [0]]
    assert [retirement(process)["drained"] for process in old] == [[]] * 3
    [(_, beside)] = world.workers._held[0]._beside
    assert len(beside) == 1
    world.end()


def test_several_become_one_if_there_may_be_two_meanwhile() -> None:
    world = World(plan("127.0.0.1:0"))
    assert len(world.reload(plan("127.0.0.1:0", workers=1))) == 1
    assert world.results == ["1 listener kept; changed: 1 workers"]
    assert len(world.reload(plan("127.0.0.1:0", workers=2))) == 2
    world.end()
    lonely = service(parallel=False)
    world = World(plan("127.0.0.1:0"), lonely)
    world.begin(plan("127.0.0.1:0", workers=1))
    assert world.mistakes() == (
        "workers 1: several processes do not become one with all of this by a reload; start it anew",
    )
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
    world = World(plan(old.format(number)))
    before = list(world.processes)
    processes = world.reload(plan(new.format(number)))
    assert world.results == ["1 listener opened, 1 closed"]
    same = "interface" in old
    assert [retirement(process)["closed"] for process in before] == [[] if same else [0]] * 2
    assert [retirement(process)["drained"] for process in before] == [[0]] * 2
    assert len({process.descriptors[5] for process in processes}) == 2
    if not old.startswith("udp"):
        assert not refused(number)
    world.end()


def test_a_socket_file_cannot_be_taken_over_with_other_words(tmp_path: Path) -> None:
    world = World(plan(f"unix:{tmp_path}/sock"))
    world.begin(plan(f"unix:{tmp_path}/sock:mode=600"))
    [line] = world.mistakes()
    assert line.endswith("its place is still that of another listener; remove that one first, by a reload of its own")
    assert (tmp_path / "sock").exists()
    world.end()


def test_a_reload_under_way_and_one_that_stops_or_starts_refuse_another() -> None:
    world = World(plan("127.0.0.1:0"))
    new = world.begin(plan("127.0.0.1:0"))
    first = world.results
    world.begin(plan("127.0.0.1:0"))
    assert world.mistakes() == ("a reload is under way; wait until it is over",)
    world.workers.stopService().addCallback(world.stopped.append)
    assert first[0].value.mistakes == ("it is stopping",)
    assert [process.signals for process in new] == [["TERM", "TERM"]] * 2
    world.begin(plan("127.0.0.1:0"))
    assert world.mistakes() == ("it is stopping, and cannot be reloaded",)
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
    assert results[0].value.mistakes == ("it is still starting, and cannot be reloaded before it is ready",)
    workers.stopService()
    for process in reactor.processes:
        process.end()


def test_a_stop_ends_those_that_retire_as_well_and_kills_them_if_need_be(lines: Lines) -> None:
    world = World(plan("127.0.0.1:0"))
    old = list(world.processes)
    new = world.reload(plan("127.0.0.1:0"))
    old[0].end()
    world.workers.stopService().addCallback(world.stopped.append)
    assert [process.signals for process in (*old, *new)] == [[], ["TERM"], ["TERM"], ["TERM"]]
    for process in new:
        process.end()
    assert world.stopped == []
    world.workers.force()
    assert old[1].orders.endswith(b"\nforce\n")
    world.reactor.advance(0.6 + KILL_GRACE)
    assert old[1].signals == ["TERM", "KILL"]
    old[1].end(signal=9)
    assert world.stopped == [None]
    assert lines[-1] == "stopped: 2 workers ended, 1 of them killed"


def test_a_worker_that_is_just_being_replaced_is_started_no_more() -> None:
    world = World(plan("127.0.0.1:0"))
    world.processes[0].end(signal=9)
    world.reload(plan("127.0.0.1:0"))
    assert world.results == ["1 listener kept"]
    world.reactor.advance(60)
    assert len(world.processes) == 4
    world.end()
