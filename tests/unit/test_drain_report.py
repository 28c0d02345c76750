"""A drain gives every service its own time, and tells who held it up."""

from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from netsvc.base.text import UNKNOWN_PEER
from netsvc.guard import Guard
from netsvc.plan.answer import Answer
from netsvc.server.drain import ABORT_GRACE, CLOSE_GRACE, Drain, DrainCommand
from netsvc.server.drain_report import MOST_CHARACTERS, MOST_LINES, MOST_NAMED, Account, Summary
from netsvc.server.process import stop_reactor
from netsvc.workers.channel import LONGEST_REPORT, report
from tests.builders.drained import Instance, Transport
from tests.builders.facts import states
from tests.builders.logs import collected

lines = pytest.fixture(collected, name="lines")


#: The peer of the connections, unless a test gives another one.
PEER = " 192.0.2.7:1000 "
#: How the report says that connections were aborted, not closed.
CUT = "cut off"


class DrainedServices:
    """Services with a gate each, on one clock; `deadlines` are their seconds."""

    def __init__(self, **deadlines: float) -> None:
        self.clock = Clock()
        self.guard = Guard(self.clock, dict.fromkeys(("handshake", "idle", "keepalive", "perip", "periprate")))
        self.deadlines = deadlines
        self.fronts = {name: self.guard.wrap(Factory.forProtocol(Protocol), f"{name} tcp") for name in deadlines}
        self.guests = self.guard.wrap(Factory.forProtocol(Protocol), "guest 1")
        self.services: dict[str, Instance] = {}
        self.summaries: list[Summary] = []
        self.drain: Any = None

    def connect(self, name: str, ends_on: str = "close", peer: Any = None) -> Transport:
        front = self.fronts.get(name, self.guests)
        protocol: Any = front.buildProtocol(peer or IPv4Address("TCP", "192.0.2.7", 1000))
        transport = Transport()
        transport.ends_on = ends_on
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def begin(self, seconds: float = 4, *, alone: bool = False) -> None:
        for name, each in self.deadlines.items():
            service = self.services.setdefault(name, Instance())
            service.key, service.seconds, service.gates = name, each, {self.fronts[name].gate}
        self.drain = Drain(self.clock, self.guard, list(self.services.values()), seconds, alone=alone)
        self.drain.finished.addCallback(self.summaries.append)
        self.guard.ended = self.drain.look
        self.drain.begin()

    def advance(self, *seconds: float) -> None:
        for each in seconds:
            self.clock.advance(each)

    def lines(self) -> list[str]:
        """Return the report, once there is one, after which nothing waits."""
        [summary] = self.summaries
        assert self.clock.getDelayedCalls() == []
        return list(summary.lines)


def test_each_service_is_closed_at_its_own_deadline(lines: Any) -> None:
    made = DrainedServices(short=1, long=10)
    short, long, guest = made.connect("short"), made.connect("long"), made.connect("guest")
    made.begin(4)
    [line] = lines
    assert states(line, "draining: 3 ", " 1 to 10 s")
    made.advance(0.9)
    assert short.connected
    made.advance(0.1)
    assert [each.connected for each in (short, guest, long)] == [False, True, True]
    made.advance(3)
    assert [each.connected for each in (guest, long)] == [False, True]
    made.advance(5.9)
    assert made.summaries == []
    made.advance(0.1)
    first, *held_up = made.lines()
    assert states(first, "0 ", " 1 s: 1 short tcp", " 4 s: 1 guest 1", " 10 s: 1 long tcp")
    facts = [("guest 1", 4), ("long tcp", 10), ("short tcp", 1)]
    assert [states(line, name, PEER, f" {age} s)") for line, (name, age) in zip(held_up, facts, strict=True)] == [
        True
    ] * 3


def test_it_is_over_when_the_last_has_ended_and_not_at_the_longest_deadline() -> None:
    made = DrainedServices(short=1, long=100)
    made.connect("short", "never")
    long = made.connect("long")
    made.begin()
    made.advance(1, CLOSE_GRACE, ABORT_GRACE)
    assert made.summaries == []
    long.loseConnection()
    first, held_up = made.lines()
    assert states(first, "1 ", f"{CUT}: 1 short tcp")
    assert states(held_up, "short tcp", PEER, " 1 s", CUT)


