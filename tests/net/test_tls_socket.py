"""TLS straight on the sockets of the fast reactor: what it guarantees to protocols, clients and limits."""

from __future__ import annotations

import gc
import os
import ssl
import struct
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IOpenSSLServerConnectionCreator,
    IProtocolNegotiationFactory,
    ISSLTransport,
)
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.protocols._tls_legacy import LegacyContextFactoryWarning
from zope.interface import alsoProvides, implementer
from zope.interface.verify import verifyObject

from netsvc.listen.certificates import CertificateFiles, read_certificate
from netsvc.listen.opening import listen
from netsvc.listen.tls import make_context
from netsvc.plan.address import parse_address
from netsvc.reactor.tls_socket import OVERHEAD, RECORD, encrypt
from tests.builders.pems import Pem, plain_factory
from tests.builders.tls_net import TLSNet
from tests.builders.turned import Counting, Wire, echo
from tests.conftest import LoggedErrors

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


PEM = Pem("localhost")


@cache
def server_context(directory: Path) -> SSL.Context:
    cert, key = PEM.write(directory)
    return make_context(read_certificate(CertificateFiles("a", str(cert), str(key))))


@pytest.fixture
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSNet]:
    made = TLSNet(server_context(tmp_path_factory.getbasetemp()))
    yield made
    made.close()


_NUMBERS = b"".join(struct.pack(">I", number) for number in range(50_001))


