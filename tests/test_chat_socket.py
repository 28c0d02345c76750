"""The line protocol over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import ssl
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from netsvc.interfaces import Context
from netsvc.service import stream_factory
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.options import ChatOptions
from netsvc.settings import parse_settings
from tests.certificates import write_certificate

#: Seconds after which a test that waits has failed.
PATIENCE = 20


class Caller(Protocol):
    """A client that keeps what it gets, and lets one wait for it."""

    transport: Any

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.got = b""
        self.closed: Deferred[bytes] = Deferred()
        self._waiting: list[tuple[bytes, Deferred[bytes]]] = []

    def sees(self, text: bytes) -> Deferred[bytes]:
        """Fire when `text` has come."""
        seen: Deferred[bytes] = Deferred()
        seen.addTimeout(PATIENCE, self.reactor)
        self._waiting.append((text, seen))
        self.dataReceived(b"")
        return seen

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        for waiting in list(self._waiting):
            if waiting[0] in self.got:
                self._waiting.remove(waiting)
                waiting[1].callback(self.got)

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self.got)


class Listening(Factory):
    """Builds what another factory builds, and tells when each has ended."""

    noisy = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.ended: list[Deferred[None]] = []

    def buildProtocol(self, addr: Any) -> Any:
        protocol = self.inner.buildProtocol(addr)
        ended: Deferred[None] = Deferred()
        self.ended.append(ended)
        lost = protocol.connectionLost

        def tell(reason: Any) -> None:
            lost(reason)
            ended.callback(None)

        protocol.connectionLost = tell
        return protocol


class Place:
    """A chat that listens on the loopback interface."""

    def __init__(self, reactor: Any, settings: dict[str, object]) -> None:
        self.reactor = reactor
        options = parse_settings(ChatOptions, settings)
        self.core = ChatCore(options, Context(reactor, Logger()))  # type: ignore[arg-type]
        self.factory = Listening(stream_factory(LineChat, self.core))
        self.callers: list[Caller] = []
        self.ports: list[Any] = []

    def call(self, endpoint: Any) -> Deferred[Any]:
        caller = Caller(self.reactor)
        self.callers.append(caller)
        connected: Deferred[Any] = connectProtocol(endpoint, caller)
        return connected

    def call_tcp(self) -> Deferred[Any]:
        if not self.ports:
            self.ports.append(self.reactor.listenTCP(0, self.factory, interface="127.0.0.1"))
        return self.call(TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.ports[0].getHost().port))

    def call_tls(self, certificate: tuple[Path, Path]) -> Deferred[Any]:
        if not self.ports:
            context = ssl.DefaultOpenSSLContextFactory(*map(str, certificate))
            self.ports.append(self.reactor.listenSSL(0, self.factory, context, interface="127.0.0.1"))
        trusted = ssl.Certificate.loadPEM(certificate[1].read_bytes())
        options = ssl.optionsForClientTLS("localhost", trustRoot=trusted)
        return self.call(SSL4ClientEndpoint(self.reactor, "127.0.0.1", self.ports[0].getHost().port, options))

    def close(self) -> Deferred[Any]:
        for caller in self.callers:
            if caller.transport is not None and not caller.closed.called:
                caller.transport.abortConnection()
        stopped = [port.stopListening() for port in self.ports]
        closed = [caller.closed for caller in self.callers if caller.transport is not None]
        return gatherResults([*stopped, *closed, *self.factory.ended]).addTimeout(PATIENCE, self.reactor)


@pytest.fixture
def place() -> Iterator[Callable[..., Place]]:
    from twisted.internet import reactor

    places: list[Place] = []

    def make(**settings: object) -> Place:
        places.append(Place(reactor, {name.replace("_", "-"): value for name, value in settings.items()}))
        return places[-1]

    yield make
    for each in places:
        pytest_twisted.blockon(each.close())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A key and a certificate for localhost."""
    return write_certificate(tmp_path, "localhost")


@inlineCallbacks
def test_a_client_that_sends_all_and_half_closes_gets_every_answer(place: Callable[..., Place]) -> Any:
    here = place(rate=20, burst=2)
    watcher = yield here.call_tcp()
    yield watcher.sees(b"alone\n")
    caller = yield here.call_tcp()
    caller.transport.write("/nick 小明\none\ntwo\nthree\n/who".encode())
    caller.transport.loseWriteConnection()
    got = yield caller.closed
    assert got.decode().endswith("* in lobby: guest1, 小明\n")
    seen = yield watcher.sees(b"left the chat\n")
    assert "[lobby] 小明: one\n[lobby] 小明: two\n[lobby] 小明: three\n* 小明 left the chat\n" in seen.decode()