def test_who_does_not_end_at_all_keeps_nobody_longer_than_its_deadline() -> None:
    made = DrainedServices(short=1, long=3)
    made.connect("short", "never")
    made.connect("long", "never")
    made.begin()
    made.advance(1, CLOSE_GRACE, ABORT_GRACE, 1.4, CLOSE_GRACE, ABORT_GRACE)
    assert states(made.lines()[0], "0 ", f"{CUT}: 1 long tcp", "1 short tcp")


def test_a_service_is_waited_for_as_long_as_its_own_deadline_lets_it() -> None:
    made = DrainedServices(short=1, long=10)
    made.services["short"] = Instance(Deferred)
    answer: Deferred[None] = Deferred()
    made.services["long"] = Instance(lambda: answer)
    made.begin()
    made.advance(1)
    assert made.summaries == []
    made.advance(5)
    answer.callback(None)
    first, late = made.lines()
    assert not re.search(r"\d", first)
    assert states(late, "short ", " 1 s")
    assert "long" not in late


def test_one_who_comes_late_is_waited_for_and_closed_as_well() -> None:
    made = DrainedServices(one=2)
    first = made.connect("one")
    made.begin()
    late = made.connect("one")
    first.loseConnection()
    assert made.summaries == []
    made.advance(2)
    assert not late.connected
    assert states(made.lines()[0], "0 ", " 2 s: 1 one tcp")


def test_one_who_comes_between_closing_and_aborting_is_cut_off() -> None:
    made = DrainedServices(one=2)
    made.connect("one", "abort")
    made.begin()
    made.advance(2)
    made.connect("one", "abort")
    made.advance(CLOSE_GRACE)
    assert states(made.lines()[0], "0 ", f"{CUT}: 2 one tcp")


def test_alone_it_leaves_all_others_in_peace() -> None:
    made = DrainedServices(one=2)
    made.connect("one")
    other = made.connect("guest")
    made.begin(alone=True)
    made.advance(2)
    [_, held_up] = made.lines()
    assert states(held_up, "one tcp", PEER, " 2 s)")
    assert other.connected


def test_force_aborts_all_whatever_their_deadlines() -> None:
    made = DrainedServices(short=1, long=1000)
    made.services["long"] = Instance(Deferred)
    transports = [made.connect("short", "abort"), made.connect("long", "abort"), made.connect("guest", "never")]
    made.begin()
    made.advance(120)
    made.drain.force()
    assert [each.aborted for each in transports] == [True] * 3
    made.drain.force()
    made.advance(ABORT_GRACE)
    assert states(made.lines()[0], "0 ", f"{CUT}: ")
    assert any(states(line, "long tcp", PEER, " 2 min", CUT) for line in made.lines()[1:])
    made.drain.force()
    assert len(made.summaries) == 1


def test_force_has_nothing_to_do_with_whom_nobody_waits_for_any_more() -> None:
    made = DrainedServices(short=1, long=1000)
    gone, long = made.connect("short", "never"), made.connect("long", "abort")
    made.begin()
    made.advance(1, CLOSE_GRACE, ABORT_GRACE)
    gone.aborted = False
    made.drain.force()
    assert (gone.aborted, long.aborted) == (False, True)
    assert states(made.lines()[0], "0 ", f"{CUT}: 1 long tcp", "1 short tcp")


def test_one_that_is_given_up_says_nothing_any_more() -> None:
    made = DrainedServices(one=1)
    transport = made.connect("one")
    made.begin()
    made.drain.give_up()
    transport.loseConnection()
    made.advance(100)
    assert made.summaries == []
    assert made.clock.getDelayedCalls() == []