def pattern(size: int) -> bytes:
    return (_NUMBERS * (size // len(_NUMBERS) + 1))[:size]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 64, RECORD - 1, RECORD, RECORD + 1, 1_000_000])
def test_whatever_is_sent_comes_back_unchanged(net: TLSNet, size: int, version: ssl.TLSVersion) -> None:
    _, client = net.converse(echo, version)
    assert client.tls.version() == version.name.replace("_", ".")
    sent, received = pattern(size), b""
    for start in range(0, size, 100_000):
        client.send(sent[start : start + 100_000])
        received += client.read(min(100_000, size - start))
    assert received == sent


def test_a_message_costs_no_call_but_the_poll_the_read_and_the_write(net: TLSNet) -> None:
    wire, client = net.converse(echo)
    calls = wire.transport.socket = Counting(wire.transport.socket)
    before = dict(net.poller.calls)
    for number in range(100):
        message = b"%064d" % number
        client.tls.send(message)
        net.turn()
        assert client.tls.recv(100) == message
    assert net.poller.calls == {**before, "poll": before["poll"] + 100}
    assert calls.calls == {"recv": 100, "send": 100}


def test_what_is_written_in_one_turn_leaves_in_one_record(net: TLSNet) -> None:
    def answer(wire: Any, data: bytes) -> None:
        wire.transport.write(b"one ")
        wire.transport.writeSequence([b"two ", b"three"])

    wire, client = net.converse(answer)
    calls = wire.transport.socket = Counting(wire.transport.socket)
    client.send(b"now")
    assert client.read(13) == b"one two three"
    net.reactor.callLater(0, answer, wire, b"")
    assert client.read(13) == b"one two three"
    assert calls.calls["send"] == 2


def test_a_download_costs_a_call_a_record(net: TLSNet) -> None:
    class Blocks:
        left = 64

        def resumeProducing(self) -> None:
            wire.transport.write(bytes(RECORD * 8))
            self.left -= 1
            if not self.left:
                wire.transport.unregisterProducer()

        def stopProducing(self) -> None: ...

    wire, client = net.converse()
    calls = wire.transport.socket = Counting(wire.transport.socket)
    wire.transport.registerProducer(Blocks(), False)
    assert client.read(64 * 8 * RECORD) == bytes(64 * 8 * RECORD)
    # And one more each time that the kernel has no room.
    assert 64 * 8 <= calls.calls["send"] <= 64 * 8 * 2
    assert set(calls.calls) == {"send"}


@implementer(IHandshakeListener)
class Early(Wire):
    """Writes before the handshake."""

    ends = False
    completed = False

    def connectionMade(self) -> None:
        self.transport.write(b"first ")  # type: ignore[union-attr]
        if self.ends:
            self.transport.loseConnection()  # type: ignore[union-attr]

    def handshakeCompleted(self) -> None:
        self.completed = True
        self.transport.write(b"second")  # type: ignore[union-attr]


def test_what_is_written_before_the_end_of_the_handshake_waits_for_it(net: TLSNet) -> None:
    net.build = Early
    client = net.client()
    wire: Any = net.wires[-1]
    net.turn(5)
    with pytest.raises(BlockingIOError):
        os.read(client.tls.fileno(), 100)
    assert not wire.completed
    client.shake_hands()
    assert client.read(12) == b"first second"
    assert wire.completed


def test_a_close_before_the_handshake_waits_for_what_was_written(net: TLSNet) -> None:
    net.build = type("Ending", (Early,), {"ends": True})
    client = net.client()
    client.step(client.tls.do_handshake)
    # After `loseConnection` nothing more is written.
    assert client.read(100) == b"first "
    net.until(lambda: net.wires[-1].reason)
    assert net.wires[-1].reason is ConnectionDone


def test_a_close_before_the_handshake_aborts_if_nothing_was_written(net: TLSNet) -> None:
    client = net.client()
    net.wires[-1].transport.loseConnection()  # type: ignore[union-attr]
    net.turn(2)
    assert net.wires[-1].reason is ConnectionAborted
    with pytest.raises(ConnectionResetError):
        client.step(client.tls.do_handshake)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_close_sends_what_was_written_then_close_notify_then_the_end(net: TLSNet, version: ssl.TLSVersion) -> None:
    wire, client = net.converse(version=version)
    data = pattern(3_000_000)
    wire.transport.write(data)
    wire.transport.loseConnection()
    assert not wire.reason
    assert client.read(len(data) + 1) == data
    net.until(lambda: wire.reason)
    assert (wire.reason, wire.transport.observer, client.tls.unwrap().recv(1)) == (ConnectionDone, None, b"")


def test_a_producer_is_waited_for(net: TLSNet) -> None:
    wire, client = net.converse()
    wire.transport.registerProducer(Idle(), True)
    wire.transport.loseConnection()
    wire.transport.write(b"the producer may")
    net.turn(3)
    assert not wire.reason
    wire.transport.unregisterProducer()
    wire.transport.write(b"nobody else")
    assert client.read(100) == b"the producer may"
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionDone


class Idle:
    stopped = False

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None:
        self.stopped = True


@implementer(IHalfCloseableProtocol)
class Halves(Wire):
    ends = 0
    wrote_to_the_end = False

    def readConnectionLost(self) -> None:
        self.ends += 1

    def writeConnectionLost(self) -> None:
        self.wrote_to_the_end = True


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_half_closes_gets_the_whole_answer(net: TLSNet, version: ssl.TLSVersion) -> None:
    net.build = Halves
    wire, client = net.converse(version=version)
    client.send(b"question")
    client.close_notify()
    net.until(lambda: wire.ends)
    assert wire.transport.peer_first
    # Some resume reading whenever their send buffer is empty.
    wire.transport.resumeProducing()
    net.turn(3)
    data = pattern(2_000_000)
    wire.transport.write(data)
    wire.transport.loseConnection()
    assert client.read(len(data)) == data
    net.until(lambda: wire.reason)
    assert (wire.ends, wire.reason) == (1, ConnectionDone)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_half_closes_reads_on(net: TLSNet, version: ssl.TLSVersion) -> None:
    net.build = Halves
    received = []
    wire, client = net.converse(lambda wire, data: received.append(data), version)
    wire.transport.write(b"all")
    wire.transport.loseWriteConnection()
    assert client.read(100) == b"all"
    assert wire.wrote_to_the_end
    if version == ssl.TLSVersion.TLSv1_3:
        client.send(b"more")
        net.until(lambda: received)
        assert received == [b"more"]
    wire.transport.loseConnection()
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionDone


def test_any_other_protocol_answers_a_client_that_half_closes_and_the_connection_is_closed(net: TLSNet) -> None:
    wire, client = net.converse(lambda wire, data: wire.transport.write(pattern(1_000_000)))
    producer = Idle()
    wire.transport.registerProducer(producer, True)
    client.send(b"question")
    client.close_notify()
    assert client.read(2_000_000) == pattern(1_000_000)
    net.until(lambda: wire.reason)
    assert (wire.reason, producer.stopped) == (ConnectionDone, True)


def test_it_is_reset_if_more_cannot_be_sent(net: TLSNet) -> None:
    class Endless(Idle):
        def resumeProducing(self) -> None:
            wire.transport.write(bytes(100_000))

    wire, client = net.converse()
    wire.transport.registerProducer(Endless(), False)
    client.close_notify()
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionAborted


def test_an_end_without_close_notify_is_a_loss_to_the_protocol_and_the_end_to_the_observer(net: TLSNet) -> None:
    net.build = Halves
    wire, client = net.converse()
    observer = wire.transport.observer
    client.tls.close()
    net.until(lambda: wire.reason)
    assert (wire.reason, wire.ends, observer.reason) == (ConnectionLost, 0, ConnectionDone)


def test_a_reset_is_a_loss_to_both(net: TLSNet) -> None:
    wire, client = net.converse()
    observer = wire.transport.observer
    client.tls.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    client.tls.close()
    net.until(lambda: wire.reason)
    assert (wire.reason, observer.reason) == (ConnectionLost, ConnectionLost)


def test_what_is_no_tls_ends_the_connection_with_an_alert(net: TLSNet) -> None:
    client = net.client()
    wire: Any = net.wires[-1]
    observer = wire.transport.observer
    os.write(client.tls.fileno(), b"\x16\x03\x01\x00\x05hello")
    net.until(lambda: wire.reason)
    assert issubclass(wire.reason, SSL.Error)
    assert observer.reason is ConnectionDone
    # RFC 8446, section 6: a fatal alert.
    assert os.read(client.tls.fileno(), 100)[:1] == b"\x15"


def test_a_handshake_that_stands_still_delays_nobody(net: TLSNet) -> None:
    slow = net.client()
    os.write(slow.tls.fileno(), b"\x16\x03\x01\x02\x00\x01")
    _, client = net.converse(echo)
    client.send(b"hello")
    assert client.read(5) == b"hello"
    assert not net.wires[0].reason


def test_a_client_that_does_not_read_pauses_the_producer_and_gets_everything_in_order(net: TLSNet) -> None:
    class Counted(Idle):
        paused = 0

        def pauseProducing(self) -> None:
            self.paused += 1

    wire, client = net.converse()
    producer = Counted()
    wire.transport.registerProducer(producer, True)
    expected = b""
    # Pieces that are no multiple of a record: one that the kernel did not take becomes longer before it is retried.
    while not wire.transport.waiting or len(expected) < 3_000_000:
        piece = pattern(70_001)
        expected += piece
        wire.transport.write(piece)
        net.turn()
    assert producer.paused
    assert client.read(len(expected)) == expected


class Stubborn:
    """An OpenSSL connection that says once of one of its methods that it has to wait."""

    def __init__(self, real: Any, method: str, error: SSL.Error) -> None:
        self._real = real
        self._method = method
        self._error: SSL.Error | None = error

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self._error is not None:
            error, self._error = self._error, None
            return self._raise(error)
        return getattr(self._real, name)

    @staticmethod
    def _raise(error: SSL.Error) -> Any:
        def call(*arguments: Any) -> None:
            raise error

        return call


@pytest.mark.parametrize(
    ("method", "error"),
    [("recv", SSL.WantWriteError()), ("send", SSL.WantReadError()), ("send", SSL.WantWriteError())],
)
def test_reading_may_have_to_wait_for_room_and_writing_for_data(net: TLSNet, method: str, error: SSL.Error) -> None:
    wire, client = net.converse(echo)
    wire.transport.socket = Stubborn(wire.transport.socket, method, error)
    for number in range(3):
        client.send(b"message %d" % number)
    assert client.read(27) == b"message 0message 1message 2"
    wire.transport.loseConnection()
    assert client.read(1) == b""


def test_the_handshake_may_have_to_wait_for_room(net: TLSNet) -> None:
    client = net.client()
    transport: Any = net.wires[-1].transport
    transport.socket = Stubborn(transport.socket, "do_handshake", SSL.WantWriteError())
    client.shake_hands()
    assert not transport.reading_held and not transport.waiting


def test_close_notify_may_have_to_wait_for_room(net: TLSNet) -> None:
    wire, client = net.converse()
    wire.transport.socket = Stubborn(wire.transport.socket, "shutdown", SSL.WantWriteError())
    wire.transport.loseConnection()
    assert client.read(1) == b""
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionDone


class Limit:
    """A limit of bytes a second, which allows a portion each time that the test lets it."""

    def __init__(self, hold: Any) -> None:
        self._hold = hold
        self.left = 0
        self.spent = 0
        self.closed = False

    def allow(self) -> int:
        if self.left <= 0:
            self._hold()
            raise BlockingIOError
        return self.left

    def spend(self, size: int) -> None:
        self.left -= size
        self.spent += size

    def close(self) -> None:
        self.closed = True


def test_limits_of_bytes_a_second_count_records_and_hold_the_connection(net: TLSNet) -> None:
    wire, client = net.converse(echo)
    transport = wire.transport
    reads = transport.reads = Limit(transport.hold_reading)
    writes = transport.writes = Limit(transport.hold_writing)
    message = pattern(100_000)
    client.send(message)
    net.turn(5)
    assert (reads.spent, writes.spent) == (0, 0)
    received = b""
    while len(received) < len(message):
        for limit, release in ((reads, transport.release_reading), (writes, transport.release_writing)):
            if limit.left <= 0:
                limit.left = 1000
                release()
        net.turn(2)
        with suppress(ssl.SSLWantReadError):
            while data := client.tls.recv(65536):
                received += data
    assert received == message
    assert reads.spent >= len(message) + OVERHEAD * (len(message) // RECORD)
    assert writes.spent >= len(message) + OVERHEAD * (len(message) // RECORD)
    transport.abortConnection()
    net.turn(2)
    assert reads.closed and writes.closed


def test_bytes_for_many_are_sent_at_once_and_encrypted(net: TLSNet) -> None:
    other, other_client = net.converse()
    _, client = net.converse(lambda wire, data: other.transport.write_at_once(data))
    calls = other.transport.socket = Counting(other.transport.socket)
    client.tls.send(b"a secret")
    net.turn()
    assert calls.calls == {"send": 1}
    assert other_client.tls.recv(100) == b"a secret"
    # Longer than a record, and behind what waits.
    other.transport.write(b"first ")
    other.transport.write_at_once(b"second ")
    other.transport.write_at_once(bytes(RECORD + 1))
    assert other_client.read(13 + RECORD + 1) == b"first second " + bytes(RECORD + 1)


def test_it_is_what_twisteds_tls_transport_is(net: TLSNet) -> None:
    wire, _ = net.converse()
    transport: Any = wire.transport
    assert verifyObject(ISSLTransport, wire.transport)
    assert INegotiated.providedBy(wire.transport) and transport.negotiatedProtocol is None
    assert isinstance(transport.getHandle(), SSL.Connection)
    assert transport.getHandle().get_protocol_version_name() == "TLSv1.3"
    assert transport.getPeerCertificate() is None
    assert transport.TLS
    with pytest.raises(OSError, match="encrypted"):
        transport.send_now(b"in plain text")
    with pytest.raises(OSError, match="encrypted"):
        transport.send_file(0, 0, 1)
    with pytest.raises(RuntimeError, match="encrypted"):
        transport.startTLS(None)
    with pytest.raises(TypeError):
        transport.write("text")


def test_a_protocol_that_fails_ends_its_connection_only(net: TLSNet, logged_errors: LoggedErrors) -> None:
    def fail(wire: Any, data: bytes) -> None:
        wire.transport.write(b"not sent")
        raise RuntimeError("no")

    wire, client = net.converse(fail)
    observer = wire.transport.observer
    client.send(b"now")
    net.until(lambda: wire.reason)
    assert observer.reason is RuntimeError
    assert logged_errors.flush(RuntimeError)


def test_the_handle_of_a_closed_connection_writes_nothing_to_the_next_one(net: TLSNet) -> None:
    wire, _ = net.converse()
    handle = wire.transport.getHandle()
    wire.transport.loseConnection()
    net.until(lambda: wire.reason)
    with pytest.raises(SSL.Error):
        handle.send(b"into the descriptor of somebody else")
    handle.shutdown()
    with pytest.raises(SSL.Error):
        handle.recv(1)


def test_nothing_of_a_connection_stays(net: TLSNet) -> None:
    wire, client = net.converse(echo)
    client.send(b"hello")
    assert client.read(5) == b"hello"
    handle, transport = weakref.ref(wire.transport.getHandle()), weakref.ref(wire.transport)
    client.tls.close()
    net.until(lambda: wire.reason)
    gc.disable()
    try:
        wire.transport = None
        assert (handle(), transport()) == (None, None)
    finally:
        gc.enable()


@implementer(IOpenSSLServerConnectionCreator)
class Contexts:
    """Makes the connections itself, as an `IOpenSSLServerConnectionCreator` may."""

    def serverConnectionForTLS(self, tls: Any) -> SSL.Connection:
        raise NotImplementedError


class Guarding(Factory):
    """Has a factory inside, as a guarded one."""

    envelope = None

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.buildProtocol = factory.buildProtocol  # type: ignore[method-assign]


@pytest.mark.parametrize("is_twisted", [False, True])
@pytest.mark.parametrize("is_guarded", [False, True])
def test_what_a_factory_speaks_is_negotiated(net: TLSNet, is_twisted: bool, is_guarded: bool) -> None:
    factory: Any = net.port.factory
    factory.acceptableProtocols = lambda: [b"netsvc/2", b"netsvc/1"]
    alsoProvides(factory, IProtocolNegotiationFactory)
    if is_guarded:
        net.port.factory = Guarding(factory)
    if is_twisted:
        options = PrivateCertificate.loadPEM(PEM.both).options()
        encrypt(net.port, lambda sock: SSL.Connection(options.getContext(), sock))
    client = net.client(offered=("netsvc/1", "netsvc/2", "x"))
    client.shake_hands()
    transport: Any = net.wires[-1].transport
    assert client.tls.selected_alpn_protocol() == "netsvc/2"
    assert transport.negotiatedProtocol == b"netsvc/2"


def test_listen_ssl_encrypts_on_the_socket_where_it_can(net: TLSNet) -> None:
    factory = plain_factory(Wire)
    for contexts, is_direct in ((CertificateOptions(), True), (Contexts(), False)):
        port = net.reactor.listenSSL(0, factory, contexts, interface="127.0.0.1")
        assert ("transport" in vars(port)) is is_direct
        assert (port.factory is factory) is is_direct
        port.stopListening()
    with pytest.warns(LegacyContextFactoryWarning), pytest.raises(TypeError, match="getContext"):
        net.reactor.listenSSL(0, factory, object())


@pytest.mark.parametrize(
    "form",
    ["ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1", "tls:0:cert={cert}:key={key}:interface=127.0.0.1"],
)
def test_an_address_with_tls_encrypts_what_a_service_has(net: TLSNet, tmp_path: Path, form: str) -> None:
    cert, key = PEM.write(tmp_path)
    net.port.stopListening()
    opening = listen(net.reactor, parse_address(form.format(cert=cert, key=key), "stream"), Guarding(net.port.factory))
    opening.addCallback(lambda opened: setattr(net, "port", opened.port))
    client = net.client()
    client.shake_hands()
    served: Any = net.wires[-1].transport
    served.write(b"secret")
    assert client.read(6) == b"secret"
