"""The guard around real ports that a tree of Twisted services opens, TLS and datagrams among them."""

from __future__ import annotations

import gc
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.application.internet import (
    MulticastServer,
    SSLServer,
    TCPServer,
    UDPServer,
    UNIXDatagramServer,
)
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.protocols.tls import TLSMemoryBIOFactory

from netsvc.embedded.tree import has_datagrams
from netsvc.guard import GuardedFactory
from netsvc.reactor.datagrams import UDPPort
from tests.builders.acme import Counting
from tests.builders.certificates import write_certificate
from tests.builders.loopback import reactor, turn
from tests.builders.refusals import refused
from tests.builders.trees import Echo, surrounded


@inlineCallbacks
def test_real_ports_are_listed_while_they_are_open() -> Generator[Deferred[Any], Any, None]:
    factory = Counting()
    tree = MultiService()
    services = [TCPServer(0, factory, interface="127.0.0.1") for _ in range(2)]
    for service in services:
        service.setServiceParent(tree)
    ports = surrounded(tree, on=reactor())
    tree.privilegedStartService()
    tree.startService()
    assert len(ports.open()) == 2
    port: Any = ports.open()[0][1].port
    assert isinstance(port.factory, GuardedFactory)
    yield tree.removeService(services[0])
    assert len(ports.open()) == 1
    yield tree.stopService()
    assert ports.open() == []
    assert factory.calls == ["start"]
    ports.release()
    assert factory.calls == ["start", "stop"]


@inlineCallbacks
def test_the_guard_stands_before_the_tls_of_an_ssl_server(tmp_path: Path) -> Generator[Deferred[Any], Any, None]:
    key, certificate = write_certificate(tmp_path, "localhost")
    service: Any = SSLServer(
        0, Counting(), DefaultOpenSSLContextFactory(str(key), str(certificate)), interface="127.0.0.1"
    )
    surrounded(service, on=reactor())
    service.startService()
    guarded = service._port.factory
    assert isinstance(guarded, GuardedFactory)
    assert isinstance(guarded.factory, TLSMemoryBIOFactory)
    yield service.stopService()


@inlineCallbacks
def test_a_udp_server_has_sessions_for_its_peers() -> Generator[Deferred[Any], Any, None]:
    service = UDPServer(0, Echo(), interface="127.0.0.1")
    assert has_datagrams(service)
    ports = surrounded(service, {"perip": 1, "amplify": 1}, on=reactor())
    service.startService()
    [(label, listening)] = ports.open()
    assert label == "acme udp"
    assert isinstance(listening.port, UDPPort)
    address = ("127.0.0.1", listening.port.getHost().port)
    with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as second:
        first.sendto(b"hello", address)
        second.sendto(b"hello", address)
        while len(ports.guard.refusals.last) < 2:
            yield turn()
        first.setblocking(False)
        second.setblocking(False)
        # Not more bytes than came, and the second of this address takes the place of the first.
        assert first.recv(100) == second.recv(100) == b"hello"
        for each in (first, second):
            with pytest.raises(BlockingIOError):
                each.recv(100)
    assert [(each.label, each.limit) for each in ports.guard.refusals.last] == [("acme udp", "amplify")] * 2
    assert refused(ports.guard) == {"amplify": 2} and ports.guard.process.live == 1
    yield service.stopService()
    ports.guard.close()


@inlineCallbacks
def test_a_multicast_server_can_join_its_group() -> Generator[Deferred[Any], Any, None]:
    service = MulticastServer(0, Echo(), listenMultiple=True)
    assert has_datagrams(service)
    ports = surrounded(service, on=reactor())
    service.startService()
    [(_, listening)] = ports.open()
    port: Any = listening.port
    assert port.sessions is not None
    assert port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert port.getLoopbackMode()
    yield service.stopService()


@inlineCallbacks
def test_a_unix_datagram_server_is_reached(tmp_path: Path) -> Generator[Deferred[Any], Any, None]:
    path = tmp_path / "acme"
    service = UNIXDatagramServer(str(path), Echo(), mode=0o600)
    assert has_datagrams(service)
    ports = surrounded(service, on=reactor())
    service.startService()
    [(label, listening)] = ports.open()
    port: Any = listening.port
    assert (label, port.sessions is None, path.stat().st_mode & 0o777) == ("acme udp", False, 0o600)
    yield listening.stop()
    assert not path.exists()


# Twisted leaves the socket that it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_datagram_port_that_cannot_be_opened_is_known_as_one(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        service: Any = UDPServer(taken.getsockname()[1], Echo(), interface="127.0.0.1")
        ports = surrounded(service, on=reactor())
        with pytest.raises(CannotListenError) as raised:
            service.startService()
        assert ports.datagrams_refused is raised.value
        ports.datagrams_refused = None
        del raised
        gc.collect()
    service = UNIXDatagramServer(str(tmp_path / "no/such"), Echo())
    ports = surrounded(service, on=reactor())
    with pytest.raises(CannotListenError):
        service.startService()
    assert ports.open() == []
