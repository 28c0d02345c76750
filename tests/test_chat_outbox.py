from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from netsvc.services.chat.outbox import Outbox


class World:
    def __init__(self, limit: int = 10) -> None:
        self.transport: Any = StringTransport()
        self.overflows = 0
        self.box = Outbox(self.transport, limit, self.overflowed)

    def overflowed(self) -> None:
        assert not self.transport.disconnected
        self.overflows += 1


@pytest.fixture
def world() -> World:
    return World()


def test_it_is_the_transports_push_producer(world: World) -> None:
    assert verifyObject(IPushProducer, world.box)
    assert world.transport.producer is world.box and world.transport.streaming


def test_bytes_go_straight_through_while_the_transport_takes_them(world: World) -> None:
    world.box.send(b"x" * 100)
    assert world.transport.value() == b"x" * 100


def test_bytes_are_held_up_to_the_limit_and_sent_joined(world: World) -> None:
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


def test_more_than_the_limit_aborts_the_connection_and_drops_the_rest(world: World) -> None:
    world.box.pauseProducing()
    world.box.send(b"x" * 10)
    world.box.send(b"y")
    world.box.send(b"z" * 100)
    assert world.overflows == 1 and world.transport.disconnected
    assert world.transport.value() == b""


def test_a_transport_that_fills_while_it_is_given_what_was_held_is_not_given_more(world: World) -> None:
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
    world.box.resumeProducing()
    assert written == [b"ab", b"c"]


def test_closing_hands_over_what_is_held_and_takes_nothing_more(world: World) -> None:
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
    box = Outbox(transport, 10, lambda: None)
    box.close(unread=unread)
    assert (transport.half_closed, transport.disconnecting) == (half, not half)


def test_a_lost_connection_takes_nothing(world: World) -> None:
    world.box.pauseProducing()
    world.box.send(b"a")
    world.box.stopProducing()
    world.box.send(b"b")
    assert world.transport.value() == b"" and world.overflows == 0
