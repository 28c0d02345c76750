"""Connections that the kernel does not count for, or that something stands around, are watched as well."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from tests.watched import OFF, Bench, Connection, Layer, Wire, only


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestTraps:
    """Of a transport that the kernel does not count for."""

    def test_one_call_goes_through_a_trap_and_the_next_does_not(self, bench: Bench) -> None:
        wire = Wire()
        connection = Connection(wire)
        bench.watch.add(connection, (10, False), (10, False), OFF)
        assert set(vars(wire)) & {"doRead", "doWrite"} == {"doRead", "doWrite"}
        assert (wire.doRead(), wire.doWrite()) == ("read", "written")
        assert not set(vars(wire)) & {"doRead", "doWrite"}
        assert (wire.doRead(), wire.doWrite()) == ("read", "written")
        bench.watch.remove(connection)

    def test_a_look_lays_the_traps_anew_and_the_end_takes_them_away(self, bench: Bench) -> None:
        wire = Wire()
        connection = Connection(wire)
        bench.watch.add(connection, OFF, (10, False), OFF)
        wire.doRead()
        bench.run(3)
        assert "doRead" in vars(wire)
        bench.watch.close()
        assert not set(vars(wire)) & {"doRead", "doWrite"}
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("method", ["doRead", "doWrite"])
    @pytest.mark.parametrize("last", [0.0, 5.2, 33.0, 180.0])
    def test_idle_time_counts_from_the_last_move_within_a_tenth(self, bench: Bench, method: str, last: float) -> None:
        wire = Wire()
        bench.watch.add(Connection(wire), OFF, (100, False), OFF)
        while bench.now() < last - 11:
            bench.run(11, step=0.5)
            getattr(wire, method)()
        bench.run(last - bench.now(), step=0.5)
        getattr(wire, method)()
        bench.run(120, step=0.5)
        [(when, _, word)] = bench.said
        assert word == "ended idle"
        assert last + 100 <= when <= last + 107

    def test_writing_does_not_pass_the_handshake_and_reading_does(self, bench: Bench) -> None:
        silent, talking = Wire(), Wire()
        for wire in (silent, talking):
            bench.watch.add(Connection(wire, name="x"), *only("handshake", 10))
        silent.doWrite()
        talking.doRead()
        bench.run(20)
        assert [connection.transport for _, connection, _ in bench.said] == [silent]
        assert not set(vars(talking)) & {"doRead", "doWrite"}

    def test_a_transport_that_aborts_keeps_what_it_put_there(self, bench: Bench) -> None:
        wire = Wire()
        connection = Connection(wire)
        bench.watch.add(connection, OFF, (10, False), OFF)
        wire.doRead()
        wire.doRead = lambda: "nothing any more"  # type: ignore[method-assign]
        bench.run(5)
        assert wire.doRead() == "nothing any more"
        bench.watch.remove(connection)
        assert wire.doRead() == "nothing any more"

    def test_a_fake_without_sockets_is_counted_at_its_protocol_and_write(self, bench: Bench) -> None:
        heard: list[bytes] = []

        class Echo(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                heard.append(data)
                self.transport.write(data)

        protocol, transport = Echo(), StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 4000))
        protocol.makeConnection(transport)
        bench.watch.add(Connection(transport, protocol), (5, False), (20, False), OFF)
        for _ in range(3):
            bench.run(4)
            protocol.dataReceived(b"x")
        assert transport.value() == b"xxx"
        assert heard == [b"x"] * 3
        bench.run(30)
        [(when, _, word)] = bench.said
        assert word == "ended idle"
        assert 32 <= when <= 34
        assert transport.disconnecting

    def test_what_takes_no_traps_is_never_silent_but_its_life_ends(self, bench: Bench) -> None:
        class Slotted:
            __slots__ = ("asked",)

            def loseConnection(self) -> None:
                self.asked = "lose"

        transport = Slotted()
        bench.watch.add(Connection(transport, Slotted()), (5, False), (5, False), (60, False))
        bench.run(62)
        assert bench.words() == ["ended life"]
        assert transport.asked == "lose"
        transport.asked = ""
        bench.run(7)
        assert transport.asked == "lose", "there is no abort"


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
        connection.transport = Layer(connection.transport, preamble=107)
        kernel.receive(107 + more)
        bench.watch.add(connection, *only("handshake", 10))
        bench.run(20)
        assert bench.words() == words

    @pytest.mark.parametrize(("before", "words"), [(False, ["ended handshake"]), (True, [])])
    def test_bytes_that_came_with_a_preamble_are_the_peers(self, bench: Bench, before: bool, words: list[str]) -> None:
        connection = Connection(Wire())
        connection.transport.heard_before = before
        bench.watch.add(connection, *only("handshake", 10))
        bench.run(20)
        assert bench.words() == words
        bench.watch.remove(connection)

    @pytest.mark.parametrize("counted", [True, False], ids=["kernel", "traps"])
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
        bench.watch.remove(connection)

    def test_one_whose_transport_never_comes_is_ended_all_the_same(self, bench: Bench) -> None:
        connection = Connection(Layer(None))
        asked: list[str] = []
        connection.transport.loseConnection = lambda: asked.append("lose")
        connection.transport.abortConnection = lambda: asked.append("abort")
        bench.watch.add(connection, *only("idle", 10))
        bench.run(20)
        assert bench.words() == ["ended idle"]
        assert asked == ["lose", "abort"]
