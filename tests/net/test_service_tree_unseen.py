"""What a tree of Twisted services opens without showing it is guarded as it appears, or named."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.application.internet import (
    ClientService,
    CooperatorService,
    StreamServerEndpointService,
    TCPClient,
    TCPServer,
    TimerService,
    UDPServer,
)
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.ftp import FTPFactory
from twisted.protocols.socks import SOCKSv4Factory

from netsvc.embedded.tree import has_datagrams, unreachable
from netsvc.listen.port import OpenPort
from netsvc.reactor.accept import BACKLOG
from netsvc.reactor.datagrams import UDPPort
from tests.builders.acme import Counting
from tests.builders.certificates import write_certificate
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.loopback import reactor
from tests.builders.trees import Broken, Echo, connect, is_refused, surrounded

log = pytest.fixture(collected)


class Stranger(Service):
    """Listens without showing it."""

    def __init__(self, *listen: Callable[[], Any]) -> None:
        self.listen = listen
        self.ports: list[Any] = []

    def startService(self) -> None:
        super().startService()
        self.ports = [listen() for listen in self.listen]

    def stopService(self) -> Any:
        return DeferredList([maybeDeferred(port.stopListening) for port in self.ports])


@inlineCallbacks
def test_a_port_that_nobody_showed_is_guarded_as_it_appears(
    tmp_path: Path, log: Lines
) -> Generator[Deferred[Any], Any, None]:
    key, certificate = write_certificate(tmp_path, "localhost")
    context = DefaultOpenSSLContextFactory(str(key), str(certificate))
    factory, secret = Counting(), Counting()
    service = Stranger(
        lambda: reactor().listenTCP(0, factory, interface="127.0.0.1"),
        lambda: reactor().listenSSL(0, secret, context, interface="127.0.0.1"),
    )
    ports = surrounded(service, {"connections": 1}, reactor())
    with ports.watched():
        service.startService()
    assert len(ports.open()) == 2
    plain, tls = service.ports
    assert not is_refused(connect(plain.factory))
    assert is_refused(connect(tls.factory))
    yield service.stopService()
    assert (ports.open(), factory.calls) == ([], ["start"])
    ports.release()
    assert (factory.calls, secret.calls) == (["start", "stop"], ["start", "stop"])
    ports.guard.close()
    assert len(log) == 1 and states(log[0], "connections", "192.0.2.7", "acme")


def backlog(port: Any) -> int:
    """Return the backlog that the kernel has (tcp_info.tcpi_sacked of a listening socket)."""
    return int.from_bytes(port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[28:32], sys.byteorder)


class Own:
    """An endpoint that asks the reactor itself, as those of plugins do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def listen(self, factory: Any) -> Deferred[Any]:
        return succeed(reactor().listenTCP(0, factory, self.length, "127.0.0.1"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the backlog of a socket")
@inlineCallbacks
def test_every_port_has_our_backlog_however_it_is_opened(log: Lines) -> Generator[Deferred[Any], Any, None]:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    tree = MultiService()
    for service in (
        Stranger(lambda: reactor().listenTCP(0, Counting(), interface="127.0.0.1")),
        Stranger(lambda: reactor().listenTCP(0, Counting(), 7, "127.0.0.1")),
        TCPServer(0, Counting(), interface="127.0.0.1"),
        StreamServerEndpointService(serverFromString(reactor(), "tcp:0:interface=127.0.0.1"), Counting()),
        StreamServerEndpointService(Own(50), Counting()),
        StreamServerEndpointService(Own(7), Counting()),
    ):
        service.setServiceParent(tree)
    ports = surrounded(tree, on=reactor())
    with ports.watched():
        tree.startService()
    assert sorted(backlog(listening.port) for _, listening in ports.open()) == sorted([7, 7, *[min(BACKLOG, most)] * 4])
    yield tree.stopService()
    for _, listening in ports.open():
        listening.abandon()
    ports.release()
    ports.guard.close()


@inlineCallbacks
def test_a_datagram_port_that_nobody_showed_is_guarded_if_it_is_one_of_ours(
    log: Lines,
) -> Generator[Deferred[Any], Any, None]:
    def ours() -> Any:
        port = UDPPort(0, Echo(), "127.0.0.1", reactor=reactor())
        port.startListening()
        return port

    service = Stranger(ours, lambda: reactor().listenUDP(0, Echo(), "127.0.0.1"))
    ports = surrounded(service, on=reactor())
    with ports.watched():
        service.startService()
    first, second = service.ports
    assert first.sessions.gate.label == "acme udp"
    [unlimited] = [line for line in log if "no limits" in line]
    assert states(unlimited, "acme", f"127.0.0.1:{second.getHost().port} ", "not drained")
    assert {label for label, _ in ports.open()} == {"acme udp", "acme"}
    yield service.stopService()


def test_what_was_open_before_and_what_shows_itself_is_taken_in_once() -> None:
    before = reactor().listenTCP(0, Counting(), interface="127.0.0.1")
    service: Any = TCPServer(0, Counting(), interface="127.0.0.1")
    ports = surrounded(service, on=reactor())
    with ports.watched():
        service.startService()
    assert [listening.port for _, listening in ports.open()] == [service._port]
    for port in (before, service._port):
        OpenPort(port).abandon()


class OddService(Service):
    """May do anything when it starts."""

    def startService(self) -> None:
        super().startService()


class OddServer(TCPServer):
    """Asks a reactor of its own."""

    def _getPort(self) -> Any:
        return None


class OddTree(MultiService):
    """May open a port beside what is below it."""

    def privilegedStartService(self) -> None:
        super().privilegedStartService()


class PoliteService(Service):
    """Does nothing when it starts."""

    def stopService(self) -> None:
        super().stopService()


def test_what_opens_no_port_or_shows_it_is_not_named() -> None:
    tree = MultiService()
    for service in (
        TimerService(1, lambda: None),
        CooperatorService(),
        ClientService(Broken(), Factory(), clock=MemoryReactorClock()),  # type: ignore[arg-type]
        TCPClient("127.0.0.1", 1, Factory()),
        TCPServer(1, Counting()),
        UDPServer(1, Echo()),
        StreamServerEndpointService(Broken(), Counting()),
        PoliteService(),
    ):
        service.setServiceParent(tree)
    assert unreachable(tree) == []
    assert has_datagrams(tree)
    assert not has_datagrams(TCPServer(1, Counting()))


@pytest.mark.parametrize("kind", [OddService, OddTree, OddServer])
def test_what_may_open_ports_unseen_is_named_once(kind: Any) -> None:
    tree = MultiService()
    for _ in range(2):
        (kind(1, Counting()) if kind is OddServer else kind()).setServiceParent(tree)
    [line] = unreachable(tree)
    assert states(line, f"{__name__}.{kind.__name__} ", "no limits", "not drained")


def test_connections_beside_the_port_are_named() -> None:
    tree = MultiService()
    TCPServer(21, FTPFactory()).setServiceParent(tree)
    TCPServer(1080, SOCKSv4Factory(None)).setServiceParent(tree)
    files, others = unreachable(tree)
    assert states(files, "PASV, PORT", "no limits", "not drained")
    assert states(others, "BIND", "no limits", "not drained")


def test_what_is_added_later_and_not_reached_is_logged(log: Lines) -> None:
    tree = MultiService()
    surrounded(tree)
    OddService().setServiceParent(tree)
    [line] = log
    assert states(line, "acme", f"{__name__}.OddService ", "no limits", "not drained")
