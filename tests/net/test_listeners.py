"""Addresses become open ports, and failures become lines with a cure."""

from __future__ import annotations

import errno
import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.testing import MemoryReactorClock, StringTransport
from zope.interface import implementer

from netsvc.listen.opening import check_address, listen
from netsvc.listen.port import OpenPort, adopt
from netsvc.listen.sockets import bind, explain, resolve
from netsvc.plan.address import Address, parse_address
from tests.builders.certificates import write_certificate
from tests.builders.facts import states
from tests.builders.listening import _reactor, opened, refusal
from tests.conftest import LoggedErrors

CURE = "remove it or choose another address"


@pytest_twisted.inlineCallbacks
def test_a_bare_port_serves_ipv4_and_ipv6_on_one_free_port() -> Any:
    for kind in ("stream", "datagram"):
        listening = opened("0", kind)
        star, _, port = listening.place().rpartition(":")
        assert star == "*"
        assert int(port) > 0
        yield listening.stop()


@pytest_twisted.inlineCallbacks
def test_places_are_named_with_their_real_ports(tmp_path: Path) -> Any:
    for text, kind, expected in (
        ("127.0.0.1:0", "stream", "127.0.0.1:"),
        ("[::1]:0", "stream", "[::1]:"),
        ("[::]:0", "stream", "[::]:"),
        ("localhost:0", "datagram", ""),
        ("udp6:0", "datagram", "[::]:"),
        (f"unix:{tmp_path}/stream", "stream", f"{tmp_path}/stream"),
        (f"unixgram:{tmp_path}/gram", "datagram", f"{tmp_path}/gram"),
    ):
        listening = opened(text, kind)
        assert listening.place().startswith(expected), text
        yield listening.stop()
    assert list(tmp_path.iterdir()) == []


