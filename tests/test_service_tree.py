"""The guard around the ports that a tree of Twisted services opens, whichever way it does."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.application.internet import (
    ClientService,
    CooperatorService,
    MulticastServer,
    SSLServer,
    StreamServerEndpointService,
    TCPClient,
    TCPServer,
    TimerService,
    UDPServer,
    UNIXDatagramServer,
    UNIXServer,
)
from twisted.application.service import MultiService, Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.protocols.ftp import FTPFactory
from twisted.protocols.socks import SOCKSv4Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from netsvc.embedded.tree import Ports, has_datagrams, place_of, surround, unreachable
from netsvc.guard import Guard, GuardedFactory
from netsvc.listeners.opening import Listening
from netsvc.udp import UDPPort
from tests.certificates import write_certificate
from tests.logs import Lines, collected
from tests.loopback import reactor, turn


@pytest.fixture
def log() -> Iterator[Lines]:
    yield from collected()


PEER = IPv4Address("TCP", "192.0.2.7", 4000)


class Counting(Factory):
    """A factory that notes when it is started and stopped."""

    protocol = Protocol

    def __init__(self) -> None:
        self.calls: list[str] = []

    def startFactory(self) -> None:
        self.calls.append("start")

    def stopFactory(self) -> None:
        self.calls.append("stop")


def surrounded(service: Any, limits: dict[str, Any] | None = None, on: Any = None) -> Ports:
    """Put a guard around a tree on a reactor in memory."""
    on = on or MemoryReactorClock()
    guard = Guard(on)
    ports = Ports(guard, "acme", guard.service("acme", limits or {}), on)
    surround(service, ports)
    return ports


def connect(factory: Any, peer: IPv4Address = PEER) -> StringTransportWithDisconnection:
    """Let a connection come; a transport that is disconnecting was refused."""
    protocol = factory.buildProtocol(peer)
    transport = StringTransportWithDisconnection(peerAddress=peer)
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return transport


def is_refused(transport: StringTransportWithDisconnection) -> bool:
    return bool(transport.disconnecting or transport.disconnected or not transport.connected)


def test_an_endpoint_service_gets_the_guard_and_keeps_its_factory() -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    service = StreamServerEndpointService(TCP4ServerEndpoint(memory, 8080, interface="127.0.0.1"), factory)
    ports = surrounded(service, {"perip": 1}, memory)
    assert service.factory is factory
    service.privilegedStartService()
    [(port, guarded, _, interface)] = memory.tcpServers
    assert (port, interface) == (8080, "127.0.0.1")
    assert isinstance(guarded, GuardedFactory)
    first = connect(guarded)
    assert not is_refused(first)
    assert is_refused(connect(guarded))
    assert [label for label, _ in ports.open()] == ["acme"]
    assert ports.guard.census() == {"acme": 1}
    first.loseConnection()
    assert not is_refused(connect(guarded))
    ports.guard.close()


def test_the_limits_of_a_guard_prefix_are_those_of_its_listener() -> None:
    memory: Any = MemoryReactorClock()
    endpoint = serverFromString(memory, "guard:connections=1:tcp:8080")
    service = StreamServerEndpointService(endpoint, Counting())
    surrounded(service, {"perip": 5}, memory)
    service.privilegedStartService()
    [(_, guarded, _, _)] = memory.tcpServers
    assert [level.limits.get("connections") for level in guarded.gate.levels] == [20_000, None, 1]
    # Not one guard in another.
    assert isinstance(guarded.factory, Counting)


@pytest.mark.parametrize("keyword", [False, True])
def test_a_tcp_server_is_reached_wherever_it_has_its_factory(keyword: bool) -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    service = TCPServer(8080, factory=factory) if keyword else TCPServer(8080, factory)
    surrounded(service, {"connections": 1}, memory)
    service.privilegedStartService()
    service.startService()
    [(port, guarded, backlog, interface)] = memory.tcpServers
    assert (port, backlog, interface) == (8080, 4096, "")
    assert not is_refused(connect(guarded))
    assert is_refused(connect(guarded))
    guarded.guard.close()


def test_a_server_that_brings_its_own_reactor_and_backlog_keeps_them() -> None:
    memory: Any = MemoryReactorClock()
    service: Any = TCPServer(8080, Counting(), 7, "127.0.0.1", reactor=memory)
    surrounded(service)
    service.startService()
    [(_, guarded, backlog, interface)] = memory.tcpServers
    assert (backlog, interface) == (7, "127.0.0.1")
    assert isinstance(guarded, GuardedFactory)
    # What else a reactor can do, it still can.
    assert service.reactor.callLater(1, lambda: None) in memory.getDelayedCalls()


def test_unix_and_ssl_servers_are_reached() -> None:
    memory, context = MemoryReactorClock(), object()
    tree = MultiService()
    UNIXServer("/run/acme", Counting(), mode=0o600).setServiceParent(tree)
    SSLServer(8443, Counting(), context).setServiceParent(tree)
    surrounded(tree, on=memory)
    tree.privilegedStartService()
    [(path, guarded, _, mode, _)] = memory.unixServers
    assert (path, mode) == ("/run/acme", 0o600)
    assert isinstance(guarded, GuardedFactory)
    [(port, guarded, given, _, _)] = memory.sslServers
    assert (port, given) == (8443, context)
    assert isinstance(guarded, GuardedFactory)


def test_the_whole_tree_is_gone_through_and_what_is_added_later_too() -> None:
    memory: Any = MemoryReactorClock()
    tree, branch = MultiService(), MultiService()
    branch.setServiceParent(tree)
    TCPServer(1, Counting()).setServiceParent(branch)
    surrounded(tree, on=memory)
    tree.privilegedStartService()
    tree.startService()
    late = MultiService()
    TCPServer(2, Counting()).setServiceParent(late)
    late.setServiceParent(branch)
    assert [(each[0], type(each[1])) for each in memory.tcpServers] == [(1, GuardedFactory), (2, GuardedFactory)]


def test_who_has_a_name_can_still_be_found_and_removed() -> None:
    tree = MultiService()
    surrounded(tree)
    service = Service()
    service.setName("one")
    service.setServiceParent(tree)
    assert tree.getServiceNamed("one") is service
    service.disownServiceParent()
    assert list(tree) == []


def test_a_factory_is_stopped_when_its_ports_are_closed_and_its_connections_drained() -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    tree = MultiService()
    for port in (1, 2):
        TCPServer(port, factory).setServiceParent(tree)
    ports = surrounded(tree, on=memory)
    tree.privilegedStartService()
    # A reactor in memory starts no factory, as real ones do.
    for _, guarded, _, _ in memory.tcpServers:
        guarded.doStart()
    for _, guarded, _, _ in memory.tcpServers:
        guarded.doStop()
    assert factory.calls == ["start"]
    ports.release()
    assert factory.calls == ["start", "stop"]


def test_a_factory_that_counts_nothing_is_not_started_twice() -> None:
    class Plain:
        """The least that is a factory."""

        started = 0

        def doStart(self) -> None:
            self.started += 1

        def doStop(self) -> None:
            self.started -= 1

        def buildProtocol(self, addr: Any) -> Any:
            return Protocol()

    memory: Any = MemoryReactorClock()
    plain = Plain()
    service = TCPServer(1, plain)
    ports = surrounded(service, on=memory)
    service.startService()
    memory.tcpServers[0][1].doStart()
    assert plain.started == 1
    ports.release()
    assert plain.started == 1


class Broken:
    """An endpoint that cannot listen, or cannot yet."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.waiting: Deferred[Any] = Deferred()

    def listen(self, factory: Any) -> Deferred[Any]:
        return fail(self.error) if self.error else self.waiting

    connect = listen


