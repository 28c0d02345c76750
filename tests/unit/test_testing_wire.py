"""The network in memory behaves as a real one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    InvalidAddressError,
    MessageLengthError,
)
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
    ITCPTransport,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol
from zope.interface import implementer
from zope.interface.verify import verifyObject

from netsvc.testing.wire import FakeTransport, MemoryReactor, attach, bind_datagrams
from tests.builders.parrots import Datagrams, Recorder


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Recorder):
    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


class Pull:
    """A producer that writes for ever, when asked."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.stopped = False

    def resumeProducing(self) -> None:
        self.transport.write(b"x" * 1000)

    def stopProducing(self) -> None:
        self.stopped = True


def connected(window: int = 1000) -> tuple[Recorder, FakeTransport]:
    protocol = Recorder()
    return protocol, attach(protocol, window=window)


class TestStream:
    def test_is_a_tcp_transport(self) -> None:
        verifyObject(ITCPTransport, connected()[1])

    def test_bytes_go_both_ways(self) -> None:
        protocol, transport = connected()
        transport.feed(b"question")
        protocol.transport.write(b"answer")
        transport._network.turn()
        assert protocol.events == ["made", b"question"]
        assert transport.value() == b"answer"
        transport.clear()
        assert transport.value() == b""

    def test_addresses_are_those_of_a_connection(self) -> None:
        peer = IPv6Address("TCP", "2001:db8::1", 4000)
        transport = attach(Recorder(), peer=peer)
        assert transport.getPeer() == peer
        assert transport.getHost() == IPv4Address("TCP", "127.0.0.1", 40000)

    def test_socket_options_are_kept(self) -> None:
        _, transport = connected()
        assert not transport.getTcpNoDelay()
        transport.setTcpNoDelay(True)
        assert transport.getTcpNoDelay()

    def test_lose_connection_sends_what_is_buffered_first(self) -> None:
        protocol, transport = connected(window=3)
        protocol.transport.write(b"goodbye")
        protocol.transport.loseConnection()
        transport._network.turn()
        assert transport.value() == b"goo"
        assert not transport.ended
        transport.take(100)
        assert transport.value() == b"goodbye"
        assert transport.ended and not transport.aborted
        assert protocol.events == ["made", ConnectionDone]

    def test_nothing_comes_after_lose_connection(self) -> None:
        protocol, transport = connected()
        protocol.transport.loseConnection()
        transport.feed(b"late")
        transport.feed(b"later")
        assert protocol.events == ["made", ConnectionDone]

    def test_abort_throws_away_what_is_buffered(self) -> None:
        protocol, transport = connected(window=0)
        protocol.transport.write(b"never seen")
        protocol.transport.abortConnection()
        transport._network.turn()
        assert transport.aborted
        assert transport.value() == b""
        assert protocol.events == ["made", ConnectionAborted]

    def test_a_broken_connection_is_lost_once(self) -> None:
        protocol, transport = connected()
        transport.lose()
        transport.lose()
        assert protocol.events == ["made", ConnectionLost]

    def test_a_half_close_ends_a_protocol_that_knows_none(self) -> None:
        protocol, transport = connected()
        transport.half_close()
        assert protocol.events == ["made", ConnectionDone]

    def test_a_half_close_leaves_the_other_direction_open(self) -> None:
        protocol = HalfCloseable()
        transport = attach(protocol)
        transport.feed(b"last")
        transport.half_close()
        protocol.transport.write(b"answer")
        protocol.transport.loseWriteConnection()
        transport._network.turn()
        assert protocol.events == ["made", b"last", "read lost", "write lost"]
        assert transport.value() == b"answer"
        assert transport.ended
        transport.lose()

    def test_an_answer_is_written_a_round_after_what_it_answers_was_read(self) -> None:
        protocol = HalfCloseable()
        transport = attach(protocol)
        transport.half_close(b"all at once")
        assert protocol.events == ["made", b"all at once", "read lost"]
        transport.lose()

        class Answering(Recorder):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(b"answer")

        # As at a real socket: the end of the stream is read before the answer can be written.
        transport = attach(Answering())
        transport.half_close(b"question")
        assert transport.value() == b""

    def test_a_paused_protocol_gets_nothing_until_it_resumes(self) -> None:
        protocol, transport = connected()
        protocol.transport.pauseProducing()
        transport.feed(b"one ")
        transport.feed(b"two")
        assert protocol.events == ["made"]
        assert not transport.reading
        protocol.transport.resumeProducing()
        transport._network.turn()
        assert protocol.events == ["made", b"one two"]

    def test_a_push_producer_is_paused_and_resumed_by_a_slow_reader(self) -> None:
        protocol, transport = connected(window=0)
        protocol.transport.registerProducer(protocol.transport, True)
        protocol.transport.write(b"x" * 70000)
        assert not transport.reading
        assert transport.buffered == 70000
        transport.take(70000)
        assert transport.reading
        assert transport.buffered == 0

    def test_a_pull_producer_stops_at_the_window(self) -> None:
        protocol, transport = connected(window=4500)
        producer = Pull(protocol.transport)
        protocol.transport.registerProducer(producer, False)
        transport._network.turn()
        assert len(transport.value()) == 4500
        transport.lose()
        assert producer.stopped

    def test_there_is_no_descriptor(self) -> None:
        assert connected()[1].fileno() == -1

    def test_a_read_for_nothing_does_nothing(self) -> None:
        protocol, transport = connected()
        assert transport.doRead() is None
        assert protocol.events == ["made"]

    def test_an_error_of_the_protocol_comes_out(self) -> None:
        class Broken(Recorder):
            def dataReceived(self, data: bytes) -> None:
                raise KeyError(data)

        with pytest.raises(KeyError):
            attach(Broken()).feed(b"x")

    def test_connections_that_never_rest_are_an_error(self) -> None:
        protocol, transport = connected(window=10**9)
        protocol.transport.registerProducer(Pull(protocol.transport), False)
        with pytest.raises(AssertionError, match="come to rest"):
            transport._network.turn()


