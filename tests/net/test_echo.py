"""Echo gives back what it gets: RFC 862, over a stream and over datagrams."""

from __future__ import annotations

import hashlib
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from netsvc.guard import Guard
from netsvc.services.echo import Echo, service
from tests.builders.bench import bind, build, connect
from tests.builders.loopback import converse, reactor, turn
from tests.builders.processes import PATIENCE

KIB = 1024
MIB = 1024 * KIB
#: Twisted's own send buffer is full above this many bytes; one read of as many may come on top.
FULL = 64 * KIB

#: Every byte, line ends of all sorts, and text that is no UTF-8.
SAMPLE = bytes(range(256)) + "你好\r\nhello\n\x00\x1a\x04".encode() + "谢谢".encode("gbk")


def test_echo_speaks_tcp_and_udp_and_has_no_options() -> None:
    assert service.protocols == {"tcp": "stream", "udp": "datagram"}
    assert IHalfCloseableProtocol.implementedBy(Echo)


def test_the_stream_is_the_same_whole_byte_by_byte_and_with_more_behind() -> None:
    # RFC 862, TCP based service: "once a connection is established any data received is sent back".
    whole, single, trailing = (connect(build("echo"), "tcp")[1] for _ in range(3))
    whole.feed(SAMPLE)
    for byte in SAMPLE:
        single.feed(bytes([byte]))
    trailing.feed(SAMPLE[:100])
    trailing.feed(SAMPLE[100:] + b"more")
    assert whole.value() == single.value() == SAMPLE
    assert trailing.value() == SAMPLE + b"more"


def test_the_stream_goes_on_until_the_client_ends_it() -> None:
    # RFC 862: "This continues until the calling user terminates the connection."
    _, transport = connect(build("echo"), "tcp")
    for word in (b"exit", b"quit\r\n", b"\x04", b"\xff\xf4"):
        transport.feed(word)
    assert not transport.ended
    assert transport.reading
    transport.half_close()
    assert transport.ended
    # A transport does not close under a producer that is still registered and paused.
    assert transport.producer is None
    assert not transport.connected


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_any_bytes_in_any_pieces_come_back_in_order(pieces: list[bytes]) -> None:
    _, transport = connect(build("echo"), "tcp")
    for piece in pieces:
        transport.feed(piece)
    assert transport.value() == b"".join(pieces)
    transport.lose()


