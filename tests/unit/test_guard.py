"""The guard knows each connection from its first moment to its last, and stands in nobody's way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from netsvc.guard import Guard
from netsvc.plan.limits import parse_limits
from netsvc.reactor.hooks import Hooks
from tests.builders.census import census
from tests.builders.gates import Making, Recorder, Slotted

PEER = IPv4Address("TCP", "192.0.2.1", 4000)


class Wire(StringTransport):
    """A transport that tells of its end as Twisted's real ones do."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol

    def connectionLost(self, reason: Failure) -> None:
        protocol = self.protocol
        del self.protocol
        protocol.connectionLost(reason)


def ending() -> Failure:
    return Failure(ConnectionDone())


#: What a fake transport can be watched for only in the path of its data.
UNWATCHED = parse_limits({"handshake": "none", "idle": "none"})


def guarded(make: Callable[[], Any], label: str = "x tcp") -> tuple[Guard, Making, IProtocolFactory]:
    guard, factory = Guard(Clock()), Making(make)
    return guard, factory, guard.wrap(factory, label, limits=UNWATCHED)


def test_a_connection_is_live_from_make_connection_to_connection_lost() -> None:
    guard, factory, wrapped = guarded(Recorder)
    ends: list[int] = []
    guard.ended = lambda: ends.append(len(guard.live))
    entrance: Any = wrapped.buildProtocol(PEER)
    [protocol] = factory.made
    assert not guard.live
    wire = Wire(entrance)
    entrance.makeConnection(wire)
    [connection] = guard.live
    assert (connection.label, connection.peer) == ("x tcp", PEER)
    assert connection.protocol is protocol
    assert connection.transport is protocol.transport
    assert census(guard) == {"x tcp": 1}
    wire.connectionLost(ending())
    assert not guard.live
    assert not census(guard)
    assert ends == [0]
    assert protocol.events == ["made", "lost"]


def test_a_connection_is_live_already_when_its_protocol_hears_of_it_and_still_when_it_hears_of_the_end() -> None:
    guard = Guard(Clock())
    seen: list[int] = []

    class Curious(Protocol):
        def connectionMade(self) -> None:
            seen.append(len(guard.live))

        def connectionLost(self, reason: object = None) -> None:
            seen.append(len(guard.live))

    protocol: Any = guard.wrap(Factory.forProtocol(Curious), "x tcp").buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    wire.connectionLost(ending())
    assert seen == [1, 1]


class HookedWire(Wire, Hooks):
    """One with hooks."""

    def connectionLost(self, reason: Failure) -> None:
        self._observed(reason, super().connectionLost)


def test_a_transport_with_hooks_is_given_the_protocol_and_nothing_of_the_guard_is_between_them() -> None:
    guard, factory, wrapped = guarded(Recorder)
    entrance: Any = wrapped.buildProtocol(PEER)
    [protocol] = factory.made
    wire = HookedWire(entrance)
    entrance.makeConnection(wire)
    assert wire.protocol is protocol
    assert protocol.transport is wire
    assert set(vars(protocol)) == {"events", "transport", "connected"}
    assert set(vars(wire)) - set(vars(HookedWire(protocol))) == {"observer"}
    assert census(guard) == {"x tcp": 1}
    wire.connectionLost(ending())
    assert not guard.live and wire.observer is None
    assert protocol.events == ["made", "lost"]


@pytest.mark.parametrize("make", [Recorder, Slotted])
def test_a_fake_transport_without_connection_lost_will_do(make: Callable[[], Any]) -> None:
    guard, factory, wrapped = guarded(make)
    protocol: Any = wrapped.buildProtocol(PEER)
    transport = StringTransportWithDisconnection()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    assert census(guard) == {"x tcp": 1}
    protocol.dataReceived(b"hello")
    assert transport.value() == b"HELLO"
    transport.loseConnection()
    assert not guard.live
    assert factory.made[0].events == ["made", "got hello", "lost"]


@pytest.mark.parametrize("make", [Recorder, Slotted])
def test_a_simulated_conversation_is_counted(make: Callable[[], Any]) -> None:
    guard, factory, wrapped = guarded(make)
    client, server = Recorder(), wrapped.buildProtocol(PEER)
    pump = iosim.connect(
        server, iosim.FakeTransport(server, isServer=True), client, iosim.FakeTransport(client, isServer=False)
    )
    assert census(guard) == {"x tcp": 1}
    client.transport.write(b"hello")
    pump.pump()
    pump.pump()
    assert client.events == ["made", "got HELLO"]
    client.transport.loseConnection()
    pump.flush()
    assert not guard.live
    assert factory.made[0].events[-1] == "lost"


