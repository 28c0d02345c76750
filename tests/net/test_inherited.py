"""A worker serves the sockets that it inherited, and leaves them to others when it is done."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory

from netsvc.interfaces import Kind
from netsvc.listen.handoff import Sockets
from netsvc.listen.opening import PortReactor, listen
from netsvc.listen.port import OpenPort, _AdoptedFlushedUNIXPort, _AdoptedUNIXPort, adopt
from netsvc.plan.address import Address, parse_address
from netsvc.workers.group import open_group
from tests.builders.certificates import write_certificate
from tests.builders.loopback import converse, reactor


class Back(Protocol):
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data[::-1])
        self.transport.loseConnection()


class BackDatagram(DatagramProtocol):
    transport: Any

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.transport.write(data[::-1], peer)


def opened(address: Address, inherited: Sockets) -> OpenPort:
    protocol: Any = Factory.forProtocol(Back) if address.kind == "stream" else BackDatagram()
    results: list[Any] = []
    listen(reactor(), address, protocol, inherited).addBoth(results.append)
    [listening] = results
    assert isinstance(listening, OpenPort), listening
    return listening


def client(place: Any, kind: Kind, here: Path) -> socket.socket:
    made = socket.socket(
        socket.AF_UNIX if isinstance(place, str) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET,
        socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM,
    )
    if isinstance(place, str) and kind == "datagram":
        made.bind(str(here / "client"))
    made.connect(place)
    return made


FORMS: list[tuple[str, Kind]] = [
    ("127.0.0.1:0", "stream"),
    ("[::1]:0", "datagram"),
    ("tcp:0:interface=127.0.0.1", "stream"),
    ("udp:0:interface=127.0.0.1", "datagram"),
    ("unix:{}/sock:mode=600", "stream"),
    ("unixgram:{}/sock:mode=600", "datagram"),
]


@pytest.mark.parametrize(("form", "kind"), FORMS)
@pytest_twisted.inlineCallbacks
def test_what_comes_is_served_and_the_port_outlives_the_worker(
    form: str, kind: Kind, tmp_path: Path
) -> Generator[Any, Any, None]:
    address = parse_address(form.format(tmp_path), kind)
    held = open_group(reactor(), address, 1)
    number = held.socket_of(0).fileno()
    with socket.socket(fileno=os.dup(number)) as bound:
        place = bound.getsockname()
    for _ in range(2):
        # The second is what replaces the first.
        listening = opened(address, Sockets([os.dup(number)]))
        assert listening.place() == held.opened.place()
        with client(place, kind, tmp_path) as peer:
            _, answer = yield converse(peer, b"abc")
            assert answer == b"cba"
        (tmp_path / "client").unlink(missing_ok=True)
        yield listening.stop()
    # It is still bound, and nobody has shut it down.
    with client(place, kind, tmp_path) as peer:
        peer.send(b"abc")
    if address.scheme.startswith("unix"):
        assert (tmp_path / "sock").stat().st_mode & 0o777 == 0o600
    held.close()


@pytest_twisted.inlineCallbacks
def test_its_end_is_no_news(tmp_path: Path) -> Generator[Any, Any, None]:
    # Twisted's own line has the path with a NUL before it.
    events: list[Any] = []
    address = parse_address(f"unix:{tmp_path}/sock", "stream")
    held = open_group(reactor(), address, 1)
    listening = opened(address, Sockets.of(held.socket_of(0)))
    globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
    try:
        yield listening.stop()
    finally:
        globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]
    held.close()
    assert not [text for event in events if "Port" in (text := formatEvent(event))]


@pytest_twisted.inlineCallbacks
def test_what_waits_is_taken_at_the_end(tmp_path: Path) -> Generator[Any, Any, None]:
    address = parse_address(f"unix:{tmp_path}/sock", "stream")
    held = open_group(reactor(), address, 1)
    listening = opened(address, Sockets.of(held.socket_of(0)))
    with client(f"{tmp_path}/sock", "stream", tmp_path) as peer:
        held.close()
        listening.take_waiting()
        yield listening.stop()
        _, answer = yield converse(peer, b"abc")
    assert answer == b"cba"


def adopted(kind: type[Any], make: Callable[[Any], Any]) -> Deferred[Any]:
    [bound] = {socket.socket(socket.AF_UNIX)}
    with bound:
        bound.bind("")
        bound.listen()
        port: Any = adopt(make(reactor()), bound.dup(), Factory.forProtocol(Back))
        assert type(port) is kind
        stopping: Deferred[Any] = port.stopListening()
        return stopping


@pytest_twisted.inlineCallbacks
def test_a_reactor_that_flushes_has_ports_that_it_can_flush() -> Generator[Any, Any, None]:
    class Flushing:
        flushes: list[Any] = []

        def __init__(self, reactor: Any) -> None:
            self._reactor = reactor

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reactor, name)

    yield adopted(_AdoptedUNIXPort, Plain)
    yield adopted(_AdoptedFlushedUNIXPort, Flushing)


class Plain:
    """The reactor of the tests, without what a fast one has."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        if name == "flushes":
            raise AttributeError(name)
        return getattr(self._reactor, name)


@pytest_twisted.inlineCallbacks
def test_tls_and_proxy_endpoints_wrap_what_was_inherited(tmp_path: Path) -> Generator[Any, Any, None]:
    key, certificate = write_certificate(tmp_path, "localhost")
    text = f"haproxy:ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    held = open_group(reactor(), parse_address(text, "stream"), 2)
    listening = opened(parse_address(text, "stream"), Sockets.of(held.socket_of(1)))
    port: Any = listening.port
    assert isinstance(port.factory, TLSMemoryBIOFactory)
    assert isinstance(port.factory.wrappedFactory, HAProxyWrappingFactory)
    held.close()
    yield listening.stop()


@pytest.mark.parametrize("place", ["index=0", "name=anything"])
@pytest_twisted.inlineCallbacks
def test_a_systemd_endpoint_finds_what_was_inherited(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> Generator[Any, Any, None]:
    from twisted.internet.endpoints import _SystemdParser

    monkeypatch.setattr(_SystemdParser, "_sddaemon", _SystemdParser._sddaemon)
    address = Address(f"haproxy:systemd:domain=INET:{place}", "stream", "haproxy")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        listening = opened(address, Sockets.of(bound))
        assert listening.place() == f"127.0.0.1:{bound.getsockname()[1]}"
        yield listening.stop()


def test_an_endpoint_has_the_rest_of_the_reactor() -> None:
    assert PortReactor(reactor()).seconds() > 0
