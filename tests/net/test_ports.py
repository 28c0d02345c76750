"""One process holds the sockets of several workers, each its own where the kernel divides what comes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import _SystemdParser
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.python.systemd import ListenFDs
from zope.interface import implementer

from netsvc.interfaces import Kind
from netsvc.listen.opening import ListenError
from netsvc.plan.address import parse_address
from netsvc.workers.group import PortGroup, open_group
from tests.builders.certificates import write_certificate
from tests.builders.loopback import reactor

WORKERS = 3


def held(text: str, kind: Kind = "stream", workers: int = WORKERS) -> PortGroup:
    return open_group(reactor(), parse_address(text, kind), workers)


def sockets(port: PortGroup, workers: int = WORKERS) -> list[socket.socket]:
    """Return the one socket of each worker, as it would have it."""
    numbers = [port.socket_of(worker).fileno() for worker in range(workers)]
    made = [socket.socket(fileno=os.dup(number)) for number in numbers]
    for each in made:
        each.setblocking(False)
    assert len(made) == workers
    return made


def inode(bound: socket.socket) -> int:
    return os.fstat(bound.fileno()).st_ino


def taken(bound: socket.socket) -> int:
    """Count what waits at a socket."""
    count = 0
    while True:
        try:
            if bound.type == socket.SOCK_STREAM:
                bound.accept()[0].close()
            else:
                bound.recvfrom(100)
        except BlockingIOError:
            return count
        count += 1


STREAMS = [
    "127.0.0.1:0",
    "0",
    "[::1]:0",
    "tcp:0:interface=127.0.0.1",
    "tcp6:0",
    "haproxy:tcp:0:interface=127.0.0.1",
    "proxy:trust=127.0.0.1:127.0.0.1:0",
    "proxy:trust=127.0.0.1:tcp:0:interface=127.0.0.1",
]
DATAGRAMS = ["127.0.0.1:0", "0", "[::1]:0", "udp:0:interface=127.0.0.1", "udp6:0"]


@pytest.mark.parametrize(
    ("text", "kind"), [*((text, "stream") for text in STREAMS), *((text, "datagram") for text in DATAGRAMS)]
)
def test_connections_and_peers_are_divided_among_sockets_of_their_own(text: str, kind: Kind) -> None:
    port = held(text, kind)
    assert not any(os.get_blocking(port.socket_of(worker).fileno()) for worker in range(WORKERS))
    bound = sockets(port)
    place = bound[0].getsockname()
    assert {each.getsockname() for each in bound} == {place}
    assert len({inode(each) for each in bound}) == WORKERS
    family = bound[0].family
    clients = [socket.socket(family, bound[0].type) for _ in range(60)]
    there = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place[0], place[0])
    for client in clients:
        client.connect((there, place[1]))
        if kind == "datagram":
            client.send(b"x")
    counts = [taken(each) for each in bound]
    assert sum(counts) == len(clients)
    assert all(counts)
    port.close()
    for opened in (*clients, *bound):
        opened.close()


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_every_interface_means_ipv4_as_well_for_every_worker(kind: Kind) -> None:
    port = held("0", kind)
    bound = sockets(port)
    options = {each.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for each in bound}
    assert options == {0}
    port.close()
    for each in bound:
        each.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_port_that_is_held_is_in_use_for_anybody_else(kind: Kind, workers: int) -> None:
    port = held("127.0.0.1:0", kind)
    number = sockets_number(port)
    with pytest.raises(ListenError, match=f"port {number} is in use"):
        held(f"127.0.0.1:{number}", kind, workers)
    with pytest.raises(ListenError, match=f"port {number} is in use"):
        held(f"{'tcp' if kind == 'stream' else 'udp'}:{number}", kind, workers)
    port.close()
    held(f"127.0.0.1:{number}", kind, workers).close()


def sockets_number(port: PortGroup) -> int:
    return int(port.opened.place().rpartition(":")[2])


def test_a_port_that_others_would_share_is_in_use() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ListenError, match="is in use"):
            held(f"127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize(
    ("form", "kind"), [("unix:{}/sock:mode=600", "stream"), ("unixgram:{}/sock:mode=600", "datagram")]
)
def test_a_unix_socket_is_shared_and_goes_with_the_one_who_holds_it(form: str, kind: Kind, tmp_path: Path) -> None:
    port = held(form.format(tmp_path), kind)
    bound = sockets(port)
    assert len({inode(each) for each in bound}) == 1
    assert (tmp_path / "sock").stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, bound[0].type) as client:
        client.connect(f"{tmp_path}/sock")
        client.send(b"x")
        port.close()
        # It is open until the last worker closes it: what waits can still be taken.
        assert taken(bound[2]) == 1
    assert list(tmp_path.iterdir()) == []
    for each in bound:
        each.close()


def test_a_unix_socket_whose_file_must_stay_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = held(f"unix:{tmp_path}/sock")
    bound = sockets(port)
    shared = inode(bound[0])
    for each in bound:
        each.close()

    def refuse(path: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refuse)
    port.close()
    assert f"socket:[{shared}]" not in [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.exists()]


@pytest.mark.parametrize("before", ["", "proxy:trust=127.0.0.1:"])
@pytest.mark.parametrize("form", ["ssl:0:privateKey={key}:certKey={cert}", "tls:0:cert={cert}:key={key}"])
def test_tls_is_bound_as_tcp_is_and_nothing_of_it_read(before: str, form: str, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    port = held(f"{before}{form.format(key=key, cert=certificate)}:interface=127.0.0.1")
    bound = sockets(port)
    assert len({inode(each) for each in bound}) == WORKERS
    with socket.create_connection(bound[0].getsockname()) as client:
        client.sendall(b"hello")
        # It waits for a worker.
        assert sum(map(taken, bound)) == 1
    port.close()
    for each in bound:
        each.close()


def test_a_certificate_that_is_missing_is_told_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"no\.pem: No such file or directory"):
        held(f"tls:0:cert={tmp_path}/no.pem")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """Pretend that systemd has passed a socket of each kind."""
    made = {
        "tcp": socket.socket(),
        "udp": socket.socket(type=socket.SOCK_DGRAM),
        "unix": socket.socket(socket.AF_UNIX),
        "gram": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    }
    for name, bound in made.items():
        bound.bind(str(tmp_path / name) if bound.family == socket.AF_UNIX else ("127.0.0.1", 0))
        if bound.type == socket.SOCK_STREAM:
            bound.listen()
    (tmp_path / "unix").chmod(0o600)
    descriptors = [os.dup(bound.fileno()) for bound in made.values()]
    monkeypatch.setattr(_SystemdParser, "_sddaemon", ListenFDs(descriptors, list(made)))
    yield made
    for bound in made.values():
        bound.close()
    # Twisted closes those of streams.
    for number, name in zip(descriptors, made, strict=True):
        if name in ("udp", "gram"):
            os.close(number)


@pytest.mark.parametrize("text", ["systemd:domain=INET:name=tcp", "haproxy:systemd:domain=INET:index=0"])
def test_a_stream_of_systemd_is_shared(passed: dict[str, socket.socket], text: str) -> None:
    port = held(text)
    bound = sockets(port)
    assert {inode(each) for each in bound} == {inode(passed["tcp"])}
    port.close()
    for each in bound:
        each.close()
    os.close(_SystemdParser._sddaemon.inheritedNamedDescriptors()["unix"])


def test_a_unix_stream_of_systemd_is_shared_and_its_file_left_alone(
    passed: dict[str, socket.socket], tmp_path: Path
) -> None:
    port = held("systemd:domain=UNIX:name=unix")
    bound = sockets(port)
    assert {inode(each) for each in bound} == {inode(passed["unix"])}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "unix"))
        port.close()
        assert taken(bound[1]) == 1
    assert (tmp_path / "unix").stat().st_mode & 0o777 == 0o600
    for each in bound:
        each.close()
    os.close(_SystemdParser._sddaemon.inheritedNamedDescriptors()["tcp"])


@pytest.mark.parametrize(("name", "domain", "own"), [("udp", "INET", WORKERS), ("gram", "UNIX", 1)])
def test_datagrams_of_systemd_are_divided_if_they_are_udp(
    passed: dict[str, socket.socket], name: str, domain: str, own: int
) -> None:
    port = held(f"systemd:domain={domain}:name={name}", "datagram")
    bound = sockets(port)
    assert len({inode(each) for each in bound}) == own
    assert inode(bound[0]) == inode(passed[name])
    port.close()
    for each in bound:
        each.close()
    for other in ("tcp", "unix"):
        os.close(_SystemdParser._sddaemon.inheritedNamedDescriptors()[other])


def refuse_to_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no socket be bound beside another: nobody can be made another user here."""

    def refuse(first: socket.socket, backlog: int | None) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr("netsvc.workers.group._bind_like", refuse)


