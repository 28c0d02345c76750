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
from netsvc.options import parse_settings
from netsvc.service import stream_factory
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Departed, Joined, Reason, Stopping
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.options import ChatOptions
from tests.builders.certificates import write_certificate
from tests.builders.chat import said, shown
from tests.builders.facts import states

#: Seconds after which a test that waits has failed.
PATIENCE = 60
#: What everybody is sent when the service stops.
GOODBYE = shown(Stopping())


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
        self.got = (self.got + data).replace(b"\r\n", b"\n")
        for waiting in list(self._waiting):
            if waiting[0] in self.got:
                self._waiting.remove(waiting)
                waiting[1].callback(self.got)

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self.got)


class OpenPort(Factory):
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
        self.core.start()
        self.factory = OpenPort(stream_factory(LineChat, self.core))
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
    yield watcher.sees(b"lobby")
    caller = yield here.call_tcp()
    caller.transport.write("/nick 小明\none\ntwo\nthree\n/who".encode())
    caller.transport.loseWriteConnection()
    got = yield caller.closed
    assert got.decode().endswith("guest1, 小明\n")
    yield watcher.sees(shown(*said("小明", "one", "two", "three"), Departed("小明")))


@inlineCallbacks
def test_one_who_does_not_read_is_cut_off_and_the_room_hears_everything(place: Callable[..., Place]) -> Any:
    here = place(send_bytes="64K", send_rate="1M", rate=1_000_000, burst=1_000_000)
    slow = yield here.call_tcp()
    slow.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield slow.sees(b"lobby")
    slow.transport.pauseProducing()
    watcher = yield here.call_tcp()
    talker = yield here.call_tcp()
    yield watcher.sees(shown(Joined("lobby", "guest3")))
    line = "x" * 4000
    count = 0
    gone = shown(Departed("guest1", Reason.TOO_SLOW))
    while gone not in watcher.got:
        for _ in range(100):
            count += 1
            talker.transport.write(f"{count} {line}\n".encode())
        yield watcher.sees(shown(*said("guest3", f"{count} {line}")))
        # What the kernel holds for one who does not read, both ends, and our own two buffers.
        assert count < 10_000
    numbers = [part.split()[-2] for part in watcher.got.decode().splitlines() if part.endswith(line)]
    assert numbers == [str(number) for number in range(1, count + 1)]
    slow.transport.resumeProducing()
    yield slow.closed


@pytest.mark.parametrize(("talkers", "lines", "tls"), [(3, 19, False), (3, 19, True), (60, 1, False)])
@inlineCallbacks
def test_those_who_read_get_all_that_is_sent_in_one_turn(
    place: Callable[..., Place], certificate: tuple[Path, Path], talkers: int, lines: int, tls: bool
) -> Any:
    here = place()
    callers = []
    for _ in range(4 + talkers):
        caller = yield here.call_tls(certificate) if tls else here.call_tcp()
        callers.append(caller)
    # Each is in the lobby after a moment of silence.
    yield gatherResults([caller.sees(b"lobby") for caller in callers])
    texts = [f"{number:02}{'x' * 4088}" for number in range(lines)]
    for caller in callers[4:]:
        caller.transport.write("".join(f"{text}\n" for text in texts).encode())
    sent = [shown(*said(f"guest{number + 1}", text)) for number in range(4, 4 + talkers) for text in texts]
    for piece in sent:
        yield gatherResults([caller.sees(piece) for caller in callers[:4]])
    assert not any(caller.closed.called for caller in callers)


@inlineCallbacks
def test_a_goodbye_comes_even_if_much_was_sent_that_nobody_will_read(place: Callable[..., Place]) -> Any:
    here = place(rate=0.01, burst=1, backlog=1_000_000)
    caller = yield here.call_tcp()
    caller.transport.write(b"line\n" * 200_000)
    yield caller.sees(b" 0.01 ")
    here.core.drain()
    yield caller.sees(GOODBYE)
    caller.transport.loseConnection()
    yield here.factory.ended[0]
    late = yield here.call_tcp()
    late.transport.write(b"line\n" * 200_000)
    got = yield late.sees(b"\n")
    assert states(got, "* ") and got.count(b"\n") == 1


@inlineCallbacks
def test_drain_closes_every_connection_after_the_goodbye(place: Callable[..., Place]) -> Any:
    here = place()
    callers = []
    for _ in range(3):
        caller = yield here.call_tcp()
        yield caller.sees(b"lobby")
        callers.append(caller)
    here.core.drain()
    for caller in callers:
        got = yield caller.closed
        assert got.endswith(GOODBYE)


@inlineCallbacks
def test_a_tls_connection_closes_cleanly_even_while_lines_wait(
    place: Callable[..., Place], certificate: tuple[Path, Path]
) -> Any:
    here = place(rate=0.01, burst=2)
    quitter = yield here.call_tls(certificate)
    quitter.transport.write(b"hello\n/quit\n")
    got = yield quitter.closed
    assert b"hello" not in got and states(got.splitlines()[-1], "* ") and got.count(b"\n") == 4
    waiting = yield here.call_tls(certificate)
    waiting.transport.write(b"1\n2\n3\n4\n")
    yield waiting.sees(b" 0.01 ")
    here.core.drain()
    got = yield waiting.closed
    assert got.endswith(GOODBYE)
    yield here.factory.ended[-1]


@inlineCallbacks
def test_a_tls_client_over_the_members_limit_is_told_so(
    place: Callable[..., Place], certificate: tuple[Path, Path]
) -> Any:
    here = place(members=1)
    first = yield here.call_tls(certificate)
    yield first.sees(b"lobby")
    second = yield here.call_tls(certificate)
    got = yield second.closed
    assert states(got, "* ", "1")


@inlineCallbacks
def test_a_flood_is_told_why_it_is_cut_off(place: Callable[..., Place]) -> Any:
    here = place()
    caller = yield here.call_tcp()
    caller.transport.write(b"line\n" * 200_000)
    got = yield caller.sees(b" 250 ")
    assert states(got.splitlines()[-1], "* ", " 250 ")
    caller.transport.loseConnection()
    yield here.factory.ended[0]
