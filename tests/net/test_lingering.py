"""A closed connection is counted until its peer has acknowledged everything, and reset if that takes too long."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.guard import Guard
from netsvc.guard.tcp import TCPInfo, read_tcp_info
from netsvc.guard.timeouts import GRACE, LEAST_RATE, LINGER
from netsvc.plan.limits import parse_limits
from netsvc.plan.record import Record
from netsvc.reactor.epoll import NetsvcReactor
from netsvc.reactor.streams import PlainTCPPort, TCPPort
from tests.builders.accounted import TCP, Accounts, accounts, reset
from tests.builders.processes import PATIENCE

#: More than the kernel buffers for a peer that reads nothing, and less than it buffers for sending.
SIZE = 1_000_000


def read_info(connection: Any) -> TCPInfo:
    info = read_tcp_info(connection.hooks)
    assert info is not None
    return info


def small_client(port: int) -> socket.socket:
    """Connect with a receive buffer that is as small as possible."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    return client


def read_all(client: socket.socket) -> tuple[int, bool]:
    """Return how many bytes come until the end, and whether that is a reset."""
    received = 0
    try:
        while data := client.recv(65536):
            received += len(data)
    except ConnectionResetError:
        return received, True
    return received, False


class Sends(Protocol):
    """Writes `SIZE` bytes, and then ends as the factory says."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self.factory.served.append(self)
        self.transport.write(bytes(SIZE))

    def dataReceived(self, data: bytes) -> None:
        raise RuntimeError("a fault")

    def connectionLost(self, reason: object = None) -> None:
        self.factory.lost += 1


class Sending(Factory):
    protocol = Sends

    def __init__(self) -> None:
        self.served: list[Sends] = []
        self.lost = 0


class Served:
    """A guarded port on a reactor of its own, and the records of its connections."""

    def __init__(self, reactor: Any, port: type, **limits: object) -> None:
        self.clock = Clock()
        self.reactor = reactor
        self.guard = Guard(self.clock, parse_limits(limits))
        self.records: list[Record] = []
        self.guard.book.record = self.records.append
        self.factory: Any = Sending()
        self.port = port(0, self.guard.wrap(self.factory, "sends tcp"), 50, "127.0.0.1", reactor)
        self.port.startListening()
        self.clients: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, Any]:
        """Return a client that reads nothing, and its protocol, once the kernel has taken everything."""
        client = small_client(self.port.getHost().port)
        self.clients.append(client)
        self.until(lambda: bool(self.factory.served))
        served = self.factory.served.pop()
        [connection] = [each for each in self.guard.live if each.protocol is served]
        self.until(lambda: connection.look().sent == SIZE)
        return client, served

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def turn(self) -> None:
        self.reactor.runUntilCurrent()
        self.reactor.doIteration(0)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps, as the clock of a reactor does."""
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.turn()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.port.stopListening()
        # Another reactor is not told of the resets.
        deadline = time.monotonic() + PATIENCE
        while self.guard.live or self.port.connected:
            assert time.monotonic() < deadline
            self.pass_time(1)
        self.guard.close()
        for reader in [*self.reactor._internalReaders]:
            self.reactor._internalReaders.remove(reader)
            self.reactor.removeReader(reader)
            reader.connectionLost(Failure(ConnectionDone()))
        assert self.reactor.removeAll() == []


#: Our transports on both kinds of reactors; and Twisted's, inside a layer.
PLACES: dict[str, tuple[Any, type]] = {
    "fast": (NetsvcReactor, TCPPort),
    "hooked": (SelectReactor, PlainTCPPort),
    "layer": (SelectReactor, tcp.Port),
}