def test_a_connection_whose_protocol_is_changed_is_one_connection_to_its_end() -> None:
    guard, _, wrapped = guarded(Recorder)
    entrance: Any = wrapped.buildProtocol(PEER)
    wire = Wire(entrance)
    entrance.makeConnection(wire)
    [connection] = guard.live
    protocol = connection.protocol
    successor = Recorder()
    protocol.transport.protocol = successor
    successor.makeConnection(protocol.transport)
    del connection
    assert census(guard) == {"x tcp": 1}
    wire.connectionLost(ending())
    assert not guard.live
    assert successor.events == ["made", "lost"]
    assert protocol.events == ["made"]


def test_a_refused_connection_is_closed_and_never_live() -> None:
    guard, _, wrapped = guarded(lambda: None)
    refusal: Any = wrapped.buildProtocol(PEER)
    wire = Wire(refusal)
    refusal.makeConnection(wire)
    assert wire.disconnecting
    assert not guard.live
    wire.connectionLost(ending())


def test_a_connection_lost_twice_is_counted_out_once() -> None:
    guard, _, wrapped = guarded(Recorder)
    ends: list[int] = []
    guard.ended = lambda: ends.append(1)
    protocol: Any = wrapped.buildProtocol(PEER)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.connectionLost(ending())
    protocol.connectionLost(ending())
    assert ends == [1]


def test_an_end_that_was_scheduled_before_another_came_is_passed_on_alone() -> None:
    guard, factory, wrapped = guarded(Recorder)
    entrance: Any = wrapped.buildProtocol(PEER)
    wire = HookedWire(entrance)
    entrance.makeConnection(wire)
    wire.connectionLost(ending())
    wire.protocol = Recorder()
    wire.connectionLost(ending())
    assert factory.made[0].events == ["made", "lost"] and not guard.live and guard.process.live == 0


def test_the_census_counts_by_listener() -> None:
    guard = Guard(Clock())
    for label, count in (("a tcp", 2), ("b tcp", 1)):
        for _ in range(count):
            protocol: Any = guard.wrap(Factory.forProtocol(Protocol), label).buildProtocol(PEER)
            protocol.makeConnection(StringTransport())
    assert census(guard) == {"a tcp": 2, "b tcp": 1}


@pytest.mark.parametrize("make", [Recorder, type("WeakSlotted", (Slotted,), {"__slots__": ("__weakref__",)})])
@pytest.mark.parametrize("transport_class", [Wire, HookedWire, StringTransportWithDisconnection])
def test_no_reference_cycle_stays_after_the_end(make: Callable[[], Any], transport_class: Any) -> None:
    guard, factory, wrapped = guarded(make)
    protocol: Any = wrapped.buildProtocol(PEER)
    transport: Any = transport_class(protocol) if issubclass(transport_class, Wire) else transport_class()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    if issubclass(transport_class, Wire):
        transport.connectionLost(ending())
    else:
        transport.loseConnection()
        del transport.protocol
    kept = [weakref.ref(factory.made.pop()), weakref.ref(transport), weakref.ref(protocol)]
    gc.disable()
    try:
        del protocol, transport
        assert [reference() for reference in kept] == [None, None, None]
    finally:
        gc.enable()
    assert not guard.live


def test_a_factory_is_started_and_stopped_without_its_line_in_the_log_and_the_port_bears_the_label() -> None:
    calls: list[str] = []

    class Lively(Factory):
        def startFactory(self) -> None:
            calls.append("start")

        def stopFactory(self) -> None:
            calls.append("stop")

    factory = Lively()
    wrapped: Any = Guard(Clock()).wrap(factory, "x tcp")
    wrapped.doStart()
    wrapped.doStop()
    assert calls == ["start", "stop"]
    assert factory.noisy is False
    assert wrapped.noisy is False
    assert wrapped.logPrefix() == "x tcp"


def test_a_factory_by_interface_alone_need_not_know_noise() -> None:
    @implementer(IProtocolFactory)
    class Plain:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def doStart(self) -> None:
            self.calls.append("start")

        def doStop(self) -> None:
            self.calls.append("stop")

        def buildProtocol(self, addr: object) -> Any:
            return Recorder()

    factory = Plain()
    wrapped: Any = Guard(Clock()).wrap(factory, "x tcp")
    wrapped.doStart()
    wrapped.doStop()
    assert factory.calls == ["start", "stop"]
    assert not hasattr(factory, "noisy")


def test_twisteds_web_server_runs_guarded_though_its_protocol_is_a_proxy() -> None:
    guard = Guard(Clock())

    class Page(Resource):
        isLeaf = True

        def render_GET(self, request: object) -> bytes:
            return b"a page"

    site: Any = Site(Page(), timeout=None, reactor=Clock())
    wrapped: Any = guard.wrap(site, "web tcp")
    wrapped.doStart()
    protocol: Any = wrapped.buildProtocol(PEER)
    wire = Wire(protocol)
    protocol.makeConnection(wire)
    assert census(guard) == {"web tcp": 1}
    protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert wire.value().endswith(b"\r\n\r\na page")
    wire.connectionLost(ending())
    assert not guard.live
    wrapped.doStop()