class Elsewhere:
    """A port that is neither at a host nor at a path."""

    def getHost(self) -> Any:
        return SimpleNamespace()

    def stopListening(self) -> None:
        pass


def test_what_an_endpoint_opens_and_nobody_can_close_is_no_port() -> None:
    pipe = Broken()
    service = StreamServerEndpointService(pipe, Counting())
    ports = surrounded(service)
    service.privilegedStartService()
    pipe.waiting.callback(object())
    assert (ports.pending, ports.open()) == (0, [])


def test_a_port_that_cannot_be_opened_is_told_and_no_service_logs_it() -> None:
    failures: list[Any] = []
    error = CannotListenError("", 8080, OSError(errno.EADDRINUSE, "in use"))
    quiet = StreamServerEndpointService(Broken(error), Counting())
    ports = surrounded(quiet)
    ports.failed = failures.append
    quiet.privilegedStartService()
    assert [failure.value for failure in failures] == [error]
    # One that would raise, as all of twistd's own do, raises what says nothing.
    loud = StreamServerEndpointService(Broken(error), Counting())
    loud._raiseSynchronously = True
    surround(loud, ports)
    with pytest.raises(CancelledError):
        loud.privilegedStartService()
    assert len(failures) == 2
    assert ports.open() == []


def test_an_endpoint_that_takes_its_time_is_pending_until_it_is_open_or_its_service_stops() -> None:
    slow, other = Broken(), Broken()
    services = [StreamServerEndpointService(each, Counting()) for each in (slow, other)]
    tree = MultiService()
    for service in services:
        service.setServiceParent(tree)
    ports = surrounded(tree)
    opened: list[str] = []
    ports.opened = lambda label, listening: opened.append(label)
    ports.failed = lambda failure: opened.append("failed")
    tree.privilegedStartService()
    tree.startService()
    assert (ports.pending, opened) == (2, [])
    slow.waiting.callback(Elsewhere())
    assert [place_of(listening) for _, listening in ports.open()] == ["a SimpleNamespace"]
    assert (ports.pending, opened) == (1, ["acme"])
    services[1].stopService()
    assert (ports.pending, opened) == (0, ["acme"])


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
    assert port.factory.outermost
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


