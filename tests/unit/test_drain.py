"""A drain asks, waits, closes, aborts, and counts."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from netsvc.guard import Guard
from netsvc.server.drain import ABORT_GRACE, CLOSE_GRACE, Drain
from tests.builders.drained import Instance, Transport
from tests.builders.facts import drained, states
from tests.conftest import LoggedErrors


def connect(guard: Guard, label: str = "echo tcp", ends_on: str = "close") -> tuple[Protocol, Transport]:
    protocol: Any = guard.wrap(Factory.forProtocol(Protocol), label).buildProtocol(None)  # type: ignore[arg-type]
    transport = Transport()
    transport.ends_on = ends_on
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return protocol, transport


def drain(guard: Guard, clock: Clock, *instances: Instance, seconds: float = 4.0) -> tuple[Drain, list[str]]:
    for place, each in enumerate(instances):
        each.key = f"service{place}"
    drain = Drain(clock, guard, instances, seconds)
    summaries: list[str] = []
    drain.finished.addCallback(lambda summary: summaries.append(summary.lines[0]))
    guard.ended = drain.look
    drain.begin()
    return drain, summaries


def test_with_nothing_open_it_is_over_at_once() -> None:
    clock, instance = Clock(), Instance()
    _, summaries = drain(Guard(Clock()), clock, instance)
    assert [*map(drained, summaries)] == [(0, {}, {})]
    assert instance.asked == 1
    assert clock.getDelayedCalls() == []


def test_it_waits_for_connections_to_end_by_themselves() -> None:
    clock, guard = Clock(), Guard(Clock())
    _, transport = connect(guard)
    _, summaries = drain(guard, clock, Instance())
    clock.advance(3.9)
    assert summaries == []
    transport.loseConnection()
    assert [*map(drained, summaries)] == [(1, {}, {})]
    assert clock.getDelayedCalls() == []


def test_it_waits_for_every_service_to_answer() -> None:
    clock, slow = Clock(), Deferred[None]()
    _, summaries = drain(Guard(Clock()), clock, Instance(lambda: slow), Instance())
    assert summaries == []
    slow.callback(None)
    assert [*map(drained, summaries)] == [(0, {}, {})]


def test_a_service_that_never_answers_is_not_waited_for_for_ever() -> None:
    clock = Clock()
    _, summaries = drain(Guard(Clock()), clock, Instance(Deferred))
    clock.pump([4.0, CLOSE_GRACE, ABORT_GRACE])
    assert [*map(drained, summaries)] == [(0, {}, {})]


def test_what_is_left_at_the_deadline_is_closed_then_aborted_and_counted() -> None:
    clock, guard = Clock(), Guard(Clock())
    transports = [connect(guard, "echo tcp", ends_on)[1] for ends_on in ("close", "abort", "never", "close")]
    transports += [connect(guard, "chat line", "abort")[1]]
    _, summaries = drain(guard, clock)
    transports[3].loseConnection()
    clock.advance(4)
    assert not transports[0].connected
    assert transports[1].connected
    clock.advance(CLOSE_GRACE)
    assert [transport.aborted for transport in transports] == [False, True, True, False, True]
    assert summaries == []
    clock.advance(ABORT_GRACE)
    assert [*map(drained, summaries)] == [(1, {"echo tcp": 1}, {"chat line": 1, "echo tcp": 2})]
    assert states(summaries[0], " 4 s")
    assert clock.getDelayedCalls() == []


def test_closing_ends_it_when_all_connections_take_the_hint() -> None:
    clock, guard = Clock(), Guard(Clock())
    connect(guard)
    _, summaries = drain(guard, clock, Instance(Deferred))
    clock.advance(4)
    assert [*map(drained, summaries)] == [(0, {"echo tcp": 1}, {})]


def test_a_tls_connection_is_closed_and_not_half_closed_under_its_tls() -> None:
    class Wrapper:
        """Passes on what it does not know, as Twisted's TLS transport does."""

        def __init__(self, transport: Transport) -> None:
            self.transport = transport
            self.calls: list[str] = []

        def loseConnection(self) -> None:
            self.calls.append("close")
            self.transport.loseConnection()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.transport, name)

    clock, guard = Clock(), Guard(Clock())
    transports: list[Any] = [Wrapper(connect(guard)[1]), connect(guard)[1]]
    transports[1].TLS = True
    transports[1].loseWriteConnection = lambda: pytest.fail("half-closed")
    for connection in guard.live:
        if connection.hooks.below is transports[0].transport:
            connection.transport = transports[0]
    _, summaries = drain(guard, clock)
    clock.advance(4)
    assert transports[0].calls == ["close"]
    assert [*map(drained, summaries)] == [(0, {"echo tcp": 2}, {})]


def test_force_aborts_at_once() -> None:
    clock, guard = Clock(), Guard(Clock())
    _, transport = connect(guard, ends_on="abort")
    started, summaries = drain(guard, clock, seconds=3600)
    started.force()
    assert transport.aborted
    assert [*map(drained, summaries)] == [(0, {}, {"echo tcp": 1})]
    started.force()
    assert clock.getDelayedCalls() == []


def test_a_service_that_fails_to_drain_is_logged_and_stops_nothing(logged_errors: LoggedErrors) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    asked = Instance()
    _, summaries = drain(Guard(Clock()), Clock(), Instance(fail), asked)
    assert summaries
    assert asked.asked == 1
    assert [str(failure.value) for failure in logged_errors.flush(RuntimeError)] == ["no"]


def test_a_service_that_ends_its_connections_while_it_is_asked_is_waited_for() -> None:
    clock, guard = Clock(), Guard(Clock())
    _, transport = connect(guard)
    later = Instance()
    _, summaries = drain(guard, clock, Instance(transport.loseConnection), later)
    assert [*map(drained, summaries)] == [(1, {}, {})]
    assert later.asked == 1