class TestReactor:
    def test_provides_what_it_says(self) -> None:
        reactor = MemoryReactor()
        for interface in (IReactorTime, IReactorTCP, IReactorUDP):
            verifyObject(interface, reactor)

    def test_time_carries_what_timers_write(self) -> None:
        reactor = MemoryReactor()
        protocol = Recorder()
        transport = attach(protocol, reactor)
        reactor.callLater(5, lambda: protocol.transport.write(b"late"))
        reactor.advance(4)
        assert transport.value() == b""
        reactor.advance(1)
        assert transport.value() == b"late"

    def test_records_datagram_servers(self) -> None:
        reactor = MemoryReactor()
        protocols = [DatagramProtocol() for _ in range(4)]
        ports = [
            reactor.listenUDP(0, protocols[0]),
            reactor.listenUDP(9, protocols[1], "127.0.0.1", 65535),
            reactor.listenUDP(0, protocols[2], interface="::1"),
            reactor.listenUNIXDatagram("/run/x", protocols[3], 100, 0o600),
        ]
        assert reactor.udpServers == [
            (0, protocols[0], "", 8192),
            (9, protocols[1], "127.0.0.1", 65535),
            (0, protocols[2], "::1", 8192),
        ]
        assert reactor.unixDatagramServers == [("/run/x", protocols[3], 100, 0o600)]
        assert [port.getHost() for port in ports] == [
            IPv4Address("UDP", "0.0.0.0", 40001),
            IPv4Address("UDP", "127.0.0.1", 9),
            IPv6Address("UDP", "::1", 40002),
            UNIXAddress("/run/x"),
        ]
        assert [protocol.transport for protocol in protocols] == ports
        for port in ports:
            port.close()


class TestDatagrams:
    def test_is_a_udp_transport_and_a_port(self) -> None:
        transport = bind_datagrams(Datagrams())
        verifyObject(IUDPTransport, transport)
        verifyObject(IListeningPort, transport)

    def test_datagrams_go_both_ways(self) -> None:
        protocol = Datagrams()
        transport = bind_datagrams(protocol)
        transport.feed(b"", ("192.0.2.7", 7))
        transport.write(b"answer", ("192.0.2.7", 7))
        transport.writeSequence([b"a", b"b"], ("192.0.2.7", 8))
        assert protocol.events == [(b"", ("192.0.2.7", 7))]
        assert transport.written == [(b"answer", ("192.0.2.7", 7)), (b"ab", ("192.0.2.7", 8))]

    def test_stops_once(self) -> None:
        protocol = Datagrams()
        transport = bind_datagrams(protocol)
        transport.close()
        transport.close()
        assert protocol.events == ["stopped"]
        assert protocol.transport is None

    def test_takes_the_longest_datagram_and_none_longer(self) -> None:
        transport = bind_datagrams(Datagrams())
        transport.write(bytes(65507), ("192.0.2.1", 1))
        with pytest.raises(MessageLengthError):
            transport.write(bytes(65508), ("192.0.2.1", 1))
        unix: Any = bind_datagrams(Datagrams(), UNIXAddress("/run/x"))
        unix.write(bytes(65508), "/run/y")

    @pytest.mark.parametrize(
        ("host", "peer", "error"),
        [
            ("127.0.0.1", "example.com", InvalidAddressError),
            ("127.0.0.1", "::1", InvalidAddressError),
            ("::1", "127.0.0.1", InvalidAddressError),
            ("127.0.0.1", "<broadcast>", PermissionError),
        ],
    )
    def test_refuses_an_address_that_a_socket_refuses(self, host: str, peer: str, error: type[Exception]) -> None:
        family = IPv6Address if ":" in host else IPv4Address
        with pytest.raises(error):
            bind_datagrams(Datagrams(), family("UDP", host, 9)).write(b"x", (peer, 9))

    def test_broadcasts_once_that_is_allowed(self) -> None:
        transport = bind_datagrams(Datagrams())
        assert not transport.getBroadcastAllowed()
        transport.setBroadcastAllowed(True)
        assert transport.getBroadcastAllowed()
        transport.write(b"x", ("<broadcast>", 9))

    def test_refuses_what_is_no_datagram(self) -> None:
        with pytest.raises(TypeError):
            bind_datagrams(Datagrams()).write("text", ("192.0.2.1", 1))  # type: ignore[arg-type]

    def test_a_connected_one_needs_no_address(self) -> None:
        transport: Any = bind_datagrams(Datagrams())
        transport.connect("192.0.2.1", 9)
        transport.write(b"x")
        assert transport.written == [(b"x", ("192.0.2.1", 9))]