@pytest.fixture(params=PLACES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    reactor, port = PLACES[request.param]
    made = Served(reactor(), port)
    yield made
    made.close()


def end_all(client: socket.socket, protocol: Any) -> None:
    protocol.transport.loseConnection()


def half_close_first(client: socket.socket, protocol: Any) -> None:
    protocol.transport.loseWriteConnection()
    protocol.factory.turn()
    protocol.transport.loseConnection()


def client_half_closes(client: socket.socket, protocol: Any) -> None:
    client.shutdown(socket.SHUT_WR)


def fail(client: socket.socket, protocol: Any) -> None:
    client.send(b"?")


ENDS: list[Callable[[socket.socket, Any], None]] = [end_all, half_close_first, client_half_closes, fail]


@pytest.mark.parametrize("end", ENDS)
def test_a_closed_connection_is_counted_until_it_is_reset_at_its_deadline(
    served: Served, end: Callable[[socket.socket, Any], None], logged_errors: Any
) -> None:
    client, protocol = served.connect()
    protocol.factory.turn = served.turn
    end(client, protocol)
    served.until(lambda: served.factory.lost == 1)
    served.pass_time(LINGER - 2)
    assert (len(served.guard.live), served.guard.process.live, served.records) == (1, 1, [])
    served.pass_time(4)
    assert (len(served.guard.live), served.guard.process.live) == (0, 0)
    [record] = served.records
    assert record.reason == ("error" if end is fail else "stalled")
    received, was_reset = read_all(client)
    assert was_reset
    # What it has received and not acknowledged yet, it may have lost.
    assert record.bytes_out <= received < SIZE
    logged_errors.flush(RuntimeError)


@pytest.mark.parametrize("end", ENDS[:3])
def test_a_peer_that_reads_gets_everything_and_is_released_at_once(
    served: Served, end: Callable[[socket.socket, Any], None]
) -> None:
    client, protocol = served.connect()
    protocol.factory.turn = served.turn
    end(client, protocol)
    client.setblocking(False)
    received, is_over = 0, False
    deadline = time.monotonic() + PATIENCE
    while not is_over:
        assert time.monotonic() < deadline
        served.turn()
        try:
            data = client.recv(65536)
        except BlockingIOError:
            continue
        received, is_over = received + len(data), not data
    if not isinstance(served.reactor, NetsvcReactor):
        # Only the fast reactor is told.
        [connection] = served.guard.live
        served.until(lambda: read_info(connection).is_settled)
        served.pass_time(1)
    served.until(lambda: bool(served.records))
    [record] = served.records
    assert (received, record.bytes_out, len(served.guard.live)) == (SIZE, SIZE, 0)
    assert record.reason == ("peer" if end is client_half_closes else "server")


def test_a_slow_reader_lives_as_long_as_it_acknowledges(served: Served) -> None:
    client, protocol = served.connect()
    protocol.transport.loseConnection()
    served.until(lambda: served.factory.lost == 1)
    for _ in range(10):
        taken = 0
        while taken < LEAST_RATE * LINGER * 2:
            taken += len(client.recv(1000))
        served.pass_time(LINGER)
    assert served.records == []
    reset(client)
    served.pass_time(1)
    served.until(lambda: bool(served.records))
    assert served.records[0].reason == "reset"


def test_what_the_peer_still_sends_does_not_reset_the_connection() -> None:
    made = Served(NetsvcReactor(), TCPPort)
    client, protocol = made.connect()
    protocol.transport.loseConnection()
    made.until(lambda: made.factory.lost == 1)
    for _ in range(10):
        client.send(b"more" * 10)
        made.turn()
    client.setblocking(False)
    received = 0
    while not made.records:
        made.turn()
        try:
            received += len(client.recv(65536))
        except BlockingIOError:
            continue
    assert (received, made.records[0].bytes_out, made.records[0].reason) == (SIZE, SIZE, "server")
    made.close()


@pytest.mark.parametrize(
    ("limits", "seconds", "cause"), [({"idle": 5}, 7, ("stalled", None)), ({"life": 20}, 22, ("limit", "life"))]
)
def test_the_time_limits_hold_for_a_closed_connection(
    limits: dict[str, int], seconds: int, cause: tuple[str, str | None]
) -> None:
    made = Served(NetsvcReactor(), TCPPort, **limits)
    _client, protocol = made.connect()
    protocol.transport.loseConnection()
    made.pass_time(seconds)
    [record] = made.records
    assert (record.reason, record.limit) == cause
    made.close()


def test_a_connection_that_is_cut_for_being_idle_is_reset_after_its_grace() -> None:
    made = Served(NetsvcReactor(), TCPPort, idle=10)
    _client, protocol = made.connect()
    # It has half-closed already, so the end for the limit closes it.
    protocol.transport.loseWriteConnection()
    while not made.factory.lost:
        made.pass_time(1)
    assert made.records == []
    made.pass_time(GRACE + 1)
    [record] = made.records
    assert (record.reason, record.limit, record.bytes_out < SIZE) == ("limit", "idle", True)
    made.close()


def test_dry_run_limits_do_not_shorten_the_time() -> None:
    made = Served(NetsvcReactor(), TCPPort, idle=5, life=5, dryrun="all")
    _client, protocol = made.connect()
    protocol.transport.loseConnection()
    made.pass_time(LINGER - 2)
    assert len(made.guard.live) == 1
    made.close()


def leave_one(made: Accounts) -> socket.socket:
    """Return a client whose connection was closed before it has read everything."""
    client = small_client(made.world.port())
    made.world.clients.append(client)
    deadline = time.monotonic() + PATIENCE
    while not made.world.host.guard.live:
        assert time.monotonic() < deadline
        made.world.turn()
    [connection] = made.world.host.guard.live
    connection.transport.write(bytes(SIZE))
    connection.transport.loseConnection()
    while connection.closed is None:
        assert time.monotonic() < deadline
        made.world.turn()
    return client


def test_it_has_its_place_within_the_limits_until_then() -> None:
    with accounts(TCP, perip=1) as made:
        leave_one(made)
        assert made.world.receive(made.world.connect(made.world.port())) == b""
        assert made.status().listeners[0].counts.open == 1
        made.world.advance(LINGER + 1)
        assert made.last().reason == "stalled"
        assert made.world.greeting(made.world.port())[1] == b"one"


def test_a_drain_waits_for_it_and_resets_it_at_its_deadline() -> None:
    with accounts(TCP) as made:
        client = leave_one(made)
        made.world.root.stopService()
        for _ in range(3):
            made.world.advance(1)
        assert made.records == []
        for _ in range(4):
            made.world.advance(1)
        record = made.last()
        assert record.reason == "drain"
        assert record.bytes_out < SIZE
        assert read_all(client)[1]


def test_it_can_be_seen_and_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with accounts(TCP) as made:
        client = leave_one(made)
        [shown] = made.connections()
        assert (shown.bytes_out, shown.peer) == (SIZE + len("one\n"), f"127.0.0.1:{client.getsockname()[1]}")
        client.close()
        assert made.last().reason == "reset"
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("is_closed", [True, False])
def test_the_admin_page_ends_it_within_the_grace(is_closed: bool) -> None:
    with accounts(TCP) as made:
        if is_closed:
            leave_one(made)
        else:
            client = small_client(made.world.port())
            made.world.clients.append(client)
            made.world.turn(10)
            [connection] = made.world.host.guard.live
            # More than the kernel takes, so that it cannot be closed in order.
            connection.transport.write(bytes(20 * SIZE))
        [shown] = made.connections()
        made.world.host.close_connection(shown.id)
        made.world.turn()
        assert made.records == []
        made.world.advance(GRACE + 1)
        made.world.turn()
        assert made.last().reason == "admin"


def test_a_producer_that_fails_at_the_end_disturbs_no_later_connection(logged_errors: Any) -> None:
    class Failing:
        def stopProducing(self) -> None:
            raise RuntimeError("a fault")

        def pauseProducing(self) -> None: ...

        def resumeProducing(self) -> None: ...

    made = Served(NetsvcReactor(), TCPPort)
    client, protocol = made.connect()
    protocol.transport.registerProducer(Failing(), True)
    client.shutdown(socket.SHUT_WR)
    made.pass_time(LINGER + 2)
    assert [record.reason for record in made.records] == ["error"]
    logged_errors.flush(RuntimeError)
    # It gets the same descriptor.
    client, protocol = made.connect()
    client.shutdown(socket.SHUT_WR)
    made.until(lambda: made.factory.lost == 1)
    made.close()
