"""Real connections that are silent, do not read, or last for too long come to their end as they should."""

from __future__ import annotations

import socket
import ssl as standard_ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from netsvc.guard.timeouts import GRACE, Watch, Watched
from netsvc.reactor.hooks import Door
from tests.builders.certificates import write_certificate
from tests.builders.loopback import converse, reactor, turn

# Twisted gives pyOpenSSL what that has come to call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

OFF = (None, False)


class Connection(Watched):
    __slots__ = ("protocol", "transport")

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.hooks = self.transport = protocol.transport


class Net:
    """A server whose connections are watched, by a clock of the test's."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.greeting = b""
        self.watch = Watch(
            self.clock,
            lambda connection, limit: self.said.append(f"ended {limit}"),
            lambda connection, limit: self.said.append(f"reported {limit}"),
        )
        self.live: set[Any] = set()
        self._kind = kind
        self._key, self.certificate = write_certificate(directory, "localhost")
        self._path = str(directory / "socket")
        self._port: Any = None
        self._clients: list[socket.socket] = []

    @pytest_twisted.inlineCallbacks
    def listen(self, *limits: Any) -> Any:
        net = self

        class Watching(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.connection = Connection(self)
                net.live.add(self)
                net.watch.add(self.connection, *limits)
                self.transport.write(net.greeting)

            def dataReceived(self, data: bytes) -> None:
                self.transport.write(data)

            def connectionLost(self, reason: object = None) -> None:
                net.live.discard(self)
                net.watch.remove(self.connection)

        factory = Factory.forProtocol(lambda: Door(Watching(), self.clock))
        text = {
            "tcp": "tcp:0:interface=127.0.0.1",
            "tls": f"ssl:0:interface=127.0.0.1:privateKey={self._key}:certKey={self.certificate}",
            "unix": f"unix:{self._path}",
        }[self._kind]
        self._port = yield serverFromString(reactor(), text).listen(factory)

    def connect(self) -> socket.socket:
        address: IPv4Address | UNIXAddress = self._port.getHost()
        if isinstance(address, UNIXAddress):
            client = socket.socket(socket.AF_UNIX)
            client.connect(self._path)
        else:
            client = socket.create_connection(("127.0.0.1", address.port))
        self._clients.append(client)
        return client

    @pytest_twisted.inlineCallbacks
    def turns(self, until: Callable[[], bool]) -> Any:
        for _ in range(100_000):
            if until():
                return
            yield turn()
        raise AssertionError("it does not come to that")

    @pytest_twisted.inlineCallbacks
    def close(self) -> Any:
        for client in self._clients:
            client.close()
        yield self.turns(lambda: not self.live)
        if self._port is not None:
            yield self._port.stopListening()
        self.watch.close()
        assert not self.clock.getDelayedCalls()


@pytest.fixture(params=["tcp", "unix", "tls"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    net = Net(request.param, tmp_path)
    yield net
    pytest_twisted.blockon(net.close())


@pytest_twisted.inlineCallbacks
def test_a_silent_client_is_closed_at_the_handshake(net: Net) -> Any:
    yield net.listen((10, False), (60, False), OFF)
    client = net.connect()
    yield net.turns(lambda: bool(net.live))
    net.clock.advance(9.9)
    assert not net.said
    net.clock.advance(0.6)
    assert net.said == ["ended handshake"]
    yield net.turns(lambda: not net.live)
    # TLS that was never spoken has no orderly end: Twisted aborts.
    try:
        _, received = yield converse(client, b"")
        assert received == b""
    except ConnectionResetError:
        assert net._kind == "tls"


@pytest_twisted.inlineCallbacks
def test_a_tls_client_that_has_begun_its_handshake_is_closed_all_the_same(net: Net) -> Any:
    yield net.listen((10, False), OFF, OFF)
    client = net.connect()
    # The first five bytes of a ClientHello's record; to any other protocol they are as good as any.
    client.sendall(b"\x16\x03\x01\x02\x00")
    yield net.turns(lambda: bool(net.live))
    yield converse(client, b"", read=False)
    net.clock.advance(10.5)
    assert net.said == (["ended handshake"] if net._kind == "tls" else [])


@pytest_twisted.inlineCallbacks
def test_a_tls_client_that_has_done_its_handshake_and_nothing_more_may_stay_until_it_is_idle(net: Net) -> Any:
    if net._kind != "tls":
        return
    yield net.listen((10, False), (60, False), OFF)
    raw = net.connect()
    context = standard_ssl.create_default_context(cafile=str(net.certificate))
    client = yield deferToThread(context.wrap_socket, raw, server_hostname="localhost")
    yield net.turns(lambda: all(protocol.transport._handshakeDone for protocol in net.live))
    net.clock.advance(10.5)
    assert not net.said
    net.clock.advance(61)
    assert net.said == ["ended idle"]
    # It hears a close_notify, which is more than the end of the stream.
    assert (yield deferToThread(client.recv, 1)) == b""
    client.close()


@pytest_twisted.inlineCallbacks
def test_a_client_that_does_not_read_is_idle_then_closed_and_then_cut_off(net: Net) -> Any:
    if net._kind == "tls":
        return
    net.greeting = bytes(20_000_000)
    yield net.listen(OFF, (60, False), OFF)
    client = net.connect()
    client.sendall(b"more, please")
    yield net.turns(lambda: bool(net.live))
    yield converse(client, b"", read=False)
    net.clock.advance(61)
    # The kernel has another clock.
    if not net.said:
        net.clock.advance(65)
    assert net.said == ["ended idle"]
    yield converse(client, b"", read=False)
    assert net.live, "what was written may still be read"
    net.clock.advance(GRACE + 0.5)
    yield net.turns(lambda: not net.live)


@pytest_twisted.inlineCallbacks
def test_a_client_that_reads_after_all_gets_what_was_written_and_then_the_end(net: Net) -> Any:
    if net._kind == "tls":
        return
    net.greeting = bytes(20_000_000)
    yield net.listen(OFF, (60, False), OFF)
    client = net.connect()
    yield net.turns(lambda: bool(net.live))
    yield converse(client, b"", read=False)
    net.clock.advance(61)
    if not net.said:
        net.clock.advance(65)
    assert net.said == ["ended idle"]
    _, received = yield converse(client, b"")
    assert len(received) == 20_000_000


@pytest_twisted.inlineCallbacks
def test_a_client_that_talks_on_and_on_comes_to_the_end_of_its_life(net: Net) -> Any:
    if net._kind == "tls":
        return
    yield net.listen((10, False), (10, False), (60, False))
    client = net.connect()
    for _ in range(20):
        _, received = yield converse(client, b"still here")
        assert received == b"still here"
        net.clock.advance(2.9)
    assert not net.said
    net.clock.advance(2.5)
    assert net.said == ["ended life"]
    _, received = yield converse(client, b"")
    assert received == b""
    client.close()
    yield net.turns(lambda: not net.live)