@pytest_twisted.inlineCallbacks
def test_a_bare_port_leaves_no_room_for_a_second_listener_of_either_ip_version() -> Any:
    listening = opened("0")
    port = listening.place().rpartition(":")[2]
    for text in (port, f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert states(refusal(text), f"port {port} ", f" [::]:{port}")
    yield listening.stop()


def test_a_machine_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_ipv6", False)
    with bind(parse_address("0", "stream")) as bound:
        assert bound.family == socket.AF_INET

    class NoAddress(socket.socket):
        def bind(self, place: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "no")
            super().bind(place)

    class NoFamily(socket.socket):
        # As with the kernel's ipv6.disable=1.
        def __init__(self, family: Any = socket.AF_INET, *others: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "no")
            super().__init__(family, *others, **named)

    monkeypatch.setattr(socket, "has_ipv6", True)
    real, localhost = socket.socket, parse_address("localhost:9001", "stream")
    monkeypatch.setattr(socket, "getaddrinfo", partial(known, "::1", "127.0.0.1"))
    for kind in (NoAddress, NoFamily):
        monkeypatch.setattr(socket, "socket", kind)
        with bind(parse_address("0", "stream")) as bound:
            assert bound.family == socket.AF_INET
        assert [each.text for each in resolve(localhost)] == ["127.0.0.1:9001"]
    monkeypatch.setattr(socket, "socket", real)


def known(*hosts: Any, **_: object) -> list[tuple[Any, ...]]:
    """Stand for `socket.getaddrinfo`, with two entries for each host, and the host and port of the call at the end."""
    port = hosts[-1]
    places: list[tuple[Any, Any]] = [
        (socket.AF_INET6, (host, port, 0, 0)) if ":" in host else (socket.AF_INET, (host, port)) for host in hosts[:-2]
    ]
    return [(family, None, None, None, place) for family, place in places for _ in range(2)]


def test_a_name_is_every_address_of_it_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", partial(known, "::1", "127.0.0.1", "192.0.2.1"))
    made = resolve(parse_address("proxy:trust=10.0.0.1:a.example:9001", "stream"))
    prefix = "proxy:trust=10.0.0.1:"
    assert [each.text for each in made] == [f"{prefix}[::1]:9001", f"{prefix}127.0.0.1:9001"]
    assert [(each.endpoint, each.host) for each in made] == [("[::1]:9001", "::1"), ("127.0.0.1:9001", "127.0.0.1")]
    for text in ("9001", "127.0.0.1:9001", "[::1]:9001", "[fe80::1%lo]:9001", "tcp:9001", "unix:/run/x"):
        assert resolve(parse_address(text, "stream")) == [parse_address(text, "stream")]
    monkeypatch.setattr(socket, "getaddrinfo", partial(known, "192.0.2.1"))
    # The error of binding it explains why.
    assert [each.text for each in resolve(parse_address("a.example:9001", "datagram"))] == ["a.example:9001"]


def test_a_machine_without_any_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(socket.socket):
        def bind(self, place: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "no")

    monkeypatch.setattr(socket, "socket", Nothing)
    with pytest.raises(OSError, match="no address is known"):
        bind(parse_address("0", "datagram"))


def test_a_port_that_is_gone_before_the_reactor_runs_leaves_no_socket_file(tmp_path: Path) -> None:
    listening = [opened(f"unix:{tmp_path}/stream"), opened(f"unixgram:{tmp_path}/gram", "datagram"), opened("0")]
    assert len(list(tmp_path.iterdir())) == 3
    for each in listening:
        each.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_a_place_is_escaped() -> None:
    class Port:
        def getHost(self) -> UNIXAddress:
            return UNIXAddress("\0a\x1b[31m\nb")

    port: Any = Port()
    assert OpenPort(port).place() == r"@a\x1b[31m\nb"


def test_a_port_of_an_endpoint_plugin_is_stopped_as_it_can_be() -> None:
    class Port:
        stopped = 0

        def stopListening(self) -> None:
            self.stopped += 1

    port: Any = Port()
    OpenPort(port).abandon()
    assert port.stopped == 1


def test_a_port_of_an_unknown_kind_is_taken_to_serve_what_it_says() -> None:
    class Port:
        def getHost(self) -> IPv6Address:
            return IPv6Address("TCP", "::", 7)

    port: Any = Port()
    assert OpenPort(port).place() == "*:7"


def test_an_endpoint_plugin_that_misbehaves_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @implementer(IStreamServerEndpointStringParser)
    class Odd:
        prefix = "odd"

        def parseStreamServer(self, reactor: object, *args: object, **kwargs: object) -> Any:
            raise {"key": KeyError("colour"), "bug": RuntimeError("broken")}[str(args[0])]

    monkeypatch.setattr("twisted.internet.endpoints.getPlugins", lambda interface: [Odd()])
    for text, reason in (("odd:key:1", "'colour'"), ("odd:bug:1", "RuntimeError: broken")):
        with pytest.raises(ValueError, match=reason):
            check_address(parse_address(text, "stream"))


def test_a_port_that_fails_to_close_is_logged(logged_errors: LoggedErrors) -> None:
    class Port:
        def stopListening(self) -> None:
            raise OSError("stuck")

    port: Any = Port()
    results: list[object] = []
    OpenPort(port).stop().addBoth(results.append)
    assert results == [None]
    assert len(logged_errors.flush(OSError)) == 1


@pytest_twisted.inlineCallbacks
def test_the_file_of_a_dead_datagram_socket_is_taken_over_and_a_living_one_is_not(tmp_path: Path) -> Any:
    path = tmp_path / "gram"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    listening = opened(f"unixgram:{path}:mode=600", "datagram")
    assert path.stat().st_mode & 0o777 == 0o600
    assert states(refusal(f"unixgram:{path}", "datagram"), path, "in use; ")
    yield listening.stop()
    path.write_text("not a socket")
    assert states(refusal(f"unixgram:{path}", "datagram"), path, " file", CURE)
    assert path.read_text() == "not a socket"


@pytest_twisted.inlineCallbacks
def test_a_malformed_proxy_header_closes_its_connection_and_logs_nothing(logged_errors: LoggedErrors) -> Any:
    listening = opened("haproxy:tcp:0:interface=127.0.0.1")
    factory: Any = listening.port.factory  # type: ignore[attr-defined]
    got: list[bytes] = []

    def connected() -> Any:
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000))
        protocol.wrappedProtocol.dataReceived = got.append
        protocol.makeConnection(StringTransport())
        return protocol

    for header in (
        b"PROXY TCP4 a b c d\r\n",
        b"PROXY TCP4 \xff \xff 1 2\r\n",
        b"PROXY TCP6 ::1 ::1 1 \r\n",
        b"PROXY TCP4\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x00",
    ):
        protocol = connected()
        protocol.dataReceived(header)
        assert protocol.transport.disconnecting, header
    protocol = connected()
    protocol.dataReceived(b"PROXY TCP4 192.0.2.9 192.0.2.2 4000 9001\r\nhello")
    assert (got, protocol.getPeer().host) == ([b"hello"], "192.0.2.9")
    assert logged_errors == []

    # What the protocol itself raises is its own fault, and is told.
    def fail(data: bytes) -> None:
        raise LookupError("mine")

    protocol.wrappedProtocol.dataReceived = fail
    with pytest.raises(LookupError, match="mine"):
        protocol.dataReceived(b"more")
    yield listening.stop()


