"""The guard counts connections over real sockets, whatever wraps them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock

from netsvc.guard import Guard
from tests.builders.census import census
from tests.builders.certificates import write_certificate
from tests.builders.gates import Making, Recorder, Slotted
from tests.builders.loopback import reactor

# Twisted gives pyOpenSSL what that has come to call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

#: Seconds that one step of a real connection may take on a loaded machine.
PATIENCE = 60


class Client(Recorder):
    """A client that can be waited for."""

    def __init__(self, preface: bytes = b"") -> None:
        super().__init__()
        self._preface = preface
        self._waiting: list[tuple[str, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.events.append(f"got {data.decode()}")
        self._tell()

    def connectionMade(self) -> None:
        super().connectionMade()
        if self._preface:
            self.transport.write(self._preface)

    def connectionLost(self, reason: object = None) -> None:
        super().connectionLost(reason)
        self._tell()

    def event(self, wanted: str) -> Deferred[None]:
        """Fire when `wanted` has happened."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((wanted, waiting))
        self._tell()
        return waiting.addTimeout(PATIENCE, reactor())

    def _tell(self) -> None:
        for entry in [entry for entry in self._waiting if entry[0] in self.events]:
            self._waiting.remove(entry)
            entry[1].callback(None)


class Net:
    """A guarded server on one kind of real transport, and clients to it."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.guard = Guard(Clock())
        self._kind = kind
        self._key, self._certificate = write_certificate(directory, "localhost")
        self._path = directory / "socket"
        self._ends: list[Deferred[None]] = []
        self.guard.ended = lambda: self._ends.pop().callback(None) if self._ends else None
        self.clients: list[Client] = []
        self._port: Any = None

    @pytest_twisted.inlineCallbacks
    def listen(self, factory: IProtocolFactory) -> Any:
        tcp = "0:interface=127.0.0.1"
        text = {
            "tcp": f"tcp:{tcp}",
            "tls": f"ssl:{tcp}:privateKey={self._key}:certKey={self._certificate}",
            "proxy": f"haproxy:tcp:{tcp}",
            "unix": f"unix:{self._path}",
        }[self._kind]
        self._port = yield serverFromString(reactor(), text).listen(self.guard.wrap(factory, "x tcp"))

    @pytest_twisted.inlineCallbacks
    def connect(self) -> Any:
        endpoint: Any
        if self._kind == "unix":
            endpoint = UNIXClientEndpoint(reactor(), str(self._path), timeout=PATIENCE)
        else:
            endpoint = TCP4ClientEndpoint(reactor(), "127.0.0.1", self._port.getHost().port, timeout=PATIENCE)
        if self._kind == "tls":
            endpoint = wrapClientTLS(self.trust(), endpoint)
        preface = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 9001\r\n" if self._kind == "proxy" else b""
        client = yield connectProtocol(endpoint, Client(preface))
        self.clients.append(client)
        return client

    def trust(self) -> Any:
        return ssl.optionsForClientTLS("localhost", ssl.Certificate.loadPEM(self._certificate.read_bytes()))

    def identity(self) -> Any:
        return ssl.PrivateCertificate.loadPEM(self._key.read_bytes() + self._certificate.read_bytes()).options()

    def end(self) -> Deferred[None]:
        """Fire at the next end that the guard hears of."""
        end: Deferred[None] = Deferred()
        self._ends.append(end)
        return end.addTimeout(PATIENCE, reactor())

    @pytest_twisted.inlineCallbacks
    def close(self) -> Any:
        for client in self.clients:
            if "lost" not in client.events:
                client.transport.abortConnection()
                yield client.event("lost")
        while self.guard.live:
            yield self.end()
        if self._port is not None:
            yield self._port.stopListening()


@pytest.fixture(params=["tcp", "tls", "proxy", "unix"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    opened = Net(request.param, tmp_path)
    yield opened
    pytest_twisted.blockon(opened.close())


@pytest.fixture
def tcp_net(tmp_path: Path) -> Iterator[Net]:
    opened = Net("tcp", tmp_path)
    yield opened
    pytest_twisted.blockon(opened.close())


@pytest.mark.parametrize("make", [Recorder, Slotted])
@pytest_twisted.inlineCallbacks
def test_real_connections_are_counted_from_end_to_end(net: Net, make: Callable[[], Any]) -> Any:
    factory = Making(make)
    yield net.listen(factory)
    one = yield net.connect()
    other = yield net.connect()
    for client in (one, other):
        client.transport.write(b"hello")
        yield client.event("got HELLO")
    assert census(net.guard) == {"x tcp": 2}
    for connection in net.guard.live:
        transport, place = connection.transport, connection.protocol
        assert type(place) is make
        assert transport.protocol is place
        assert place.transport is transport
    gone = net.end()
    one.transport.loseConnection()
    yield gone
    assert census(net.guard) == {"x tcp": 1}
    [rest] = net.guard.live
    gone = net.end()
    rest.transport.abortConnection()
    yield gone
    yield other.event("lost")
    assert not net.guard.live
    assert [protocol.events[-1] for protocol in factory.made] == ["lost", "lost"]
    del rest, connection, transport, place, gone
    if make is Recorder:
        kept = [weakref.ref(protocol) for protocol in factory.made]
        factory.made.clear()
        gc.collect()
        assert [reference() for reference in kept] == [None, None]


@pytest_twisted.inlineCallbacks
def test_a_refused_real_connection_is_closed_without_a_word_in_the_log(net: Net) -> Any:
    yield net.listen(Making(lambda: None))
    client = yield net.connect()
    yield client.event("lost")
    assert not net.guard.live


@pytest_twisted.inlineCallbacks
def test_a_connection_that_starts_tls_is_one_connection_to_its_end(tcp_net: Net) -> Any:
    identity = tcp_net.identity()

    class Upgrading(Recorder):
        def dataReceived(self, data: bytes) -> None:
            if data == b"STARTTLS":
                self.transport.write(b"go")
                self.transport.startTLS(identity)
            else:
                super().dataReceived(data)

    factory = Making(Upgrading)
    yield tcp_net.listen(factory)
    client = yield tcp_net.connect()
    client.transport.write(b"STARTTLS")
    yield client.event("got go")
    client.transport.startTLS(tcp_net.trust())
    client.transport.write(b"secret")
    yield client.event("got SECRET")
    assert census(tcp_net.guard) == {"x tcp": 1}
    gone = tcp_net.end()
    client.transport.loseConnection()
    yield gone
    assert not tcp_net.guard.live
    assert factory.made[0].events == ["made", "got secret", "lost"]


@pytest_twisted.inlineCallbacks
def test_a_real_connection_whose_protocol_is_changed_is_one_connection_to_its_end(tcp_net: Net) -> Any:
    successor = Recorder()

    class Upgrading(Recorder):
        def dataReceived(self, data: bytes) -> None:
            self.transport.protocol = successor
            successor.makeConnection(self.transport)
            self.transport.write(b"changed")

    yield tcp_net.listen(Making(Upgrading))
    client = yield tcp_net.connect()
    client.transport.write(b"change")
    yield client.event("got changed")
    client.transport.write(b"new")
    yield client.event("got NEW")
    assert census(tcp_net.guard) == {"x tcp": 1}
    gone = tcp_net.end()
    client.transport.loseConnection()
    yield gone
    assert not tcp_net.guard.live
    assert successor.events == ["made", "got new", "lost"]


@pytest_twisted.inlineCallbacks
def test_a_protocol_with_slots_hears_of_a_half_close(tcp_net: Net) -> Any:
    factory = Making(Slotted)
    yield tcp_net.listen(factory)
    client = yield tcp_net.connect()
    client.transport.write(b"hello")
    yield client.event("got HELLO")
    gone = tcp_net.end()
    client.transport.loseWriteConnection()
    yield gone
    assert factory.made[0].events == ["made", "got hello", "half", "lost"]
