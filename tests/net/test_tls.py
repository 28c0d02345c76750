"""TLS of our own: its versions, what is negotiated, and how it begins and ends."""

from __future__ import annotations

import gc
import ssl
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.guard import Guard
from netsvc.listen.opening import listen
from netsvc.listen.tls import Certificates
from netsvc.plan.address import parse_address
from tests.builders.logs import collected
from tests.builders.loopback import reactor
from tests.builders.pems import Handshake, Pem, pair, plain_factory, serial

lines = pytest.fixture(collected)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Echo(Protocol):
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def test_a_certificate_and_its_key_serve_tls_1_3(tmp_path: Path, clock: Clock) -> None:
    pem = Pem("example.org")
    certificates = Certificates(pair(pem.write(tmp_path)), clock)
    hands = Handshake(certificates.wrap(plain_factory(Echo)), "example.org").complete()
    assert hands.serial == pem.serial
    assert hands.client.version() == "TLSv1.3"
    hands.client.write(b"hello")
    hands.move()
    clock.advance(0)
    hands.move()
    assert hands.client.read() == b"hello"


def test_one_file_may_have_both_and_parameters_before_them(tmp_path: Path, clock: Clock) -> None:
    pem = Pem("example.org")
    file = tmp_path / "both.pem"
    file.write_bytes(b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + pem.both)
    address = parse_address(f"tls:0:cert={file}", "stream")
    assert address.tls is not None
    assert serial(Certificates(address.tls, clock)) == pem.serial


def test_the_whole_chain_is_sent(tmp_path: Path, clock: Clock) -> None:
    pem, authority = Pem("example.org"), Pem("authority")
    cert, key = pem.write(tmp_path)
    cert.write_bytes(pem.cert + authority.cert)
    wrapped = Certificates(pair((cert, key)), clock).wrap(plain_factory())
    hands = old_client(wrapped, SSL.TLS1_3_VERSION)
    chain = hands.get_peer_cert_chain(as_cryptography=True)
    assert chain is not None
    assert [each.serial_number for each in chain] == [pem.serial, authority.serial]


