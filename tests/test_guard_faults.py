"""What a protocol raises is told of with its place, costs its own connection alone, and drowns no log."""

from __future__ import annotations

from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from netsvc.guard import Guard
from netsvc.guard.faults import MOST_FAULTS, Faults, is_fault
from tests.conftest import LoggedErrors

PEER = IPv4Address("TCP", "192.0.2.1", 4000)


class Clumsy(Protocol):
    """Fails at everything but what comes."""

    def connectionMade(self) -> None:
        raise ZeroDivisionError

    def connectionLost(self, reason: object = None) -> None:
        raise LookupError


class Mute(Protocol):
    """Does nothing."""


class Wire(StringTransport):
    """A transport that tells of its end as Twisted's real ones do."""

    aborted = False

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol

    def abortConnection(self) -> None:
        self.aborted = True

    def connectionLost(self, reason: Failure) -> None:
        self.protocol.connectionLost(reason)


def noted(faults: Faults, label: str, peer: str, port: int | None) -> list[str]:
    with capturedLogs() as events:
        faults.note(label, peer, port, Failure(ValueError()))
    return [formatEvent(event) for event in events]


def guarded(protocol: type[Protocol], clock: Any = None) -> tuple[Guard, Any]:
    guard = Guard(clock or Clock())
    return guard, guard.wrap(Factory.forProtocol(protocol), "x tcp")


def test_a_line_names_the_listener_and_the_peer(logged_errors: LoggedErrors) -> None:
    for peer, port, place in (
        ("192.0.2.1", 7, "192.0.2.1:7"),
        ("2001:db8::1", 7, "[2001:db8::1]:7"),
        ("uid 1000", None, "uid 1000"),
        ("", None, "somebody"),
        ("\x1b[2J", None, r"\x1b[2J"),
    ):
        assert noted(Faults(Clock()), "echo tcp", peer, port) == [f"echo tcp {place} failed"]
    logged_errors.flush(ValueError)


def test_a_listener_s_faults_are_told_of_once_a_second_with_their_number(logged_errors: LoggedErrors) -> None:
    clock = Clock()
    faults = Faults(clock)
    assert len(noted(faults, "x", "a", 1)) == 1
    assert [noted(faults, "x", "a", 1) for _ in range(10)] == [[]] * 10
    assert noted(faults, "y", "b", 1) == ["y b:1 failed"]
    clock.advance(1)
    assert noted(faults, "x", "a", 2) == ["x a:2 failed (10 more before it)"]
    assert len(logged_errors.flush(ValueError)) == 3


def test_a_clock_that_is_set_back_silences_nobody(logged_errors: LoggedErrors) -> None:
    clock = Clock()
    clock.rightNow = 1e9
    faults = Faults(clock)
    noted(faults, "x", "a", 1)
    clock.rightNow = 1.0
    assert len(noted(faults, "x", "a", 1)) == 1
    logged_errors.flush(ValueError)


def test_one_fault_hides_no_other_of_the_same_listener(logged_errors: LoggedErrors) -> None:
    faults = Faults(Clock())
    places = (
        lambda: int("x"),
        lambda: float("x"),
        lambda: dict[str, str]().popitem(),
    )
    with capturedLogs() as events:
        for place in 3 * places:
            try:
                place()
            except (ValueError, KeyError):
                faults.note("x tcp", "a", 1, Failure())
    assert len(events) == len(logged_errors.flush(ValueError, KeyError)) == 3


def test_so_many_faults_are_told_apart_and_no_more(logged_errors: LoggedErrors) -> None:
    faults = Faults(Clock())
    for number in range(MOST_FAULTS + 1):
        noted(faults, str(number), "a", 1)
    assert len(faults._told) == MOST_FAULTS
    assert noted(faults, "1", "a", 1) == []
    assert len(noted(faults, "0", "a", 1)) == 1
    logged_errors.flush(ValueError)


@pytest.mark.parametrize("ending", [ConnectionDone(), ConnectionLost(), ConnectionAborted(), SSL.Error([])])
def test_a_connection_that_ends_is_no_fault(ending: Exception) -> None:
    assert not is_fault(Failure(ending))
    assert not is_fault(None)
    assert is_fault(Failure(FileNotFoundError()))


def test_a_protocol_that_fails_at_its_start_or_end_is_told_of_and_counted_out(logged_errors: LoggedErrors) -> None:
    guard, wrapped = guarded(Clumsy)
    protocol: Any = wrapped.buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    # Twisted would keep the connection open.
    assert wire.aborted
    assert guard.census() == {"x tcp": 1}
    wire.connectionLost(Failure(ConnectionDone()))
    assert not guard.live
    assert [failure.type for failure in logged_errors.flush()] == [ZeroDivisionError, LookupError]
    assert wrapped.gate.tally.counts.errors == 2
    assert wrapped.gate.tally.counts.ended == {"error": 1}


def test_what_a_protocol_raises_while_data_comes_is_told_of_when_its_connection_is_lost(
    logged_errors: LoggedErrors,
) -> None:
    clock: Any = Clock()
    _, wrapped = guarded(Mute, clock)
    protocol: Any = wrapped.buildProtocol(IPv6Address("TCP", "::ffff:192.0.2.1", 9))
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    clock.fault = fault = FileNotFoundError("gone")
    with capturedLogs() as events:
        wire.connectionLost(Failure(fault))
    assert [formatEvent(event) for event in events] == ["x tcp 192.0.2.1:9 failed"]
    # The reactor need not say it again.
    assert clock.fault is None
    assert wrapped.gate.tally.counts.ended == {"error": 1}
    logged_errors.flush(FileNotFoundError)


@pytest.mark.parametrize(("outermost", "peer"), [(True, PEER), (False, PEER), (False, UNIXAddress(None))])
def test_a_factory_that_fails_costs_one_connection(outermost: bool, peer: Any, logged_errors: LoggedErrors) -> None:
    _, wrapped = guarded(Mute)
    wrapped.outermost = outermost

    def fail(_addr: object) -> None:
        raise ZeroDivisionError

    wrapped.factory.buildProtocol, build = fail, wrapped.factory.buildProtocol
    with capturedLogs() as events:
        refusal = wrapped.buildProtocol(peer)
    place = "192.0.2.1:4000" if peer is PEER else "somebody"
    assert [formatEvent(event) for event in events] == [f"x tcp {place} could not be given a protocol"]
    logged_errors.flush(ZeroDivisionError)
    if outermost:
        assert refusal is None
    else:
        wire = Wire(refusal)
        refusal.makeConnection(wire)
        assert wire.aborted
    wrapped.factory.buildProtocol = build
    assert isinstance(wrapped.buildProtocol(peer), Mute)