def test_a_gibibyte_offered_by_a_client_that_never_reads_is_not_taken_in() -> None:
    _, transport = connect(build("echo"), "tcp", window=0)
    taken, peak = 0, 0
    for _ in range(1024 * MIB // FULL):
        if not transport.reading:
            break
        transport.feed(bytes(FULL))
        taken += FULL
        peak = max(peak, transport.buffered)
    assert not transport.reading
    assert taken == peak <= 2 * FULL
    transport.lose()


def test_a_slow_reader_is_read_as_slowly_and_gets_every_byte() -> None:
    data = random.Random(1).randbytes(2 * MIB)
    _, transport = connect(build("echo"), "tcp", window=0)
    transport.feed(data)
    paused, peak = 0, 0
    while len(transport.value()) < len(data):
        paused += not transport.reading
        peak = max(peak, transport.buffered)
        transport.take(10000)
    assert paused
    assert peak <= 2 * FULL
    assert transport.value() == data
    assert transport.reading


def test_a_client_that_reads_again_is_read_again() -> None:
    _, transport = connect(build("echo"), "tcp", window=0)
    transport.feed(bytes(2 * FULL))
    assert not transport.reading
    transport.take(4 * FULL)
    assert transport.reading
    transport.feed(b"and on")
    assert transport.value().endswith(b"and on")


@pytest.mark.parametrize("window", [0, 10, MIB])
def test_a_client_that_half_closes_gets_everything_and_then_the_end(window: int) -> None:
    _, transport = connect(build("echo"), "tcp", window=window)
    transport.half_close(SAMPLE)
    assert transport.ended == (window > len(SAMPLE))
    transport.take(MIB)
    assert transport.value() == SAMPLE
    assert transport.ended or not transport.connected
    assert not transport.aborted


def test_a_half_close_behind_more_than_the_buffer_holds_loses_nothing() -> None:
    data = random.Random(2).randbytes(MIB)
    _, transport = connect(build("echo"), "tcp", window=0)
    transport.half_close(data)
    assert not transport.reading
    transport.take(2 * MIB)
    assert transport.value() == data
    assert not transport.connected


def test_a_connection_whose_answers_cannot_go_out_any_more_is_closed() -> None:
    _, transport = connect(build("echo"), "tcp")
    transport.feed(b"before")
    transport.loseWriteConnection()
    transport.take(0)
    assert transport.value() == b"before"
    assert not transport.connected


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello", SAMPLE, bytes(65507)])
def test_each_datagram_comes_back_whole(data: bytes) -> None:
    # RFC 862, UDP based service: "When a datagram is received, the data from it is sent back in an answering datagram."
    _, transport = bind(build("echo"), "udp")
    transport.feed(data, ("192.0.2.1", 54321))
    assert transport.written == [(data, ("192.0.2.1", 54321))]


@given(st.lists(st.tuples(st.binary(max_size=100), st.integers(1024, 39999)), max_size=20))
def test_datagrams_come_back_one_for_one_to_their_senders(datagrams: list[tuple[bytes, int]]) -> None:
    _, transport = bind(build("echo"), "udp")
    for data, port in datagrams:
        transport.feed(data, ("192.0.2.1", port))
    assert transport.written == [(data, ("192.0.2.1", port)) for data, port in datagrams]


def test_no_datagram_goes_to_an_echo_like_port_or_to_any_listener_of_the_service() -> None:
    bench = build("echo")
    _, one = bind(bench, "udp", host=IPv4Address("UDP", "127.0.0.1", 9001))
    _, other = bind(bench, "udp", host=IPv4Address("UDP", "127.0.0.1", 9002))
    for port in (0, 7, 13, 17, 19, 37, 53, 69, 123, 9001, 9002):
        one.feed(b"x", ("127.0.0.1", port))
        other.feed(b"x", ("127.0.0.1", port))
    assert one.written == other.written == []


def test_a_unix_datagram_goes_back_to_its_path_and_nowhere_without_one() -> None:
    _, transport = bind(build("echo"), "udp", host=UNIXAddress("/run/echo"))
    transport.feed(bytes(200000)[:65535], "/run/peer")
    transport.feed(b"x", None)
    assert transport.written == [(bytes(65535), "/run/peer")]


# From here on real sockets, on loopback.


class OpenPort:
    """A guarded echo server on a real port."""

    def __init__(self) -> None:
        self.guard = Guard(Clock())
        factory: Any = Factory.forProtocol(Echo)
        self._port = reactor().listenTCP(0, self.guard.wrap(factory, "echo tcp"), interface="127.0.0.1")
        self.address = ("127.0.0.1", self._port.getHost().port)

    def buffered(self) -> int:
        """Bytes that wait in the server's transports."""
        return sum(
            len(live.transport.dataBuffer) - live.transport.offset + live.transport._tempDataLen
            for live in self.guard.live
            if live.closed is None
        )

    @pytest_twisted.inlineCallbacks
    def close(self) -> Any:
        for _ in range(1000):
            if not self.guard.live:
                break
            # The reactor of the tests does not report acknowledgements.
            self.guard.clock.advance(1)
            yield turn()
        assert not self.guard.live
        yield self._port.stopListening()


@pytest_twisted.inlineCallbacks
def test_a_real_client_that_does_not_read_is_held_back_and_then_gets_every_byte() -> Any:
    data = random.Random(3).randbytes(MIB) * 64
    listening = OpenPort()
    peak = 0

    def watch() -> None:
        nonlocal peak
        peak = max(peak, listening.buffered())

    with socket.create_connection(listening.address, timeout=PATIENCE) as client:
        sent, _ = yield converse(client, data, read=False, watch=watch)
        assert 0 < sent < len(data)
        # How much was taken when nothing moved any more is the kernel's affair; that it has an end is ours.
        assert peak < MIB
        _, received = yield converse(client, data[sent:], half_close=True, watch=watch)
        assert peak < MIB
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    yield listening.close()


@pytest_twisted.inlineCallbacks
def test_a_real_client_that_half_closes_at_once_gets_everything() -> Any:
    listening = OpenPort()
    with socket.create_connection(listening.address, timeout=PATIENCE) as client:
        _, received = yield converse(client, SAMPLE * 4000, half_close=True)
    assert received == SAMPLE * 4000
    yield listening.close()


@pytest_twisted.inlineCallbacks
def test_a_real_client_that_resets_leaves_nothing_behind() -> Any:
    listening = OpenPort()
    client = socket.create_connection(listening.address, timeout=PATIENCE)
    yield converse(client, bytes(8 * MIB), read=False)
    # Unread answers make this a reset.
    client.close()
    yield listening.close()


@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
@pytest_twisted.inlineCallbacks
def test_a_real_datagram_comes_back_whole(size: int) -> Any:
    bench = build("echo")
    protocol = bench.protocol("udp")
    protocol.noisy = False
    port = reactor().listenUDP(0, protocol, interface="127.0.0.1", maxPacketSize=65535)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.setblocking(False)
        data = random.Random(size).randbytes(size)
        client.sendto(data, ("127.0.0.1", port.getHost().port))
        received = None
        for _ in range(1000):
            yield turn()
            try:
                received = client.recvfrom(65535)
                break
            except BlockingIOError:
                continue
    assert received == (data, ("127.0.0.1", port.getHost().port))
    yield port.stopListening()


@pytest_twisted.inlineCallbacks
def test_a_real_datagram_from_a_unix_peer_comes_back_if_that_can_be_told(tmp_path: Path) -> Any:
    bench = build("echo")
    protocol = bench.protocol("udp")
    protocol.noisy = False
    port = reactor().listenUNIXDatagram(str(tmp_path / "server"), protocol, 65535)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named,
    ):
        named.bind(str(tmp_path / "client"))
        named.setblocking(False)
        nameless.sendto(b"from nowhere", str(tmp_path / "server"))
        named.sendto(b"hello", str(tmp_path / "server"))
        received = b""
        for _ in range(1000):
            yield turn()
            try:
                received = named.recv(65535)
                break
            except BlockingIOError:
                continue
    assert received == b"hello"
    assert protocol.dropped == 0
    yield port.stopListening()