def test_a_udp_socket_of_systemd_that_is_of_another_user_is_a_mistake(
    passed: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_bind(monkeypatch)
    with pytest.raises(ListenError, match=r"\bworker\b.*\budp:PORT\b"):
        held("systemd:domain=INET:name=udp", "datagram")
    for other in ("tcp", "unix"):
        os.close(_SystemdParser._sddaemon.inheritedNamedDescriptors()[other])


def test_a_port_that_cannot_be_bound_for_everybody_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_bind(monkeypatch)
    with pytest.raises(ListenError, match=r" 127\.0\.0\.1:\d+ .*\bworker: Address already in use"):
        held("127.0.0.1:0")


def test_a_socket_that_cannot_be_bound_is_closed() -> None:
    from netsvc.workers.group import _bind_like

    with socket.socket() as first:
        # It does not share.
        first.bind(("127.0.0.1", 0))
        first.listen()
        with pytest.raises(OSError, match="in use"):
            _bind_like(first, 5)


@implementer(IStreamServerEndpointStringParser)
class OddEndpoint:
    """An endpoint plugin that listens in a way of its own."""

    prefix = "odd"

    def __init__(self, listening: Deferred[Any]) -> None:
        self.listening = listening

    def parseStreamServer(self, reactor: Any, *args: object, **kwargs: object) -> Any:
        assert reactor.seconds() > 0
        return self

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.listening


def odd(monkeypatch: pytest.MonkeyPatch, listening: Deferred[Any]) -> None:
    from twisted.internet import endpoints

    original: Any = vars(endpoints)["getPlugins"]
    monkeypatch.setattr(endpoints, "getPlugins", lambda interface: [*original(interface), OddEndpoint(listening)])


def test_an_endpoint_that_takes_its_time_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    odd(monkeypatch, Deferred())
    with pytest.raises(ListenError, match=r"open.* shared"):
        held("odd:at:1")


def test_an_endpoint_without_a_socket_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Portlike:
        def stopListening(self) -> None:
            """Have nothing to stop."""

    listening: Deferred[Any] = Deferred()
    listening.callback(Portlike())
    odd(monkeypatch, listening)
    with pytest.raises(ListenError, match=r"socket.* share"):
        held("odd:at:1")
