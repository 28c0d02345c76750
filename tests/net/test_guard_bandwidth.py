"""Bytes a second of stream connections: what a listener's limits do to them, and what they only report."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory

from netsvc.guard import Guard
from netsvc.guard.bandwidth import Bandwidth
from netsvc.plan.limits import parse_limits
from tests.builders.metered import KINDS, Bench, Line, Sink, pattern


class LimitedLines:
    """Connections of one listener, at the far end of which is a peer each."""

    def __init__(self, kind: str, process: dict[str, object], limits: dict[str, object]) -> None:
        self.bench = Bench()
        self.kind = kind
        self.guard = Guard(self.bench.loop, parse_limits(process))
        self.gate = self.guard.gate("x tcp", "stream", None, parse_limits(limits))
        self.bandwidth = Bandwidth(self.gate, self.bench.loop)

    def connect(self) -> Line:
        line = self.bench.line(self.kind, Sink())
        self.bandwidth.limit(line.transport, "192.0.2.1")
        return line

    def close(self) -> None:
        self.guard.close()
        self.bench.close()


@pytest.fixture
def worlds() -> Iterator[list[LimitedLines]]:
    made: list[LimitedLines] = []
    yield made
    for world in made:
        world.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_without_such_limits_nothing_is_done_to_a_connection(worlds: list[LimitedLines]) -> None:
    worlds.append(LimitedLines("tcp", {}, {}))
    assert not worlds[0].bandwidth.limited


@pytest.mark.parametrize(("own", "shared"), [("50K", "none"), ("none", "50K")])
def test_bytes_wait_that_come_too_fast(worlds: list[LimitedLines], kind: str, own: str, shared: str) -> None:
    world = LimitedLines(kind, {"readall": shared}, {"read": own})
    worlds.append(world)
    assert world.bandwidth.limited
    line = world.connect()
    line.peer.to_send = pattern(200_000)
    line.settle()
    assert line.protocol.got <= 1.5 * 51_200
    line.run(4)
    assert line.protocol.got == 200_000
    assert not world.guard.refusals.last


def test_what_all_may_read_is_read_by_all_together(worlds: list[LimitedLines], kind: str) -> None:
    world = LimitedLines(kind, {"readall": "50K"}, {})
    worlds.append(world)
    lines = [world.connect() for _ in range(3)]
    for line in lines:
        line.peer.to_send = pattern(100_000)
    world.bench.loop.run(1, lambda: max([line.peer.move() for line in lines]))
    assert 51_200 <= sum(line.protocol.got for line in lines) <= 3.2 * 51_200


@pytest.mark.parametrize("limit", ["write", "writeall"])
def test_bytes_wait_that_go_too_fast(worlds: list[LimitedLines], kind: str, limit: str) -> None:
    world = LimitedLines(kind, {}, {limit: "50K"})
    worlds.append(world)
    line = world.connect()
    line.transport.write(pattern(200_000))
    line.settle()
    assert len(line.peer.received) <= 1.5 * 51_200
    line.run(4)
    assert bytes(line.peer.received) == pattern(200_000)


@pytest.mark.parametrize("limit", ["read", "readall", "write", "writeall"])
def test_with_a_dry_run_nothing_waits_and_it_is_counted(worlds: list[LimitedLines], kind: str, limit: str) -> None:
    world = LimitedLines(kind, {}, {limit: "50K", "dryrun": limit})
    worlds.append(world)
    line = world.connect()
    line.peer.to_send = pattern(400_000)
    line.transport.write(pattern(400_000))
    line.settle()
    assert line.protocol.got == len(line.peer.received) == 400_000
    assert {(each.label, each.limit, each.action) for each in world.guard.refusals.last} == {
        ("x tcp", limit, "would have refused")
    }
    [tally] = world.guard.book.tallies
    assert tally.counts.reported.keys() == {limit} and tally.counts.refused == {}


def test_what_a_connection_did_not_use_is_given_back(worlds: list[LimitedLines], kind: str) -> None:
    world = LimitedLines(kind, {"readall": "10M", "writeall": "10M"}, {"read": "1M", "write": "1G"})
    worlds.append(world)
    shared = [world.guard.process.bucket(name) for name in ("readall", "writeall")]
    silent, brief, long = (world.connect() for _ in range(3))
    brief.peer.to_send = b"x" * 100
    brief.transport.write(b"y" * 200)
    brief.settle()
    long.peer.to_send = pattern(5000)
    long.transport.write(pattern(5000))
    long.settle()
    now = world.bench.loop.seconds()
    for line in (silent, brief, long):
        line.transport.abortConnection()
    world.bench.loop.advance(0)
    assert now == world.bench.loop.seconds()
    full = 10 * 1024 * 1024
    assert [bucket and full - bucket.left(now) for bucket in shared] == [5100, 5200]


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not pace")
def test_where_the_kernel_paces_only_what_all_share_is_counted(worlds: list[LimitedLines]) -> None:
    for process, counted in (({}, False), ({"writeall": "1M"}, True)):
        world = LimitedLines("tcp", dict(process), {"write": "1M"})
        worlds.append(world)
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            ours, _ = server.accept()
            transport = KINDS["tcp"](ours, Sink(), ("127.0.0.1", 4000), None, 1, world.bench.loop)
            world.bandwidth.limit(transport, "127.0.0.1")
            assert (transport.writes is not None) is counted
            transport.write(b"x")
            transport.doWrite()
            transport.abortConnection()
            world.bench.loop.advance(0)


def test_a_connection_that_is_admitted_is_limited() -> None:
    bench = Bench()
    guard = Guard(bench.loop)
    factory = guard.wrap(Factory.forProtocol(Sink), "x tcp", limits=parse_limits({"read": "50K"}))
    sink = Sink()
    factory.factory = Factory.forProtocol(lambda: sink)
    line = bench.line("tcp", factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000)))
    line.peer.to_send = pattern(200_000)
    line.settle()
    assert 0 < sink.got <= 1.5 * 51_200
    line.transport.abortConnection()
    bench.loop.advance(0)
    assert sink.lost == 1
    line.protocol = sink
    guard.close()
    bench.close()
