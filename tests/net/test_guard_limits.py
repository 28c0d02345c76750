"""Limits around stream protocols: who is let in, what happens to the others, and what changes while it runs."""

from __future__ import annotations

import gc
import socket
import struct
from math import inf
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.guard import Guard, GuardedFactory
from netsvc.guard.admission import Level
from netsvc.guard.tcp import GONE_AFTER
from netsvc.plan.limits import parse_limits
from tests.builders.refusals import refused
from tests.conftest import LoggedErrors


def peer(host: str) -> IPv4Address:
    return IPv4Address("TCP", host, 40000)


class Credentials:
    """The socket of a UNIX connection whose client is some user."""

    def __init__(self, user: int) -> None:
        self.user = user

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        if (level, option) != (socket.SOL_SOCKET, socket.SO_PEERCRED):
            raise OSError
        return struct.pack("3i", 1, self.user, 1)[:size]


class Wire(StringTransport):
    """A transport that tells of its end as Twisted's real ones do, and can be aborted."""

    def __init__(self, protocol: Any, user: int | None = None) -> None:
        super().__init__()
        self.protocol = protocol
        self.aborted = False
        if user is not None:
            self.socket = Credentials(user)

    def abortConnection(self) -> None:
        self.aborted = True

    def connectionLost(self, reason: Failure) -> None:
        protocol = self.protocol
        del self.protocol
        protocol.connectionLost(reason)


class GuardedConnections:
    """A guard and one guarded factory."""

    def __init__(self, process: dict[str, object] | None = None, **limits: object) -> None:
        self.clock = Clock()
        self.guard = Guard(self.clock, parse_limits(process or {}))
        self.service = Level("x", {}, self.clock)
        self.factory = self.guard.wrap(Factory.forProtocol(Protocol), "x tcp", self.service, parse_limits(limits))
        self.factory.outermost = True

    def connect(self, host: str = "192.0.2.1") -> Wire | None:
        protocol: Any = self.factory.buildProtocol(peer(host))
        if protocol is None:
            return None
        wire = Wire(protocol)
        protocol.makeConnection(wire)
        return wire

    @property
    def counts(self) -> dict[str, int]:
        return refused(self.guard)


def end(wire: Wire | None) -> None:
    assert wire is not None
    wire.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize("level", ["process", "listener"])
def test_one_too_many_is_refused_until_somebody_leaves(level: str) -> None:
    world = GuardedConnections({"connections": 2}) if level == "process" else GuardedConnections(connections=2)
    first, second = world.connect(), world.connect()
    assert first and second and world.connect() is None
    assert world.counts == {"connections": 1} and len(world.guard.live) == 2
    end(first)
    assert world.connect()


def test_a_peer_is_the_same_however_its_address_is_written() -> None:
    world = GuardedConnections(perip=1)
    assert world.connect("192.0.2.1")
    assert world.connect("::ffff:192.0.2.1") is None
    assert world.connect("2001:db8::1")
    assert world.connect("2001:db8::2:3") is None
    assert world.connect("2001:db8:0:1::1")


def test_below_something_else_the_refused_get_a_protocol_that_cuts_them_off() -> None:
    world = GuardedConnections(connections=1)
    world.factory.outermost = False
    assert world.connect()
    extra = world.connect()
    assert extra and extra.aborted and not extra.value() and len(world.guard.live) == 1


def test_the_clients_of_a_unix_socket_are_told_apart_by_their_user() -> None:
    world = GuardedConnections(perip=1)

    def connect(user: int) -> Wire:
        protocol: Any = world.factory.buildProtocol(UNIXAddress(None))
        wire = Wire(protocol, user)
        protocol.makeConnection(wire)
        return wire

    one, again, other = connect(1000), connect(1000), connect(1001)
    assert (one.aborted, again.aborted, other.aborted) == (False, True, False)
    assert world.counts == {"perip": 1}
    again.protocol.connectionLost(Failure(ConnectionDone()))
    end(one)
    assert not connect(1000).aborted
    assert {connection.peer_key for connection in world.guard.live} == {"uid 1000", "uid 1001"}


