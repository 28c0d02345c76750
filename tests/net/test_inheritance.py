from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsvc.interfaces import Kind
from netsvc.listen.handoff import OfferedPort, PassedPort, Sockets
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Listener, Plan
from netsvc.upgrade.predecessor import Inheritance
from tests.builders.offered import NoOwner


class Before:
    """What another process has open."""

    def __init__(self) -> None:
        self.ports: list[PassedPort] = []
        self.sockets: list[socket.socket] = []

    def bind(self, *, datagrams: bool = False, port: int = 0, shared: bool = False) -> int:
        """Bind a socket on loopback; return its port."""
        bound = socket.socket(type=socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
        self.sockets.append(bound)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not datagrams)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        bound.bind(("127.0.0.1", port))
        if not datagrams:
            bound.listen()
        return int(bound.getsockname()[1])

    def has(self, name: str, kind: Kind, address: str, *, role: str = "listener", count: int = 1, **named: Any) -> None:
        """Note the last sockets that were bound as a port."""
        numbers = [os.dup(each.fileno()) for each in self.sockets[-count:]]
        self.ports.append(PassedPort(role, name, kind, address, numbers, **named))


@pytest.fixture
def before() -> Iterator[Before]:
    made = Before()
    yield made
    for each in made.sockets:
        each.close()


def find(inheritance: Inheritance, *listeners: tuple[str, Kind, str]) -> list[Sockets | None]:
    parsed = []
    for name, kind, address in listeners:
        use, protocol = name.split()
        parsed.append(Listener(use, protocol, parse_address(address, kind)))
    return inheritance.find(Plan({}, tuple(parsed)))


def number(found: Sockets | None) -> int:
    """Return the port of the socket that was found, and close all."""
    assert found is not None
    found.close_beside()
    bound = found.take()
    assert bound is not None
    with bound:
        found.close()
        return int(bound.getsockname()[1])


def test_each_listener_finds_its_socket_whatever_stands_around_its_protocol(before: Before) -> None:
    stream = before.bind()
    before.has("echo tcp", "stream", f"127.0.0.1:{stream}")
    datagram = before.bind(datagrams=True)
    before.has("echo udp", "datagram", f"127.0.0.1:{datagram}", key_files={"a": "b"})
    inheritance = Inheritance(before.ports)
    assert [address.port for address in inheritance.addresses()] == [stream, datagram]
    found = find(
        inheritance,
        ("echo udp", "datagram", f"127.0.0.1:{datagram}"),
        ("files classic", "stream", f"proxy:trust=10.0.0.1:127.0.0.1:{stream}"),
        ("chat line", "stream", "127.0.0.1:0"),
    )
    assert found[0] is not None and found[0].key_files == {"a": "b"}
    assert number(found[0]) == datagram
    assert number(found[1]) == stream
    assert found[2] is None
    inheritance.close()


def test_a_free_port_keeps_its_number_and_an_endpoint_may_be_written_in_another_way(before: Before) -> None:
    free = before.bind()
    before.has("echo tcp", "stream", "127.0.0.1:0")
    named = before.bind()
    before.has("echo tcp", "stream", f"127.0.0.1:{named}")
    inheritance = Inheritance(before.ports)
    found = find(
        inheritance,
        ("echo tcp", "stream", f"tcp:{named}:interface=127.0.0.1"),
        ("echo tcp", "stream", "127.0.0.1:0"),
    )
    assert [number(each) for each in found] == [named, free]
    inheritance.close()


def test_the_sockets_of_workers_come_with_those_beside_them(before: Before) -> None:
    port = before.bind(shared=True)
    before.bind(port=port, shared=True)
    before.has("echo tcp", "stream", f"127.0.0.1:{port}", count=2)
    inheritance = Inheritance(before.ports)
    [found] = find(inheritance, ("echo tcp", "stream", f"127.0.0.1:{port}"))
    assert found is not None and len(found.beside or ()) == 1
    assert number(found) == port
    inheritance.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_is_in_the_way_makes_room(before: Before, shared: bool) -> None:
    port = before.bind(shared=shared)
    before.has("echo tcp", "stream", f"127.0.0.1:{port}")
    inheritance = Inheritance(before.ports)
    [found] = find(inheritance, ("echo tcp", "stream", f"0.0.0.0:{port}"))
    assert found is not None and found.beside is None
    assert number(found) == port
    inheritance.close()


def test_what_cannot_be_bind_like_is_left_to_be_told_of_later(before: Before) -> None:
    port = before.bind()
    before.has("echo tcp", "stream", f"127.0.0.1:{port}")
    inheritance = Inheritance(before.ports)
    [found] = find(inheritance, ("echo tcp", "stream", f"192.0.2.1:{port}"))
    assert found is None
    inheritance.close()


def test_an_address_of_which_this_version_knows_nothing_is_nobody_s(before: Before, tmp_path: Path) -> None:
    before.sockets.append(socket.socket(socket.AF_UNIX))
    before.sockets[-1].bind(str(tmp_path / "socket"))
    before.has("echo tcp", "stream", "quic:9001:")
    inheritance = Inheritance(before.ports)
    found = find(inheritance, ("echo tcp", "stream", f"unix:{tmp_path}/other"))
    assert found[0] is None
    inheritance.close()


def test_plugins_and_the_admin_page_find_theirs_by_what_they_ask_for(before: Before) -> None:
    port = before.bind()
    before.has("web", "stream", f"127.0.0.1 {port}", role="plugin")
    admin = before.bind()
    before.has("admin", "stream", "9009", role="admin")
    inheritance = Inheritance(before.ports)
    assert inheritance.addresses() == []
    assert inheritance.plugin("web-2") is None
    passed = inheritance.plugin("web")
    assert passed is not None
    taken = passed.take("stream", f"127.0.0.1 {port}")
    assert taken is not None
    assert taken.getsockname()[1] == port
    taken.close()
    assert inheritance.admin("9010") is None
    assert number(inheritance.admin("9009")) == admin
    inheritance.close()


def test_what_is_open_now_is_known_by_its_sockets(before: Before) -> None:
    port = before.bind()
    before.has("echo tcp", "stream", f"127.0.0.1:{port}", files=["/run/a"])
    before.bind()
    before.has("echo tcp", "stream", "127.0.0.1:0")
    inheritance = Inheritance(before.ports)
    with socket.socket() as new, before.sockets[0].dup() as copy:
        mine = OfferedPort("listener", "echo tcp", "stream", "", [copy], NoOwner())
        other = OfferedPort("listener", "chat line", "stream", "", [new], NoOwner())
        assert inheritance.taken([other, mine]) == {0: mine}
    assert inheritance.files(0) == ["/run/a"]
    inheritance.close()
