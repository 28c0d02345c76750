"""While a worker is replaced, another one accepts what arrives at its sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.protocol import Factory

from netsvc.workers.cover import MOST_SOCKETS, Cover, CoverLink
from tests.builders.children import FakeReactor


class Counting(Factory):
    """Counts connections, and closes them at once."""

    noisy = False

    def __init__(self) -> None:
        self.accepted = 0

    def buildProtocol(self, address: Any) -> None:
        self.accepted += 1


class Reading(FakeReactor):
    """A reactor whose readers are called in `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    removeWriter = removeReader

    def turn(self) -> None:
        for reader in list(self.readers):
            if reader in self.readers:
                reader.doRead()


class World:
    """A worker with the link to its parent, and the sockets of two workers that died."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.reactor = Reading()
        self.factories = [Counting(), Counting()]
        self.link = CoverLink()
        self.stack.callback(self.link.close)
        self.cover = Cover(self.reactor, self.link.remote.detach(), self.factory_of)
        self.stack.callback(self.cover.end, take=False)
        self.dead = [self.listening(), self.listening()]

    def factory_of(self, index: int) -> Any:
        return self.factories[index] if index < len(self.factories) else None

    def listening(self) -> socket.socket:
        bound = self.stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        bound.setblocking(False)
        return bound

    def connect(self, worker: int) -> None:
        self.stack.enter_context(socket.create_connection(self.dead[worker].getsockname()))

    def ask(self, *workers: int, listener: int = 0) -> None:
        """Cover these workers and no others, and let the worker read that."""
        self.link.cover({worker: {listener: self.dead[worker].fileno()} for worker in workers})
        self.reactor.turn()

    @property
    def accepted(self) -> list[int]:
        self.reactor.turn()
        return [factory.accepted for factory in self.factories]

    def is_waiting(self, worker: int) -> bool:
        try:
            self.dead[worker].accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def world() -> Iterator[World]:
    """Make a world, and close it."""
    made = World()
    with made.stack:
        yield made


def test_connections_that_wait_or_arrive_are_accepted_by_the_listeners_factory(world: World) -> None:
    world.connect(0)
    world.ask(0, listener=1)
    assert world.accepted == [0, 1]
    world.connect(0)
    assert world.accepted == [0, 2]
    assert not world.is_waiting(0)


def test_each_worker_is_covered_until_it_is_ready(world: World) -> None:
    world.ask(0, 1)
    world.ask(1)
    world.connect(0)
    world.connect(1)
    assert world.accepted == [1, 0]
    assert world.is_waiting(0)
    world.ask(0, 1)
    world.connect(0)
    assert world.accepted == [2, 0]


def test_the_socket_stays_open_in_the_parent(world: World) -> None:
    world.ask(0)
    world.ask()
    world.connect(0)
    assert world.is_waiting(0)


def test_a_listener_that_has_been_closed_is_not_covered(world: World) -> None:
    before = len(world.reactor.readers)
    world.ask(0, listener=2)
    assert len(world.reactor.readers) == before


def test_any_number_of_listeners_is_covered(world: World) -> None:
    count = MOST_SOCKETS + 1
    world.factories *= count
    before = len(world.reactor.readers)
    world.link.cover({0: dict.fromkeys(range(count), world.dead[0].fileno())})
    world.cover.doRead()
    assert len(world.reactor.readers) == before + MOST_SOCKETS
    world.cover.doRead()
    assert len(world.reactor.readers) == before + count


@pytest.mark.parametrize("take", [True, False])
def test_what_waits_at_the_end_is_accepted_if_no_other_process_does(world: World, take: bool) -> None:
    world.ask(0)
    world.connect(0)
    world.cover.end(take=take)
    assert world.factories[0].accepted == int(take)
    assert world.is_waiting(0) is not take
    assert world.reactor.readers == []


def test_a_worker_that_reads_nothing_is_not_waited_for_and_covers_later(world: World) -> None:
    for _ in range(1000):
        world.link.cover({0: {0: world.dead[0].fileno()}})
        world.link.cover({})
    world.connect(0)
    while world.cover.doRead() is None and len(world.reactor.readers) < 2:
        # The orders that found room.
        pass
    for _ in range(1000):
        world.cover.doRead()
    world.ask(0)
    assert world.accepted[0] == 1


def test_the_end_of_the_parent_or_of_the_worker_ends_the_link(world: World) -> None:
    world.link.cover({0: {0: world.dead[0].fileno()}})
    world.link.close()
    assert world.cover.doRead() is None
    assert world.cover.doRead() is CONNECTION_DONE
    other = World()
    with other.stack:
        other.cover.end(take=False)
        other.link.cover({0: {0: other.dead[0].fileno()}})


def test_a_parent_of_an_older_version_has_no_link() -> None:
    reactor = Reading()
    cover = Cover(reactor, None, lambda index: None)
    assert reactor.readers == []
    cover.end(take=True)