def test_those_who_have_been_there_longest_are_named_and_the_others_counted() -> None:
    made = DrainedServices(one=1)
    for number in range(MOST_NAMED + 3):
        made.connect("one", "never" if number == 1 else "close", IPv4Address("TCP", "192.0.2.7", number))
        made.advance(3600)
    made.begin()
    made.advance(1, CLOSE_GRACE, ABORT_GRACE)
    line = made.lines()[1]
    assert states(line, "one tcp", "192.0.2.7:0 ", " 13 h)", "192.0.2.7:1 ", " 12 h", CUT, "192.0.2.7:2 ")
    assert states(line, f"192.0.2.7:{MOST_NAMED - 1} ", " 4 h)", " 3 ")
    assert f"192.0.2.7:{MOST_NAMED} " not in line


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        (IPv6Address("TCP", "2001:db8::1", 5), "[2001:db8::1]:5"),
        (IPv6Address("TCP", "::ffff:192.0.2.7", 5), "192.0.2.7:5"),
        (UNIXAddress(None), UNKNOWN_PEER),
        (IPv4Address("TCP", "\x1b[2J\n", 5), r"\x1b[2J\n:5"),
    ],
)
def test_no_peer_can_forge_a_line(peer: Any, shown: str) -> None:
    made = DrainedServices(one=1)
    made.connect("one", peer=peer)
    made.begin()
    made.advance(1)
    line = made.lines()[1]
    assert states(line, "one tcp", f" {shown} ", " 1 s)")
    assert line.isprintable()


def test_the_connections_that_it_ends_are_recorded_so() -> None:
    made = DrainedServices(one=1)
    made.connect("one", "never")
    [connection] = made.guard.live
    made.begin()
    made.advance(1)
    assert connection.cause == ("drain", None)


def test_there_are_no_more_lines_than_that() -> None:
    account = Account(0)
    for number in range(MOST_LINES + 5):
        account.late(f"service{number}", 4)
    found = account.summary().lines
    assert len(found) == MOST_LINES
    assert states(found[-1], " 7 ")
    account = Account(0)
    for number in range(10):
        account.late(f"{number}" + "x" * 100_000, 4)
        account.late("x" * 190, number)
    found = account.summary().lines
    assert sum(map(len, found)) <= MOST_CHARACTERS + 100


def test_a_line_that_names_very_many_listeners_is_cut() -> None:
    made = DrainedServices(**{f"service{number}": 1 for number in range(400)})
    for name in made.deadlines:
        made.connect(name)
    made.begin()
    made.advance(1)
    found = made.lines()
    assert states(found[0], "0 ", " 1 s: 1 service0 tcp")
    assert found[0].endswith("…")
    assert sum(map(len, found)) <= MOST_CHARACTERS + 100
    assert len(report("drained", *found)) <= LONGEST_REPORT


def test_days_are_told_as_days() -> None:
    made = DrainedServices(one=1)
    made.connect("one")
    made.advance(86400 * 3)
    made.begin()
    made.advance(1)
    assert states(made.lines()[1], "one tcp", PEER, " 3 d)")


def test_all_who_ask_for_the_end_are_told_what_came_of_it() -> None:
    stopped: list[None] = []
    farewell = DrainCommand(lambda: stopped.append(None))
    answers: list[Answer] = []
    assert list(farewell.lines) == []
    farewell.ask(is_leaving=False).addCallback(answers.append)
    farewell.ask(is_leaving=True).addCallback(answers.append)
    farewell.ask(is_leaving=False).addCallback(answers.append)
    assert (stopped, answers) == ([None], [])
    farewell.report(["it is over"])
    farewell.ask(is_leaving=True).addCallback(answers.append)
    assert [answer.status for answer in answers] == [0] * 4
    # Those who come late get the same report, after a line that says so.
    assert [list(answer.lines[-1:]) for answer in answers] == [["it is over"]] * 4
    assert [len(answer.lines) for answer in answers] == [1, 2, 2, 2]
    assert stopped == [None]
    assert list(farewell.lines) == ["it is over"]


def test_a_reactor_that_stops_already_is_not_stopped_once_more() -> None:
    from twisted.internet.error import ReactorNotRunning

    class Reactor:
        stops = 0

        def callFromThread(self, call: Any) -> None:
            call()

        def stop(self) -> None:
            self.stops += 1
            if self.stops > 1:
                raise ReactorNotRunning

    reactor = Reactor()
    stop_reactor(reactor)
    stop_reactor(reactor)
    assert reactor.stops == 2