def old_client(factory: Any, version: int, ciphers: bytes = b"ALL:@SECLEVEL=0", options: int = 0) -> SSL.Connection:
    """Shake hands with a client of OpenSSL's that speaks one version."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.set_cipher_list(ciphers)
    context.set_options(options)
    client = SSL.Connection(context)
    client.set_connect_state()
    protocol, transport = factory.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    for _ in range(5):
        with suppress(SSL.WantReadError):
            client.do_handshake()
        with suppress(SSL.WantReadError):
            protocol.dataReceived(client.bio_read(65536))
        if transport.value():
            client.bio_write(transport.value())
            transport.clear()
    return client


@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION])
def test_tls_1_0_and_1_1_are_refused(version: int, tmp_path: Path, clock: Clock) -> None:
    # RFC 8996, sections 4 and 5: they must not be used.
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory())
    with pytest.raises(SSL.Error, match="protocol version"):
        old_client(wrapped, version)


def test_tls_1_2_has_forward_secrecy_and_authenticated_encryption_only(tmp_path: Path, clock: Clock) -> None:
    # RFC 9325, section 4.2.
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory())
    client = old_client(wrapped, SSL.TLS1_2_VERSION)
    assert client.get_protocol_version_name() == "TLSv1.2"
    assert (client.get_cipher_name() or "").startswith(("ECDHE-ECDSA-AES", "ECDHE-ECDSA-CHACHA"))
    for ciphers in (b"kRSA:@SECLEVEL=0", b"ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", b"ECDHE-ECDSA-AES256-SHA384"):
        with pytest.raises(SSL.Error, match="handshake failure"):
            old_client(wrapped, SSL.TLS1_2_VERSION, ciphers)


@implementer(IProtocolNegotiationFactory)
class Speaking(Factory):
    noisy = False
    protocol = Protocol

    def acceptableProtocols(self) -> list[bytes]:
        return [b"netsvc/2", b"netsvc/1"]


@pytest.mark.parametrize(
    ("offered", "chosen"), [((), None), (("netsvc/1", "x"), "netsvc/1"), (("netsvc/1", "netsvc/2"), "netsvc/2")]
)
def test_what_a_factory_speaks_is_negotiated_in_its_order(
    offered: tuple[str, ...], chosen: str | None, tmp_path: Path, clock: Clock
) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(Speaking())
    hands = Handshake(wrapped, protocols=offered).complete()
    assert hands.client.selected_alpn_protocol() == chosen
    assert hands.protocol.negotiatedProtocol == (chosen.encode() if chosen else None)


def test_without_a_protocol_in_common_the_client_is_told_so(tmp_path: Path, clock: Clock) -> None:
    # RFC 7301, section 3.2: the fatal alert no_application_protocol.
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(Speaking())
    hands = Handshake(wrapped, protocols=["x"])
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        hands.complete()
    assert hands.transport.disconnecting


def test_a_factory_that_names_no_protocol_speaks_with_everybody(tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory())
    assert Handshake(wrapped, protocols=["x"]).complete().client.selected_alpn_protocol() is None


def test_the_guard_admits_before_tls_and_closes_through_it(tmp_path: Path, clock: Clock) -> None:
    cert, key = Pem("example.org").write(tmp_path)
    guard = Guard(clock)
    guarded: Any = guard.wrap(plain_factory(Echo), "x tcp")
    results: list[Any] = []
    listen(reactor(), parse_address(f"tls:0:cert={cert}:key={key}:interface=127.0.0.1", "stream"), guarded).addCallback(
        results.append
    )
    factory = results[0].port.factory
    assert factory is guarded
    assert results[0].certificates is not None

    class Guarded:
        @staticmethod
        def buildProtocol(_: object) -> Any:
            return factory.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1))

    hands = Handshake(Guarded).complete()
    [connection] = guard.live
    assert connection.transport is hands.protocol.protocol
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert not guard.live
    results[0].abandon()


class Answering(Protocol):
    """Answers in a way that a test chooses."""

    transport: Any
    producer: Any = None
    streaming = False

    def connectionMade(self) -> None:
        if self.producer is not None:
            self.transport.registerProducer(self.producer, self.streaming)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"answer")


class Producer:
    stopped = False

    def resumeProducing(self) -> None: ...

    def pauseProducing(self) -> None: ...

    def stopProducing(self) -> None:
        self.stopped = True


def last_words(factory: Any) -> tuple[Handshake, bytes]:
    """Ask something, and say at once that it was the last; return what comes."""
    hands = Handshake(factory).complete()
    hands.client.write(b"question")
    with suppress(ssl.SSLWantReadError):
        hands.client.unwrap()
    hands.move()
    try:
        return hands, hands.client.read()
    except ssl.SSLError as error:
        return hands, str(error).encode()


def test_a_client_that_says_farewell_with_its_question_gets_its_answer(tmp_path: Path, clock: Clock) -> None:
    # RFC 8446, section 6.1: it may go on to read.
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(Answering))
    hands, answer = last_words(wrapped)
    assert answer == b"answer"
    assert hands.transport.disconnecting
    hands.protocol.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize("streaming", [False, True])
def test_one_that_is_owed_more_than_can_be_sent_is_cut_off_and_told_no_end(
    streaming: bool, tmp_path: Path, clock: Clock
) -> None:
    class Owing(Answering):
        producer = Producer()

    Owing.streaming = streaming
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(Owing))
    hands, _ = last_words(wrapped)
    # A push producer sends as it can, and may be done.
    assert hands.transport.disconnected is not streaming
    # As a connection that is lost does.
    producer: Any = hands.transport.producer
    producer.stopProducing()
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert Owing.producer.stopped


def test_a_farewell_that_is_an_answer_to_ours_ends_the_connection(tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory())
    hands = Handshake(wrapped).complete()
    hands.protocol.loseConnection()
    hands.move()
    assert hands.client.read() == b""
    hands.client.unwrap()
    hands.move()
    assert hands.transport.disconnecting
    hands.protocol.connectionLost(Failure(ConnectionDone()))


@implementer(IHalfCloseableProtocol)
class AnsweringLater(Protocol):
    """Answers when a test wants, also after the client has closed its side."""

    transport: Any
    at_end = False
    lost: Any = None

    def readConnectionLost(self) -> None:
        self.at_end = True

    def writeConnectionLost(self) -> None: ...

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason.type


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def half_closed(version: ssl.TLSVersion, tmp_path: Path, clock: Clock) -> Handshake:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(AnsweringLater))
    hands = Handshake(wrapped, version=version).complete()
    hands.client.write(b"question")
    with suppress(ssl.SSLWantReadError):
        hands.client.unwrap()
    hands.move()
    return hands


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_half_closes_gets_the_whole_answer(version: ssl.TLSVersion, tmp_path: Path, clock: Clock) -> None:
    hands = half_closed(version, tmp_path, clock)
    served = hands.protocol.wrappedProtocol
    assert served.at_end
    # The end of the stream may follow the close_notify; a transport passes it on where it can.
    IHalfCloseableProtocol(hands.protocol).readConnectionLost()
    received = b""
    for turn in range(20):
        served.transport.write(bytes([turn]) * 50_000)
        clock.advance(0)
        hands.move()
        received += read_all(hands)
    assert not hands.transport.disconnecting
    served.transport.loseConnection()
    hands.move()
    assert (len(received), set(received), hands.transport.disconnecting) == (1_000_000, set(range(20)), True)
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert served.lost is ConnectionDone


def read_all(hands: Handshake) -> bytes:
    """Read what is there."""
    received = b""
    with suppress(ssl.SSLWantReadError):
        while data := hands.client.read(65536):
            received += data
    return received


def test_the_end_of_the_stream_without_close_notify_is_no_half_close(tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(AnsweringLater))
    hands = Handshake(wrapped).complete()
    served = hands.protocol.wrappedProtocol
    assert not IHalfCloseableProtocol.providedBy(hands.protocol)
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert not served.at_end


def test_close_notify_during_the_handshake_closes(tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(AnsweringLater))
    hands = Handshake(wrapped)
    served = hands.protocol.wrappedProtocol
    with suppress(ssl.SSLWantReadError):
        hands.client.do_handshake()
    # The alert (RFC 8446, section 6): a warning, close_notify, with the first bytes of the client.
    hands.move(b"\x15\x03\x03\x00\x02\x01\x00")
    assert hands.transport.disconnecting
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert served.lost is ConnectionDone


@pytest.mark.parametrize("version", VERSIONS)
def test_a_close_waits_for_no_close_notify_of_the_client(version: ssl.TLSVersion, tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory(AnsweringLater))
    hands = Handshake(wrapped, version=version).complete()
    served = hands.protocol.wrappedProtocol
    served.transport.write(b"goodbye")
    served.transport.loseConnection()
    assert hands.transport.disconnecting
    hands.move()
    # The client gets everything, and then our close_notify.
    assert (hands.client.read(100), hands.client.read(100)) == (b"goodbye", b"")
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    assert served.lost is ConnectionDone


def test_nothing_of_a_connection_stays(tmp_path: Path, clock: Clock) -> None:
    wrapped = Certificates(pair(Pem("example.org").write(tmp_path)), clock).wrap(plain_factory())
    hands = Handshake(wrapped, "example.org").complete()
    hands.protocol.connectionLost(Failure(ConnectionDone()))
    seen = weakref.ref(hands.protocol)
    del hands
    gc.collect()
    assert seen() is None