@inlineCallbacks
def test_one_who_does_not_read_is_cut_off_and_the_room_hears_everything(place: Callable[..., Place]) -> Any:
    here = place(send_bytes="64K", rate=1_000_000, burst=1_000_000)
    slow = yield here.call_tcp()
    slow.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield slow.sees(b"alone\n")
    slow.transport.pauseProducing()
    watcher = yield here.call_tcp()
    talker = yield here.call_tcp()
    yield watcher.sees(b"guest3 joined")
    line = "x" * 4000
    count = 0
    while b"* guest1 left the chat (too slow to read)\n" not in watcher.got:
        for _ in range(100):
            count += 1
            talker.transport.write(f"{count} {line}\n".encode())
        yield watcher.sees(f"guest3: {count} ".encode())
        # What the kernel holds for one who does not read, both ends, and our own two buffers.
        assert count < 10_000
    numbers = [part.split()[2] for part in watcher.got.decode().splitlines() if part.startswith("[lobby]")]
    assert numbers == [str(number) for number in range(1, count + 1)]
    slow.transport.resumeProducing()
    yield slow.closed


@inlineCallbacks
def test_a_goodbye_comes_even_if_much_was_sent_that_nobody_will_read(place: Callable[..., Place]) -> Any:
    here = place(rate=0.01, burst=1, backlog=1_000_000)
    caller = yield here.call_tcp()
    caller.transport.write(b"line\n" * 200_000)
    yield caller.sees(b"none is lost\n")
    here.core.drain()
    got = yield caller.sees(b"goodbye\n")
    assert got.endswith(b"* the server is stopping, goodbye\n")
    caller.transport.loseConnection()
    yield here.factory.ended[0]
    late = yield here.call_tcp()
    late.transport.write(b"line\n" * 200_000)
    got = yield late.sees(b"later\n")
    assert got == b"* the server is stopping, come back later\n"


@inlineCallbacks
def test_drain_closes_every_connection_after_the_goodbye(place: Callable[..., Place]) -> Any:
    here = place()
    callers = []
    for _ in range(3):
        caller = yield here.call_tcp()
        yield caller.sees(b"you are in lobby now")
        callers.append(caller)
    here.core.drain()
    for caller in callers:
        got = yield caller.closed
        assert got.endswith(b"* the server is stopping, goodbye\n")


@inlineCallbacks
def test_a_tls_connection_closes_cleanly_even_while_lines_wait(
    place: Callable[..., Place], certificate: tuple[Path, Path]
) -> Any:
    here = place(rate=0.01, burst=2)
    quitter = yield here.call_tls(certificate)
    quitter.transport.write(b"hello\n/quit\n")
    got = yield quitter.closed
    assert got.endswith(b"* goodbye\n")
    waiting = yield here.call_tls(certificate)
    waiting.transport.write(b"1\n2\n3\n4\n")
    yield waiting.sees(b"none is lost\n")
    here.core.drain()
    got = yield waiting.closed
    assert got.endswith(b"* the server is stopping, goodbye\n")
    yield here.factory.ended[-1]


@inlineCallbacks
def test_a_tls_client_over_the_members_limit_is_told_so(
    place: Callable[..., Place], certificate: tuple[Path, Path]
) -> Any:
    here = place(members=1)
    first = yield here.call_tls(certificate)
    yield first.sees(b"alone\n")
    second = yield here.call_tls(certificate)
    got = yield second.closed
    assert got == b"* the chat is full (1 members), come back later\n"


@inlineCallbacks
def test_a_flood_is_told_why_it_is_cut_off(place: Callable[..., Place]) -> Any:
    here = place()
    caller = yield here.call_tcp()
    caller.transport.write(b"line\n" * 200_000)
    got = yield caller.sees(b"wait; goodbye\n")
    assert got.endswith(b"* that was too much: more than 250 of your lines wait; goodbye\n")
    caller.transport.loseConnection()
    yield here.factory.ended[0]