def test_a_protocol_that_is_refused_by_its_own_factory_or_cannot_be_built_takes_no_place(
    logged_errors: LoggedErrors,
) -> None:
    class Refusing(Factory):
        def buildProtocol(self, addr: object) -> None:
            return None

    class Failing(Factory):
        def buildProtocol(self, addr: object) -> Any:
            raise RuntimeError

    world = GuardedConnections(connections=1)
    world.factory.factory = Refusing()
    wire = world.connect()
    assert wire and wire.aborted
    world.factory.factory = Failing()
    wire = world.connect()
    assert wire is None or wire.aborted
    assert len(logged_errors.flush(RuntimeError)) == 1
    assert world.guard.process.live == 0
    world.guard.close()


def test_what_is_built_and_never_gets_a_transport_takes_no_place() -> None:
    # As where a protocol fails to say how it is called in the log, or TLS to begin.
    world = GuardedConnections(connections=1)
    address = peer("192.0.2.1")
    assert world.factory.buildProtocol(address) and world.guard.process.live == 1
    gc.collect()
    assert world.guard.process.live == 0
    wire = world.connect()
    gc.collect()
    assert world.guard.process.live == 1
    end(wire)
    # Of a UNIX socket's client nothing was known yet.
    assert world.factory.buildProtocol(UNIXAddress(None))
    gc.collect()
    assert world.guard.process.live == 0


def test_the_factory_can_be_changed_and_the_new_one_builds_the_next() -> None:
    class Noted(Factory):
        protocol = Protocol

        def __init__(self) -> None:
            self.notes: list[str] = []

        def doStart(self) -> None:
            self.notes.append("start")

        def doStop(self) -> None:
            self.notes.append("stop")

    world = GuardedConnections()
    old, new = Noted(), Noted()
    world.factory.factory = old
    world.factory.doStart()
    world.factory.factory = new
    assert (old.notes, new.notes) == (["start", "stop"], ["start"])
    wire = world.connect()
    assert wire and wire.protocol.protocol.factory is new
    world.factory.doStop()
    assert new.notes == ["start", "stop"]


def test_an_envelope_goes_around_every_protocol_and_is_made_once() -> None:
    made: list[IProtocolFactory] = []

    def envelope(inner: IProtocolFactory) -> IProtocolFactory:
        made.append(inner)
        return inner

    world = GuardedConnections()
    world.factory.envelope = envelope
    assert world.connect() and world.connect()
    world.factory.factory = Factory.forProtocol(Protocol)
    assert world.connect()
    assert len(made) == 2 and made[1] is world.factory.factory


def test_changed_limits_hold_for_the_next_and_nobody_is_counted_twice() -> None:
    world = GuardedConnections(connections=1)
    first = world.connect()
    world.factory.gate = world.guard.gate("x tcp", "stream", world.service, parse_limits({"connections": 2}))
    assert world.connect()
    end(first)
    assert world.guard.process.live == world.service.live == 1
    world.service.change(parse_limits({"connections": 1}))
    assert world.connect() is None


def test_the_silent_are_ended_and_counted() -> None:
    world = GuardedConnections(handshake=10)
    wire = world.connect()
    assert wire
    world.clock.pump([1] * 12)
    assert wire.disconnecting and world.counts == {"handshake": 1}
    end(wire)
    world.guard.close()
    assert not world.clock.getDelayedCalls()


def test_with_a_dry_run_nobody_is_ended() -> None:
    world = GuardedConnections(handshake=10, dryrun="handshake")
    wire = world.connect()
    assert wire
    world.clock.pump([1] * 12)
    assert not wire.disconnecting
    assert [(each.label, each.limit, each.action) for each in world.guard.refusals.last] == [
        ("x tcp", "handshake", "would have ended")
    ]


def test_the_limits_of_the_process_have_defaults_and_a_service_has_its_own() -> None:
    guard = Guard(Clock())
    assert guard.process.limits["handshake"] == 120
    own = parse_limits({"handshake": "none", "idle": 86400})
    chat = Level("chat", parse_limits({"idle": 5}), guard.clock, own)
    factory = guard.wrap(Factory.forProtocol(Protocol), "chat line", chat)
    assert isinstance(factory, GuardedFactory)
    terms, gone = factory.terms, GONE_AFTER * guard.process.limits["keepalive"]
    assert (terms.handshake, terms.idle, terms.life, terms.minrate, terms.gone) == (inf, 5, inf, 0, gone)


def test_a_file_of_addresses_that_is_not_there_is_told_of(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="missing"):
        Guard(Clock(), parse_limits({"deny": f"@{tmp_path}/missing"}))
