"""The fast reactor: what it spares the system, and that nothing else differs. Twisted's own suites say the rest."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, UnsupportedAddressFamily
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.reactor.datagrams import UDPPort
from netsvc.reactor.extension import native
from tests.builders.processes import Server, connect
from tests.builders.turned import PATIENCE, Counting, Net, Wire, echo, read
from tests.conftest import LoggedErrors


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


@pytest.mark.parametrize("unix", [False, True])
def test_a_message_costs_no_call_but_the_poll_the_read_and_the_write(net: Net, unix: bool) -> None:
    wire, peer = net.connect(echo, unix=unix)
    sockets = wire.transport.socket = Counting(wire.transport.socket)
    before = dict(net.poller.calls)
    for number in range(100):
        message = b"%064d" % number
        peer.sendall(message)
        net.turn()
        assert read(peer, 64) == message
    assert net.poller.calls == {**before, "poll": before.get("poll", 0) + 100}
    if unix or native is None:
        assert (sockets.calls["recvmsg" if unix else "recv"], sockets.calls["send"]) == (100, 100)
    else:
        # Both are in C, after each other.
        assert sockets.calls == {}


@pytest.mark.parametrize("unix", [False, True])
def test_what_is_written_in_one_turn_leaves_in_one_call_from_wherever_it_was_written(net: Net, unix: bool) -> None:
    other, other_peer = net.connect(unix=unix)

    def write(wire: Wire, data: bytes) -> None:
        transport: Any
        for transport in (wire.transport, other.transport):
            transport.write(b"one ")
            transport.writeSequence([b"two ", b"three"])

    wire, peer = net.connect(write, unix=unix)
    for one in (wire, other):
        one.transport.socket = Counting(one.transport.socket)
    peer.sendall(b"now")
    net.until(lambda: wire.transport.socket.calls.get("send"))
    assert [one.transport.socket.calls["send"] for one in (wire, other)] == [1, 1]
    assert read(peer, 13) == read(other_peer, 13) == b"one two three"
    # It writes twice to the same transport here, and from a delayed call.
    net.reactor.callLater(0, write, other, b"")
    net.until(lambda: other.transport.socket.calls["send"] > 1)
    assert read(other_peer, 26) == b"one two three" * 2
    assert other.transport.socket.calls["send"] == 2


@implementer(IHalfCloseableProtocol)
class HalfClosing(Wire):
    """Answers with `answer` and the end of its stream, and closes when the peer has."""

    answer = b""
    written_to_the_end = False

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self.answer)  # type: ignore[union-attr]
        self.transport.loseWriteConnection()  # type: ignore[union-attr]

    def writeConnectionLost(self) -> None:
        self.written_to_the_end = True

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]


@pytest.mark.parametrize("answer", [b"", b"answer"])
def test_a_half_close_costs_no_call_but_the_write_and_the_shutdown(net: Net, answer: bytes) -> None:
    wire, peer = net.connect()
    wire.transport.protocol = closing = HalfClosing()
    closing.answer = answer
    closing.transport = wire.transport
    sockets = wire.transport.socket = Counting(wire.transport.socket)
    peer.sendall(b"now")
    net.until(lambda: closing.written_to_the_end)
    assert {name: sockets.calls.get(name, 0) for name in ("recv", "send", "shutdown")} == {
        # In C, if that is here.
        "recv": native is None,
        "send": bool(answer),
        "shutdown": 1,
    }
    assert read(peer, len(answer)) == answer
    assert peer.recv(1) == b""
    peer.close()
    net.until(lambda: closing.reason)
    wire.reason = closing.reason
    assert wire.reason is ConnectionDone
    assert sockets.calls.get("recv", 0) == (2 if native is None else 0)
    assert (sockets.calls["shutdown"], sockets.calls["close"]) == (1, 1)


def test_nothing_is_sent_and_no_connection_lost_inside_write(net: Net) -> None:
    wire, peer = net.connect()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    wire.transport.write(b"into a reset connection")
    assert wire.reason is None
    net.turn()
    assert wire.reason is ConnectionLost


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("from_data", [False, True])
def test_what_the_kernel_does_not_take_follows_when_it_has_room(net: Net, from_data: bool, unix: bool) -> None:
    data = bytes(range(256)) * 40000
    wire, peer = net.connect(lambda wire, _: echo(wire, data), unix=unix)
    if from_data:
        peer.sendall(b"now")
        net.until(lambda: wire.transport.waiting)
    else:
        wire.transport.write(data)
        net.turn()
    assert wire.transport.waiting
    peer.setblocking(False)
    got = bytearray()

    def more() -> bool:
        with suppress(BlockingIOError):
            got.extend(peer.recv(1 << 20))
        return len(got) == len(data)

    net.until(more)
    assert got == data
    net.turn()
    assert not wire.transport.waiting and not wire.transport.flushing


class TestAtOnce:
    def test_it_is_sent_before_the_call_returns_and_never_before_what_was_written(self, net: Net) -> None:
        wire, peer = net.connect()
        wire.transport.write_at_once(b"one ")
        assert read(peer, 4) == b"one " and not net.reactor.flushes
        wire.transport.write(b"two ")
        wire.transport.write_at_once(b"three")
        net.turn()
        assert read(peer, 9) == b"two three"

    def test_what_the_kernel_does_not_take_follows(self, net: Net) -> None:
        wire, peer = net.connect()
        data = bytes(range(256)) * 40000
        wire.transport.write_at_once(data)
        wire.transport.write_at_once(b"the end")
        net.turn()
        peer.setblocking(False)
        got = bytearray()

        def more() -> bool:
            with suppress(BlockingIOError):
                got.extend(peer.recv(1 << 20))
            return len(got) >= len(data) + 7

        net.until(more)
        assert got == data + b"the end"

    def test_in_a_busy_turn_it_is_sent_with_the_rest(self, net: Net) -> None:
        other, other_peer = net.connect()
        other.transport.socket = Counting(other.transport.socket)
        pairs = [net.connect(lambda wire, data: other.transport.write_at_once(data)) for _ in range(3)]
        for _, peer in pairs:
            peer.sendall(b"now ")
        net.until(lambda: net.reactor.ready == 3 or other.transport.socket.calls.get("send"))
        assert read(other_peer, 12) == b"now " * 3
        assert other.transport.socket.calls["send"] == 1

    def test_no_connection_is_lost_inside(self, net: Net) -> None:
        wire, peer = net.connect()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        wire.transport.write_at_once(b"into a reset connection")
        assert wire.reason is None
        net.turn()
        assert wire.reason is ConnectionLost
        wire.transport.write_at_once(b"and into a lost one")


def test_written_and_lost_means_sent_and_then_closed(net: Net) -> None:
    def last(wire: Wire, data: bytes) -> None:
        wire.transport.write(b"last ")  # type: ignore[union-attr]
        wire.transport.loseConnection()  # type: ignore[union-attr]
        # As Twisted has it: what is written while the connection is closing is sent still.
        wire.transport.write(b"words")  # type: ignore[union-attr]

    wire, peer = net.connect(last)
    peer.sendall(b"?")
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionDone
    assert (read(peer, 10), peer.recv(1)) == (b"last words", b"")


def test_an_abort_sends_nothing_more(net: Net) -> None:
    def abort(wire: Wire, data: bytes) -> None:
        wire.transport.write(b"x")  # type: ignore[union-attr]
        wire.transport.abortConnection()  # type: ignore[union-attr]
        wire.transport.write(b"y")  # type: ignore[union-attr]

    wire, peer = net.connect(abort)
    peer.sendall(b"?")
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionAborted
    with pytest.raises(ConnectionResetError):
        peer.recv(10)


def test_an_error_in_a_protocol_closes_its_connection_and_no_other(net: Net, logged_errors: LoggedErrors) -> None:
    def fail(wire: Wire, data: bytes) -> None:
        wire.transport.write(b"dropped")  # type: ignore[union-attr]
        raise LookupError("mine")

    wire, peer = net.connect(fail)
    other, other_peer = net.connect(echo)
    peer.sendall(b"?")
    other_peer.sendall(b"!")
    net.until(lambda: wire.reason)
    net.turn()
    assert read(other_peer, 1) == b"!"
    assert wire.reason is LookupError
    assert [failure.type for failure in logged_errors.flush()] == [LookupError]
    assert peer.recv(10) == b""
    assert other.reason is None


def test_a_connection_that_floods_leaves_the_others_their_turn(net: Net) -> None:
    flood, flooding = net.connect(echo)
    _, peer = net.connect(echo)
    flooding.setblocking(False)
    while True:
        try:
            flooding.send(bytes(1 << 20))
        except BlockingIOError:
            break
    peer.sendall(b"x")
    net.turn(2)
    assert read(peer, 1) == b"x"
    assert flood.reason is None


@implementer(IPullProducer)
class Pull:
    """Writes a block each time it is asked, so many times; the first time nothing."""

    def __init__(self, transport: Any, blocks: int) -> None:
        self.transport = transport
        self.left = blocks + 1
        self.blocks = blocks

    def resumeProducing(self) -> None:
        self.left -= 1
        if self.left < self.blocks:
            self.transport.write(b"block ")
        if not self.left:
            self.transport.unregisterProducer()

    def stopProducing(self) -> None:
        self.left = 0


def test_a_pull_producer_registered_after_a_write_is_asked_when_that_is_out(net: Net) -> None:
    def produce(wire: Wire, data: bytes) -> None:
        wire.transport.write(b"head ")  # type: ignore[union-attr]
        wire.transport.registerProducer(Pull(wire.transport, 5), False)  # type: ignore[union-attr]

    wire, peer = net.connect(produce)
    peer.sendall(b"?")
    net.until(lambda: wire.transport.producer is None and not wire.transport.flushing and wire.transport.connected == 1)
    net.turn(10)
    assert read(peer, 35) == b"head " + b"block " * 5


@implementer(IPushProducer)
class Push:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def test_a_push_producer_is_paused_when_the_buffer_is_full_and_resumed_when_it_is_out(net: Net) -> None:
    wire, peer = net.connect()
    push = Push()
    wire.transport.registerProducer(push, True)
    wire.transport.write(bytes(1000))
    net.turn()
    assert push.told == []
    wire.transport.write(bytes(100_000))
    assert push.told == ["pause"]
    net.turn()
    assert push.told == ["pause", "resume"]
    read(peer, 101_000)
    wire.transport.unregisterProducer()


def test_what_a_flush_brings_about_is_not_waited_for(net: Net) -> None:
    wire, _ = net.connect()
    called: list[int] = []

    def lost(reason: Failure) -> None:
        wire.reason = reason.type
        net.reactor.callLater(0, called.append, 1)

    wire.connectionLost = lost
    wire.transport.loseConnection()
    # As the main loop does: the time to wait is taken before the flush.
    net.reactor.doIteration(1000)
    net.reactor.runUntilCurrent()
    assert called == [1]


def test_who_waits_to_be_flushed_is_a_writer_and_is_removed_with_all(net: Net) -> None:
    wire, _ = net.connect()
    wire.transport.write(b"x")
    assert wire.transport in net.reactor.getWriters()
    internal = net.reactor._internalReaders
    assert wire.transport in net.reactor.removeAll()
    assert net.reactor.flushes == []
    assert internal
    net.reactor.addReader(wire.transport)


def test_the_reactor_tells_how_much_there_is_to_do(net: Net) -> None:
    pairs = [net.connect(echo) for _ in range(3)]
    for _, peer in pairs:
        peer.sendall(b"x")
    net.turn()
    assert net.reactor.ready == 3
    net.turn()
    assert net.reactor.ready == 0


def test_clients_wait_for_their_connection_before_they_write(net: Net) -> None:
    wire = Wire()
    factory = ClientFactory()
    factory.noisy = False
    factory.buildProtocol = lambda address: wire  # type: ignore[method-assign,assignment]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connector = net.reactor.connectTCP(*listener.getsockname(), factory)
        wire.connectionMade = lambda: echo(wire, b"hello")  # type: ignore[method-assign]
        net.until(lambda: wire.transport and not wire.transport.flushing)  # type: ignore[attr-defined]
        accepted, _ = listener.accept()
        accepted.settimeout(PATIENCE)
        assert read(accepted, 5) == b"hello"
    net.wires.append(wire)
    net.peers.append(accepted)
    assert connector.state == "connected"


def test_datagram_ports_are_ours_and_only_of_families_that_there_are(net: Net) -> None:
    port = net.reactor.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
    assert isinstance(port, UDPPort)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        adopted = net.reactor.adoptDatagramPort(bound.fileno(), socket.AF_INET, DatagramProtocol())
    assert isinstance(adopted, UDPPort)
    for each in (port, adopted):
        each.stopListening()
    net.turn(2)
    for adopt in (net.reactor.adoptDatagramPort, net.reactor.adoptStreamPort, net.reactor.adoptStreamConnection):
        with pytest.raises(UnsupportedAddressFamily):
            adopt(0, 99, DatagramProtocol())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "netsvc.reactor.epoll.NetsvcReactor"),
        (("--reactor", "netsvc"), "netsvc.reactor.epoll.NetsvcReactor"),
        (("--reactor", "epoll"), "twisted.internet.epollreactor.EPollReactor"),
        (("--reactor", "select"), "twisted.internet.selectreactor.SelectReactor"),
    ],
)
def test_twistd_takes_the_fast_reactor_unless_another_is_chosen(words: tuple[str, ...], expected: str) -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", before=words) as server:
        assert f"reactor class: {expected}" in server.log
        with connect(server.port("echo tcp")) as peer:
            peer.sendall(b"hello")
            assert peer.recv(10) == b"hello"
