"""`guard:` before an endpoint string puts the limits around any Twisted program's port."""

from __future__ import annotations

import re
import socket
import sys
import urllib.request
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import inlineCallbacks
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import (
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport, StringTransportWithDisconnection
from twisted.plugin import IPlugin
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface.verify import verifyObject

from netsvc.embedded.endpoint import GuardedEndpoint, guarded_endpoint
from netsvc.embedded.prefix import EndpointPrefix
from netsvc.guard.guard import GuardedFactory
from netsvc.plan.limits import DEFAULTS
from tests.builders.certificates import write_certificate
from tests.builders.loopback import reactor, turn
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, free_port, run

PEER = IPv4Address("TCP", "192.0.2.7", 4000)
OTHER = IPv4Address("TCP", "192.0.2.8", 4000)


class Recording(Factory):
    """Builds protocols, and notes when it is started and stopped."""

    protocol = Protocol
    noisy = False

    def __init__(self) -> None:
        self.calls: list[str] = []

    def startFactory(self) -> None:
        self.calls.append("start")

    def stopFactory(self) -> None:
        self.calls.append("stop")


def opened(description: str) -> tuple[MemoryReactorClock, Any]:
    """Listen on a reactor in memory; return it, and the factory of the one port."""
    memory = MemoryReactorClock()
    serverFromString(memory, description).listen(Factory.forProtocol(Protocol))
    ports: list[Any] = [*memory.tcpServers, *memory.unixServers]
    assert len(ports) == 1
    return memory, ports[0][1]


def guard_of(factory: Any) -> Any:
    return factory.guard


def test_it_is_an_endpoint_like_any_other() -> None:
    endpoint = serverFromString(MemoryReactorClock(), "guard:perip=20:idle=60:tcp:8080")
    assert isinstance(endpoint, GuardedEndpoint)
    verifyObject(IStreamServerEndpoint, endpoint)
    plugin = EndpointPrefix("guard", "netsvc.embedded.endpoint.guarded_endpoint")
    verifyObject(IPlugin, plugin)
    verifyObject(IStreamServerEndpointStringParser, plugin)


def test_limits_are_taken_out_and_the_rest_is_the_endpoint_inside() -> None:
    memory = MemoryReactorClock()
    endpoint: Any = serverFromString(
        memory, r"guard:perip=20:tcp:8080:interface=127.0.0.1:backlog=7:deny=2001\:db8\:\:/32:read=64K:rate=none"
    )
    assert endpoint.limits == {"perip": 20, "deny": ("2001:db8::/32",), "read": 65536, "rate": None}
    endpoint.listen(Factory())
    servers: list[Any] = memory.tcpServers
    [(port, guarded, backlog, interface)] = servers
    assert (port, backlog, interface) == (8080, 7, "127.0.0.1")
    assert guarded.label == "tcp:8080"
    assert guard_of(guarded).process.limits == {**DEFAULTS, **endpoint.limits}


def test_an_endpoint_string_of_bytes_is_read_as_well() -> None:
    endpoint: Any = guarded_endpoint(MemoryReactorClock(), b"tcp", b"8080", perip=b"3")
    assert endpoint.limits == {"perip": 3}


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_was_quoted_for_the_endpoint_inside_reaches_it(path: str) -> None:
    quoted = quoteStringArgument(path).replace("=", "\\=")
    memory, _ = opened(f"guard:perip=20:unix:{quoted}:mode=600")
    assert [(each[0], each[3]) for each in memory.unixServers] == [(path, 0o600)]
    memory, _ = opened(f"guard:unix:address={quoted}:perip=20")
    assert [each[0] for each in memory.unixServers] == [path]


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ("guard:perip=20", "guard: has no endpoint after its limits; write guard:LIMIT=VALUE:…:ENDPOINT, such as "),
        ("guard:perip:tcp:8080", "guard: perip has no value; write guard:LIMIT=VALUE:…:ENDPOINT, such as "),
        ("guard:perip=many:tcp:8080", "guard: perip many: a whole number from 1 to 1000000, or none"),
        ("guard:idle=-1:tcp:8080", "guard: idle -1: seconds from 0.1 to 31622400, or with m, h, d (10m), or none"),
        ("guard:deny=everybody:tcp:8080", "guard: deny everybody: addresses and networks such as "),
        ("guard:sessions=5:tcp:8080", "guard: sessions is for datagrams, and an endpoint is for streams"),
        ("guard:perrip=5:tcp:8080", "guard: perrip is no limit, and no argument of tcp:; did you mean perip"),
        ("guard:perip=5:tpc:8080", "Unknown endpoint type: 'tpc'"),
        ("guard:perip=5:tcp:www", "invalid literal for int"),
        ("guard:allow=@/no/such/file:tcp:8080", "/no/such/file"),
    ],
)
def test_what_is_wrong_is_a_value_error_with_a_line(description: str, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as raised:
        serverFromString(MemoryReactorClock(), description)
    assert len(str(raised.value).splitlines()) == 1


def test_every_wrong_limit_has_its_line() -> None:
    with pytest.raises(ValueError, match="guard: perip a") as raised:
        serverFromString(MemoryReactorClock(), "guard:perip=a:idle=b:tcp:8080")
    assert len(str(raised.value).splitlines()) == 2


def test_an_endpoint_with_too_few_or_too_many_parts_is_refused_as_twisted_does() -> None:
    for inside in ("tcp", "unix:/x:mode=600:660", "tcp:1:2:3:4:backlog=5"):
        with pytest.raises(TypeError):
            serverFromString(MemoryReactorClock(), f"guard:perip=5:{inside}")


def test_a_peer_over_its_limit_is_refused_until_one_of_its_connections_ends() -> None:
    _, factory = opened("guard:perip=1:tcp:8080")
    first = factory.buildProtocol(PEER)
    transport = StringTransportWithDisconnection()
    transport.protocol = first
    first.makeConnection(transport)
    # In memory nobody can tell whether something stands around the factory: it closes by itself.
    refused, refusal = factory.buildProtocol(PEER), StringTransport()
    refused.makeConnection(refusal)
    assert refusal.disconnecting or refusal.disconnected
    assert isinstance(factory.buildProtocol(OTHER), Protocol)
    transport.loseConnection()
    assert type(factory.buildProtocol(PEER)) is type(first)
    guard_of(factory).close()


def test_tls_stands_inside_of_the_guard(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    files = f"privateKey={quoteStringArgument(str(key))}:certKey={quoteStringArgument(str(certificate))}"
    recording = Recording()
    ports: list[Any] = []
    serverFromString(reactor(), f"guard:perip=1:ssl:0:{files}:interface=127.0.0.1").listen(recording).addCallback(
        ports.append
    )
    [port] = ports
    guarded = port.factory
    assert isinstance(guarded, GuardedFactory)
    assert isinstance(guarded.factory, TLSMemoryBIOFactory)
    assert guarded.factory.wrappedFactory is recording
    # Neither of them noticed.
    assert recording.calls == ["start"]
    entrance: Any = guarded.buildProtocol(PEER)
    assert entrance.protocol.wrappedProtocol.factory is recording
    transport = StringTransport()
    refusal: Any = guarded.buildProtocol(PEER)
    refusal.makeConnection(transport)
    assert transport.disconnected or transport.disconnecting
    del entrance
    port.connectionLost(None)
    port.stopReading()
    assert recording.calls == ["start", "stop"]
    guard_of(guarded).close()


def test_behind_a_proxy_all_clients_are_one_peer_unless_the_user_says_so() -> None:
    _, outermost = opened("guard:idle=60:haproxy:tcp:8080")
    assert isinstance(outermost, HAProxyWrappingFactory)
    guarded: Any = outermost.wrappedFactory
    assert guarded.label == "haproxy:tcp:8080"
    limits = guarded.guard.process.limits
    assert [limits[name] for name in ("perip", "periprate", "peripburst", "idle")] == [None, None, None, 60]
    _, outermost = opened("guard:perip=5:haproxy:tcp:8080")
    guarded = outermost.wrappedFactory
    assert guarded.guard.process.limits["perip"] == 5


class Slow:
    """An endpoint whose port can do nothing but be stopped."""

    def __init__(self) -> None:
        self.factories: list[Any] = []

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factories.append(factory)
        return succeed(object())


def test_ports_of_other_kinds_are_left_as_they_are() -> None:
    inside = Slow()
    endpoint = GuardedEndpoint(MemoryReactorClock(), inside, {"perip": 1}, "slow")  # type: ignore[arg-type]
    endpoint.listen(Factory())
    [guarded] = inside.factories
    assert not guarded.outermost


def test_the_guard_goes_with_the_last_port_and_the_last_connection() -> None:
    clock = MemoryReactorClock()
    inside = Slow()
    endpoint = GuardedEndpoint(clock, inside, {"idle": 60}, "slow")  # type: ignore[arg-type]
    recording = Recording()
    recording.protocol = Protocol
    endpoint.listen(recording)
    endpoint.listen(recording)
    one, other = inside.factories
    assert one.guard is other.guard
    one.doStart()
    other.doStart()
    protocol = one.buildProtocol(PEER)
    transport = StringTransportWithDisconnection()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    one.doStop()
    other.doStop()
    assert recording.calls == ["start", "stop"]
    # What is still open is still watched.
    assert clock.getDelayedCalls()
    transport.loseConnection()
    assert clock.getDelayedCalls() == []
    # It may listen again.
    endpoint.listen(recording)
    again = inside.factories[2]
    assert again.guard is not one.guard
    again.doStart()
    again.doStop()
    assert clock.getDelayedCalls() == []


def test_a_port_that_opens_while_the_last_connections_end_keeps_the_guard() -> None:
    clock = MemoryReactorClock()
    inside = Slow()
    endpoint = GuardedEndpoint(clock, inside, {"idle": 60}, "slow")  # type: ignore[arg-type]
    endpoint.listen(Recording())
    [one] = inside.factories
    one.doStart()
    protocol = one.buildProtocol(PEER)
    transport = StringTransportWithDisconnection()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    one.doStop()
    endpoint.listen(Recording())
    other = inside.factories[1]
    other.doStart()
    transport.loseConnection()
    assert other.guard is one.guard
    assert endpoint._guard is one.guard
    other.doStop()


@inlineCallbacks
def test_on_a_real_port_who_is_refused_sees_the_end_at_once() -> Generator[Deferred[Any], Any, None]:
    endpoint = serverFromString(reactor(), "guard:perip=1:idle=60:tcp:0:interface=127.0.0.1")
    port = yield endpoint.listen(Recording())
    address = ("127.0.0.1", port.getHost().port)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        second.setblocking(False)
        while True:
            yield turn()
            try:
                assert second.recv(1)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                break
        assert len(port.factory.guard.live) == 1
        yield port.stopListening()
        assert len(port.factory.guard.live) == 1
        first.close()
        while port.factory.guard.live:
            yield turn()


_LIGHT = """
import sys
import twisted.plugins.netsvc_plugins as plugins
assert plugins.guard.prefix == "guard"
print([name for name in ("twisted.internet.reactor", "netsvc.embedded.endpoint", "OpenSSL") if name in sys.modules])
"""


@pytest.mark.slow
def test_the_plugin_file_imports_neither_the_reactor_nor_the_guard() -> None:
    ended = run(sys.executable, "-c", _LIGHT)
    assert ended.stdout == "[]\n", ended.stderr


def fetch(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello.txt", timeout=PATIENCE) as response:
        body: bytes = response.read()
        return body


def hold(port: int) -> socket.socket:
    """Have a connection that is served, and kept, as soon as the end of the one before has come."""
    while True:
        # One that is refused may be reset before `connect` looks at it.
        with suppress(ConnectionError):
            held = connect(port)
            with suppress(ConnectionError):
                held.sendall(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
                if held.recv(1):
                    return held
            held.close()


@pytest.mark.slow
def test_the_web_server_of_twisted_runs_behind_it(tmp_path: Path) -> None:
    tmp_path.joinpath("hello.txt").write_text("hello")
    port = free_port()
    words = ["web", "--listen", f"guard:perip=1:tcp:{port}:interface=127.0.0.1", "--path", str(tmp_path)]
    with Server([TWISTD, "-n", "--pidfile=", *words]) as server:
        server.wait_for("starting on")
        assert fetch(port) == b"hello"
        with hold(port):
            with pytest.raises(OSError, match=r".*"):
                fetch(port)
        server.wait_for(r"perip")


@pytest.mark.slow
def test_a_wrong_limit_stops_a_program_with_a_line_that_says_what() -> None:
    ended = run(TWISTD, "-n", "--pidfile=", "web", "--listen", "guard:perip=many:tcp:0")
    assert ended.returncode == 1
    assert re.search(r"guard: perip many: .*\b1 to 1000000\b", ended.stderr + ended.stdout)
