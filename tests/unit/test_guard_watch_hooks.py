"""Connections that the kernel does not count for, or that something stands around, are watched as well."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from netsvc.reactor.hooks import Door
from tests.builders.watched import OFF, Bench, Connection, Layer, Wire, only


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestCountedByTheTransport:
    """What the kernel does not count says the transport."""

    @pytest.mark.parametrize("method", ["receive", "send"])
    @pytest.mark.parametrize("last", [0.0, 5.2, 33.0, 180.0])
    def test_idle_time_counts_from_the_last_move(self, bench: Bench, method: str, last: float) -> None:
        wire = Wire()
        bench.watch.add(Connection(wire), OFF, (100, False), OFF)
        while bench.now() < last - 11:
            bench.run(11, step=0.5)
            getattr(wire, method)(bench.clock)
        bench.run(last - bench.now(), step=0.5)
        getattr(wire, method)(bench.clock)
        bench.run(120, step=0.5)
        [(when, _, word)] = bench.said
        assert word == "ended idle"
        assert last + 100 <= when <= last + 101

    def test_writing_does_not_pass_the_handshake_and_reading_does(self, bench: Bench) -> None:
        silent, talking = Wire(), Wire()
        for wire in (silent, talking):
            bench.watch.add(Connection(wire, name="x"), *only("handshake", 10))
        silent.send(bench.clock)
        talking.receive(bench.clock)
        bench.run(20)
        assert [connection.transport for _, connection, _ in bench.said] == [silent]

    def test_a_fake_without_a_socket_is_watched_by_its_layer(self, bench: Bench) -> None:
        class Echo(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.write(data)

        door = Door(Echo(), bench.clock)
        transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 4000))
        door.makeConnection(transport)
        bench.watch.add(Connection(door.protocol.transport), (5, False), (20, False), OFF)
        for _ in range(3):
            bench.run(4)
            door.dataReceived(b"x")
        assert transport.value() == b"xxx"
        bench.run(10)
        door.protocol.transport.write(b"y")
        bench.run(40)
        [(when, _, word)] = bench.said
        assert word == "ended idle"
        assert 42 <= when <= 44
        assert transport.disconnecting


class TestLayers:
    """What stands around a transport: TLS, PROXY."""

    def test_a_tls_handshake_that_is_not_complete_is_one_that_is_pending(self, bench: Bench) -> None:
        slow, done = bench.tcp(), bench.tcp()
        for (connection, kernel), complete in ((slow, False), (done, True)):
            connection.transport = Layer(connection.transport, _handshakeDone=complete)
            bench.watch.add(connection, *only("handshake", 10))
            kernel.receive(300)
        bench.run(20)
        assert [connection for _, connection, _ in bench.said] == [slow[0]]

    def test_tls_that_was_started_later_is_seen_as_well(self, bench: Bench) -> None:
        connection, kernel = bench.tcp()
        bench.watch.add(connection, (10, False), (15, False), OFF)
        kernel.receive(300)
        connection.transport.TLS = True
        connection.transport.protocol = Layer(None, _handshakeDone=False)
        bench.run(12)
        assert bench.words() == ["ended handshake"]

    def test_tls_is_closed_as_tls_is(self, bench: Bench) -> None:
        wrapped, started = bench.tcp()[0], bench.tcp()[0]
        wrapped.transport = Layer(wrapped.transport, _handshakeDone=True)
        started.transport.TLS = True
        for connection in (wrapped, started):
            bench.watch.add(connection, *only("life", 10))
        bench.run(12)
        assert wrapped.transport.asked == started.transport.asked == ["lose"]

    def test_one_that_has_half_closed_is_closed(self, bench: Bench) -> None:
        connection, _ = bench.tcp()
        connection.transport._writeDisconnected = True
        bench.watch.add(connection, *only("life", 10))
        bench.run(12)
        assert connection.transport.asked == ["lose"]

    @pytest.mark.parametrize(("more", "words"), [(0, ["ended handshake"]), (1, [])])
    def test_the_bytes_of_a_preamble_are_not_the_peers_first(self, bench: Bench, more: int, words: list[str]) -> None:
        connection, kernel = bench.tcp()
        connection.hooks.preamble = 107
        kernel.receive(107 + more)
        bench.watch.add(connection, *only("handshake", 10))
        bench.run(20)
        assert bench.words() == words

    @pytest.mark.parametrize(("more", "words"), [(0, ["ended handshake"]), (1, [])])
    def test_bytes_of_a_preamble_that_are_counted_here_are_none(
        self, bench: Bench, more: int, words: list[str]
    ) -> None:
        connection = Connection(Wire())
        connection.hooks.preamble = 107
        connection.hooks.received = 107 + more
        bench.watch.add(connection, *only("handshake", 10))
        bench.run(20)
        assert bench.words() == words

    @pytest.mark.parametrize("counted", [True, False], ids=["kernel", "transport"])
    @pytest.mark.parametrize("complete", [True, False])
    def test_tls_that_gets_its_transport_after_it_was_added(self, bench: Bench, counted: bool, complete: bool) -> None:
        connection = bench.tcp()[0] if counted else Connection(Wire())
        wire, connection.transport = connection.transport, Layer(None, _handshakeDone=False)
        bench.watch.add(connection, (10, False), (30, False), OFF)
        connection.transport.transport = wire
        if counted:
            wire.socket.receive(300)
        connection.transport._handshakeDone = complete
        bench.run(40)
        [(when, _, word)] = bench.said
        assert word == ("ended idle" if complete else "ended handshake")
        assert (30 if complete else 10) <= when <= (34 if complete else 11)
