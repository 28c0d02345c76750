"""What a protocol raises is told of with its place, costs its own connection alone, and drowns no log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from netsvc.base.text import UNKNOWN_PEER
from netsvc.coroutine import Stream, StreamFactory
from netsvc.guard import Guard
from netsvc.guard.faults import MOST_FAULTS, MOST_SHOWN, Faults, is_fault, show_received
from netsvc.service import Service
from tests.builders.bench import bind, build, connect
from tests.builders.census import census
from tests.builders.facts import states
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
        ("", None, UNKNOWN_PEER),
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
    assert len(faults._logged) == MOST_FAULTS
    assert noted(faults, "1", "a", 1) == []
    assert len(noted(faults, "0", "a", 1)) == 1
    logged_errors.flush(ValueError)


class Lines(LineReceiver):
    """Fails in a function of its own."""

    def lineReceived(self, line: bytes) -> None:
        number(line)


class Datagrams(DatagramProtocol):
    """Fails with each datagram."""

    def datagramReceived(self, data: bytes, address: Any) -> None:
        number(data)


async def stream_of_numbers(stream: Any) -> None:
    async for line in stream:
        number(line)


async def after_a_wait(stream: Any) -> None:
    line = await stream.read_line()
    copy = bytearray(line)
    await stream.core.context.reactor.waits
    int(copy)


def number(text: bytes) -> int:
    return int(text)


def shown_of(call: Callable[[], object]) -> str:
    """Return what is shown of the exception of a call, as if the reactor had made it."""
    with pytest.raises(ValueError, match="invalid literal") as raised:
        call()
    below: Any = raised.value.__traceback__
    return show_received(raised.value.with_traceback(below.tb_next.tb_next))


@pytest.mark.parametrize(
    ("protocols", "shown"),
    [
        ({"streams": {"x": Lines}}, r"; received 9 bytes: 12\x1b[\r\nand; text=12\x1b["),
        ({"streams": {"x": stream_of_numbers}}, r"; received 9 bytes: 12\x1b[\r\nand; text=12\x1b["),
        ({"datagrams": {"x": Datagrams}}, r"; received 9 bytes: 12\x1b[\r\nand"),
    ],
)
def test_what_a_protocol_received_is_shown(protocols: Any, shown: str) -> None:
    service: Any = Service("one", "One", **protocols)
    bench = build(service)
    data = b"12\x1b[\r\nand"
    if "streams" in protocols:
        _, client = connect(bench, "x")
        assert shown_of(lambda: client.feed(data)) == shown
    else:
        _, port = bind(bench, "x")
        assert shown_of(lambda: port.feed(data, ("192.0.2.1", 9))) == shown


def test_after_a_wait_the_variables_of_a_coroutine_are_shown() -> None:
    waits: Deferred[None] = Deferred()
    bench = build(Service("one", "One", streams={"x": after_a_wait}))
    bench.clock.waits = waits  # type: ignore[attr-defined]
    _, client = connect(bench, "x")
    client.feed(b"x\n")
    waits.callback(None)
    assert shown_of(lambda: client.feed(b"")).endswith("; line=x; copy=x")


def test_what_is_shown_is_bounded() -> None:
    _, client = connect(build(Service("one", "One", streams={"x": stream_of_numbers})), "x")
    received, variable = shown_of(lambda: client.feed(b"\0" * 5000 + b"\n")).split("; ")[1:]
    assert received.count("\\x00") == MOST_SHOWN
    assert received.endswith(f"({5001 - MOST_SHOWN} more)")
    assert variable == "text=" + "\\x00" * 200 + "…"
    assert show_received(ValueError()) == ""


def test_data_is_in_the_line_only_for_debugging(logged_errors: LoggedErrors) -> None:
    lines = []
    try:
        number(b"secret")
    except ValueError:
        for debug in (False, True):
            faults = Faults(Clock())
            faults.debug = debug
            with capturedLogs() as events:
                faults.note("x tcp", "a", 1, Failure())
            lines += [formatEvent(event) for event in events]
    assert [line.count("; text=secret") for line in lines] == [0, 1]
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
    assert census(guard) == {"x tcp": 1}
    wire.connectionLost(Failure(ConnectionDone()))
    assert not guard.live
    assert [failure.type for failure in logged_errors.flush()] == [ZeroDivisionError, LookupError]
    assert wrapped.gate.tally.counts.errors == 2
    assert wrapped.gate.tally.counts.ended == {"error": 1}


@pytest.mark.parametrize(
    ("end", "reason", "what"),
    [(ConnectionDone, "peer", "failed in connectionLost"), (ConnectionAborted, "error", "failed")],
)
def test_a_protocol_that_aborts_and_then_raises_has_failed(
    logged_errors: LoggedErrors, end: type[Exception], reason: str, what: str
) -> None:
    class Late(Protocol):
        def connectionLost(self, reason: object = None) -> None:
            raise LookupError

    _, wrapped = guarded(Late)
    protocol: Any = wrapped.buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    with capturedLogs() as events:
        wire.connectionLost(Failure(end()))
    assert [formatEvent(event) for event in events] == [f"x tcp 192.0.2.1:4000 {what}"]
    assert wrapped.gate.tally.counts.ended == {reason: 1}
    logged_errors.flush(LookupError)


def test_a_coroutine_that_fails_while_it_awaits_a_deferred_has_failed(logged_errors: LoggedErrors) -> None:
    awaited: Deferred[None] = Deferred()

    async def fail(_stream: Stream) -> None:
        await awaited
        raise LookupError

    clock: Any = Clock()
    guard = Guard(clock)
    wrapped: Any = guard.wrap(StreamFactory(fail, None, clock), "x tcp")
    protocol: Any = wrapped.buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    awaited.callback(None)
    assert wire.aborted
    wire.connectionLost(Failure(ConnectionAborted()))
    assert wrapped.gate.tally.counts.ended == {"error": 1}
    assert wrapped.gate.tally.counts.errors == 1
    logged_errors.flush(LookupError)


class Stubborn:
    """A producer that fails to stop."""

    def resumeProducing(self) -> None:
        """Produce nothing."""

    def stopProducing(self) -> None:
        raise LookupError


@pytest.mark.parametrize("unread", [False, True])
def test_a_layer_ends_whatever_its_producer_or_its_protocol_raises(logged_errors: LoggedErrors, unread: bool) -> None:
    lost: list[Any] = []

    class Failing(Protocol):
        def dataReceived(self, data: bytes) -> None:
            raise ZeroDivisionError

        def connectionLost(self, reason: Any = None) -> None:
            lost.append(reason.type)

    _, wrapped = guarded(Failing)
    protocol: Any = wrapped.buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    layer = protocol.protocol.transport
    layer.registerProducer(Stubborn(), True)
    if unread:
        layer.hold_reading()
        protocol.dataReceived(b"x")
        layer.reading_held = False
    wire.connectionLost(Failure(ConnectionDone()))
    assert lost == [ZeroDivisionError if unread else ConnectionDone]
    assert wrapped.gate.tally.counts.ended == {"error" if unread else "peer": 1}
    logged_errors.flush(LookupError, ZeroDivisionError)


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
    place = "192.0.2.1:4000" if peer is PEER else UNKNOWN_PEER
    [event] = events
    assert states(formatEvent(event), f"x tcp {place} ")
    logged_errors.flush(ZeroDivisionError)
    if outermost:
        assert refusal is None
    else:
        wire = Wire(refusal)
        refusal.makeConnection(wire)
        assert wire.aborted
    wrapped.factory.buildProtocol = build
    assert isinstance(wrapped.buildProtocol(peer).protocol, Mute)