@pytest_twisted.inlineCallbacks
def test_connections_that_wait_are_taken_before_the_port_closes() -> Any:
    built: list[object] = []

    class Counting(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> None:
            built.append(addr)

    results: list[Any] = []
    listen(_reactor(), parse_address("127.0.0.1:0", "stream"), Counting()).addCallback(results.append)
    with socket.create_connection(("127.0.0.1", int(results[0].place().rpartition(":")[2]))):
        results[0].take_waiting()
        assert len(built) == 1
    yield results[0].stop()


def test_endpoints_get_a_long_backlog_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    reactor = MemoryReactorClock()
    opened("tcp:1", reactor=reactor)
    opened("tcp:2:backlog=7", reactor=reactor)
    opened(f"unix:{tmp_path}/x", reactor=reactor)
    assert [each[2] for each in reactor.tcpServers] == [4096, 7]
    assert [each[2] for each in reactor.unixServers] == [4096]


def test_an_endpoint_is_checked_without_opening_it(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    for good in ("9001", "tcp:9001", f"unix:{tmp_path}/x", f"ssl:443:privateKey={key}:certKey={certificate}"):
        check_address(parse_address(good, "stream"))
    for bad, reason in (
        ("wrong:1:2", "Unknown endpoint type: 'wrong'"),
        ("tcp:1:colour=red", "tcp: has no argument colour; write tcp:PORT"),
        (f"ssl:443:privateKey={tmp_path}/none.pem:certKey={certificate}", "none.pem"),
        (f"ssl:443:privateKey={certificate}:certKey={certificate}", "no matching key and certificate in PEM form"),
        ("haproxy:systemd:domain=INET:index=0", "systemd passed no socket 0; is it run by a .socket unit?"),
        ("haproxy:systemd:domain=INET:name=web", "systemd passed no socket web"),
        ("haproxy:systemd:domain=INET", "Specify exactly one"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)) as raised:
            check_address(parse_address(bad, "stream"))
        assert len(str(raised.value).splitlines()) == 1
    check_address(parse_address("9001", "datagram"))


@pytest_twisted.inlineCallbacks
def test_a_unix_datagram_socket_bound_by_somebody_else_is_adopted(tmp_path: Path) -> Any:
    arrived: Deferred[bytes] = Deferred()

    class Receiver(DatagramProtocol):
        noisy = False

        def datagramReceived(self, data: bytes, addr: object) -> None:
            arrived.callback(data)

    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(str(tmp_path / "gram"))
    port = adopt(_reactor(), bound, Receiver())
    assert OpenPort(port).place() == str(tmp_path / "gram")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", str(tmp_path / "gram"))
    assert (yield arrived) == b"hello"
    yield OpenPort(port).stop()


@pytest.mark.parametrize(
    ("error", "text", "kind", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "80", "stream", "port 80 is privileged; choose one from"),
        (PermissionError(errno.EACCES, "Permission denied"), "unix:/root/x", "stream", "Permission denied"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign"), "192.0.2.1:9", "stream", "this machine has no such address"),
        (OSError(errno.ENOENT, "No such file"), "unixgram:/no/x", "datagram", "the directory of that path does not"),
        (
            CannotListenError(None, b"/x", OSError(errno.EADDRINUSE, "in use")),
            "unix:/x",
            "stream",
            "/x is in use; stop what uses it",
        ),
        (ValueError("odd"), "9001", "stream", "odd"),
    ],
)
def test_a_failure_is_explained(error: Exception, text: str, kind: Any, expected: str) -> None:
    assert explain(error, parse_address(text, kind)).startswith(expected)


def test_the_holder_of_a_port_is_named_for_streams_and_datagrams() -> None:
    with socket.socket(socket.AF_INET6) as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        stream.bind(("::1", 0))
        stream.listen()
        datagram.bind(("127.0.0.1", 0))
        port = stream.getsockname()[1]
        assert states(refusal(f"[::1]:{port}"), f"port {port} ", f" [::1]:{port}; ")
        port = datagram.getsockname()[1]
        assert states(refusal(f"127.0.0.1:{port}", "datagram"), f"port {port} ", f" 127.0.0.1:{port}; ")
        datagram.connect(("127.0.0.1", 9))
        assert states(refusal(f"127.0.0.1:{port}", "datagram"), f"port {port} ", f" 127.0.0.1:{port}; ")
        with socket.create_connection(stream.getsockname()[:2]) as client:
            port = client.getsockname()[1]
            assert states(refusal(f"[::1]:{port}"), f"port {port} ", f" [::1]:{port}; ")


def test_a_name_that_cannot_be_resolved_is_said_to_be_one() -> None:
    assert states(refusal("no-such-host.invalid:9"), " address ", "no-such-host.invalid")
    # The grammar of addresses refuses what no resolver would look up.
    with pytest.raises(ValueError, match="not a host name"):
        opened("a..b:9")


def test_without_proc_the_holder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *arguments: object) -> str:
        raise FileNotFoundError(errno.ENOENT, os.fspath(path))

    monkeypatch.setattr(Path, "read_text", fail)
    address = Address("9001", "stream", "inet", None, 9001)
    error = OSError(errno.EADDRINUSE, "in use")
    assert states(explain(error, address), "port 9001 ", "in use; ") and "process" not in explain(error, address)
