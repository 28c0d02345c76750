from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface.verify import verifyObject

from netsvc.services.chat.connection import Outbox


class FilledOutbox:
    """An outbox over a fake transport, with a limit of 10 bytes after 2 seconds."""

    def __init__(self, transport: Any = None) -> None:
        self.transport: Any = transport or StringTransport()
        self.clock = Clock()
        self.turns: list[bool] = []
        self.overflows = 0
        self.box = Outbox(
            self.transport,
            self.clock,
            take=lambda _event: None,
            limit=10,
            patience=2.0,
            filled=lambda: self.turns.append(True),
            emptied=lambda: self.turns.append(False),
            overflowed=self.overflowed,
        )

    def overflowed(self) -> None:
        assert not self.transport.disconnected
        self.overflows += 1


@pytest.fixture
def world() -> FilledOutbox:
    return FilledOutbox()


def test_it_is_the_transports_push_producer(world: FilledOutbox) -> None:
    assert verifyObject(IPushProducer, world.box)
    assert world.transport.producer is world.box and world.transport.streaming


def test_bytes_go_straight_through_while_the_transport_takes_them(world: FilledOutbox) -> None:
    world.box.send(b"x" * 100)
    assert world.transport.value() == b"x" * 100


class DirectTransport(StringTransport):
    """A transport such as those of the fast reactor."""

    def write_at_once(self, data: bytes) -> None:
        self.write(b"now:" + data)


class UpperCase(ProtocolWrapper):
    """A layer that changes what is written, as TLS does, and passes on the attributes of the transport below."""

    def write(self, data: bytes) -> None:
        super().write(data.upper())


def test_events_are_sent_at_once_where_the_transport_can_but_never_past_a_layer_above_it() -> None:
    world = FilledOutbox(DirectTransport())
    world.box.send_event(b"event")
    assert world.transport.value() == b"now:event"
    layer: Any = UpperCase(WrappingFactory(Factory.forProtocol(Protocol)), Protocol())
    layer.makeConnection(DirectTransport())
    FilledOutbox(layer).box.send_event(b"event")
    assert layer.transport.value() == b"EVENT"


def test_bytes_are_held_up_to_the_limit_and_sent_joined(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    world.box.send(b"12345")
    world.box.send(b"67890")
    assert world.transport.value() == b""
    world.box.resumeProducing()
    world.box.send(b"!")
    assert world.transport.value() == b"1234567890!"
    world.box.pauseProducing()
    world.box.send(b"x" * 10)
    assert world.overflows == 0


def test_more_than_the_limit_aborts_the_connection_and_drops_the_rest(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    world.clock.advance(2)
    world.box.send(b"x" * 10)
    assert world.overflows == 0 and not world.transport.disconnected
    world.box.send(b"y")
    world.box.send(b"z" * 100)
    assert world.overflows == 1 and world.transport.disconnected
    assert world.transport.value() == b""


def test_what_comes_at_once_is_held_however_much_it_is(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    world.clock.advance(1.9)
    world.box.send(b"x" * 1000)
    world.box.resumeProducing()
    assert world.transport.value() == b"x" * 1000
    # The time counts from when it is full again.
    world.box.pauseProducing()
    world.clock.advance(1.9)
    world.box.send(b"y" * 1000)
    assert world.overflows == 0
    world.clock.advance(0.1)
    world.box.send(b"y")
    assert world.overflows == 1


def test_it_reports_when_it_begins_to_hold_and_when_it_has_stopped(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    assert (world.turns, world.box.full) == ([True], True)
    world.box.send(b"a")
    world.box.resumeProducing()
    assert (world.turns, world.box.full) == ([True, False], False)


def test_a_transport_that_fills_while_it_is_given_what_was_held_is_not_given_more(world: FilledOutbox) -> None:
    written = []

    def write(data: bytes) -> None:
        written.append(data)
        world.box.pauseProducing()

    world.transport.write = write
    world.box.pauseProducing()
    world.box.send(b"a")
    world.box.send(b"b")
    world.box.resumeProducing()
    world.box.send(b"c")
    assert written == [b"ab"]
    assert False not in world.turns and world.box.full
    world.box.resumeProducing()
    assert written == [b"ab", b"c"]


def test_closing_hands_over_what_is_held_and_takes_nothing_more(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    world.box.send(b"bye")
    world.box.close(unread=False)
    world.box.send(b"more")
    assert world.transport.value() == b"bye" and world.transport.producer is None
    assert world.transport.disconnecting


class HalfClosing(StringTransport):
    """A transport that can close one side, as a socket can; `TLS` tells whether TLS was started on it."""

    TLS = False
    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True


@pytest.mark.parametrize(("unread", "tls", "half"), [(True, False, True), (False, False, False), (True, True, False)])
def test_only_our_side_is_closed_over_bytes_unread(unread: bool, tls: bool, half: bool) -> None:
    transport: Any = HalfClosing()
    transport.TLS = tls
    FilledOutbox(transport).box.close(unread=unread)
    assert (transport.half_closed, transport.disconnecting) == (half, not half)


def test_a_lost_connection_takes_nothing(world: FilledOutbox) -> None:
    world.box.pauseProducing()
    world.box.send(b"a")
    world.box.stopProducing()
    world.box.send(b"b")
    assert world.transport.value() == b"" and world.overflows == 0
