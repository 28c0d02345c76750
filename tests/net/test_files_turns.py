"""Downloads on each reactor, turn by turn: they send when there is room, and do nothing when there is none."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Server
from zope.interface import implementer

from netsvc.reactor.epoll import NetsvcReactor
from netsvc.service import stream_factory
from netsvc.services.files.classic import Classic
from netsvc.services.files.core import FilesCore
from netsvc.services.files.transport import UNSENT
from tests.builders.files import make_core, pattern
from tests.builders.files_server import Custom
from tests.builders.processes import PATIENCE
from tests.builders.turned import shut

MIB = 1024 * 1024
#: Turns without a byte after which none will come.
STILL = 50


class Turned:
    """A files service on a reactor of its own, which turns when the test says so."""

    def __init__(self, reactor: Any, root: Path) -> None:
        self.reactor = reactor
        self.core: FilesCore
        self.core, self.events = make_core(root, reactor)
        self.core.start()
        factory: Any = stream_factory(Classic, self.core)
        factory.noisy = False
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.clients: list[socket.socket] = []

    def ask(self, name: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        client.setblocking(False)
        client.sendall(name + b"\n")
        self.clients.append(client)
        return client

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)

    def read(self, client: socket.socket) -> bytes:
        """Turn until the end of the stream. A file may be read by a thread, which takes its time."""
        found, deadline = b"", time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.turn()
            try:
                data = client.recv(MIB)
            except BlockingIOError:
                continue
            if not data:
                return found
            found += data
        raise AssertionError(f"no end after {len(found)} bytes")

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.turn(STILL)
        self.port.stopListening()
        self.turn(STILL)
        assert self.core.downloads == self.core.shares.eager == 0
        self.core.stop()
        shut(self.reactor)


@pytest.fixture(params=[EPollReactor, NetsvcReactor])
def turned(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Turned]:
    (tmp_path / "big").write_bytes(pattern(16 * MIB))
    (tmp_path / "f").write_bytes(b"content")
    made = Turned(request.param(), tmp_path)
    yield made
    made.stop()


def test_files_come_whole(turned: Turned) -> None:
    assert turned.read(turned.ask(b"big")) == pattern(16 * MIB)
    assert turned.read(turned.ask(b"f")) == b"content"


@pytest.mark.slow
def test_several_downloads_go_on_side_by_side(turned: Turned) -> None:
    clients = [turned.ask(b"big") for _ in range(4)]
    turned.turn(STILL)
    assert turned.core.downloads == 4
    offsets = {file.offset for file in turned.core._open}
    assert min(offsets) > 0
    for client in clients:
        assert turned.read(client) == pattern(16 * MIB)


def test_a_client_that_does_not_read_makes_the_reactor_do_nothing(turned: Turned) -> None:
    turned.ask(b"big")
    turned.turn(STILL)
    (file,) = turned.core._open
    offset = file.offset
    assert 0 < offset < file.size
    calls = 0
    moved = file.move

    class Watched(type(file)):  # type: ignore[misc]
        __slots__ = ()

        def move(self, count: int) -> None:
            nonlocal calls
            calls += 1
            moved(count)

    file.__class__ = Watched
    turned.turn(STILL)
    assert (file.offset, calls) == (offset, 0)


def test_a_large_file_leaves_in_full_segments_and_little_of_it_waits_in_the_socket(turned: Turned) -> None:
    client = turned.ask(b"big")
    turned.turn(STILL)
    [connection] = [each for each in turned.reactor.getReaders() if isinstance(each, Server)]
    options = socket.TCP_CORK, socket.TCP_NOTSENT_LOWAT
    sent_by = connection.socket
    assert [sent_by.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, UNSENT]
    kept = sent_by.dup()
    with kept:
        assert turned.read(client) == pattern(16 * MIB)
        # Otherwise the end of the file would wait for 200 ms.
        assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0


def test_no_block_waits_in_memory_behind_a_head_that_the_client_does_not_read(turned: Turned) -> None:
    head, made = bytes(MIB), list[Custom]()

    def build() -> Custom:
        made.append(Custom(turned.core, b"big", lambda transport: transport.write(head)))
        return made[0]

    factory: Any = Factory.forProtocol(build)
    factory.noisy = False
    port = turned.reactor.listenTCP(0, factory, interface="127.0.0.1")
    # As small as buffers are when the kernel is short of memory.
    port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port.getHost().port))
        client.setblocking(False)
        turned.turn(STILL)
        transport = made[0].transport
        # Not all of the head has been sent, and nothing waits behind it.
        assert 0 < len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer)) <= len(head)
    port.stopListening()


@implementer(IPullProducer)
class Waiting:
    """A pull producer that has something once in a while."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.asked = 0

    def resumeProducing(self) -> None:
        self.asked += 1

    def stopProducing(self) -> None:
        pass


def test_a_producer_that_has_nothing_now_is_not_asked_meanwhile(turned: Turned) -> None:
    made: list[Waiting] = []

    def before(transport: Any) -> None:
        made.append(Waiting(transport))
        transport.write(bytes(8 * MIB))
        transport.registerProducer(made[0], False)

    class Producing(Protocol):
        def connectionMade(self) -> None:
            before(self.transport)

    factory: Any = Factory.forProtocol(Producing)
    factory.noisy = False
    port = turned.reactor.listenTCP(0, factory, interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        client.setblocking(False)

        def receive(size: int) -> None:
            deadline = time.monotonic() + PATIENCE
            while size and time.monotonic() < deadline:
                turned.turn()
                with suppress(BlockingIOError):
                    size -= len(client.recv(MIB))
            assert size == 0

        turned.turn(STILL)
        receive(8 * MIB)
        turned.turn(STILL)
        transport, asked = made[0].transport, made[0].asked
        turned.turn(STILL)
        assert made[0].asked == asked
        assert transport not in turned.reactor.getWriters()
        transport.write(b"more")
        receive(4)
        transport.abortConnection()
        turned.turn()
    port.stopListening()