class Echo(DatagramProtocol):
    """Answers with what it got, twice."""

    transport: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)
        self.transport.write(datagram, addr)


@inlineCallbacks
def test_a_udp_server_has_sessions_for_its_peers() -> Generator[Deferred[Any], Any, None]:
    service = UDPServer(0, Echo(), interface="127.0.0.1")
    assert has_datagrams(service)
    ports = surrounded(service, {"perip": 1}, on=reactor())
    service.startService()
    [(label, listening)] = ports.open()
    assert label == "acme udp"
    assert isinstance(listening.port, UDPPort)
    address = ("127.0.0.1", listening.port.getHost().port)
    with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as second:
        first.sendto(b"hello", address)
        second.sendto(b"hello", address)
        while not ports.guard.refusals.counts:
            yield turn()
        first.setblocking(False)
        second.setblocking(False)
        # Not more bytes than came, and to one of the two of this address.
        assert first.recv(100) == b"hello"
        for refused in (first, second):
            with pytest.raises(BlockingIOError):
                refused.recv(100)
    assert ports.guard.refusals.counts == {("acme udp", "amplify"): 1, ("acme udp", "perip"): 1}
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
    assert tls.factory.buildProtocol(PEER) is None
    yield service.stopService()
    assert (ports.open(), factory.calls) == ([], ["start"])
    ports.release()
    assert (factory.calls, secret.calls) == (["start", "stop"], ["start", "stop"])
    ports.guard.close()
    assert log == ["limit connections refused 192.0.2.7 at acme"]


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
    assert [line for line in log if "no limits" in line] == [
        f"acme: what listens on 127.0.0.1:{second.getHost().port} has no limits, and is not drained"
    ]
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
        Listening(port).abandon()


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
    assert unreachable(tree) == [
        f"what {__name__}.{kind.__name__} opens after its start, if it does, has no limits, and is not drained"
    ]


def test_connections_beside_the_port_are_named() -> None:
    tree = MultiService()
    TCPServer(21, FTPFactory()).setServiceParent(tree)
    TCPServer(1080, SOCKSv4Factory(None)).setServiceParent(tree)
    assert unreachable(tree) == [
        "the connections for files (PASV, PORT) have no limits, and are not drained",
        "the ports for BIND, and the connections to others have no limits, and are not drained",
    ]


def test_what_is_added_later_and_not_reached_is_logged(log: Lines) -> None:
    tree = MultiService()
    surrounded(tree)
    OddService().setServiceParent(tree)
    assert log == [
        f"acme: what {__name__}.OddService opens after its start, if it does, has no limits, and is not drained"
    ]
