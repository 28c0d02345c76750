"""A twistd plugin gets the sockets that another process has opened, when it asks for them in the same way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as any_reactor
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.ssl import CertificateOptions

from netsvc.listen.handoff import Sockets, asked_of
from netsvc.listen.opening import PortReactor, offered
from netsvc.listen.port import OpenPort
from netsvc.reactor.epoll import NetsvcReactor
from tests.builders.turned import shut

reactor: Any = any_reactor


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    ports: list[Any] = []
    yield ports
    for port in ports:
        OpenPort(port).release()


def passed(*ports: Any) -> Sockets:
    """Pass the sockets of ports that are open, as another process would."""
    kinds: dict[Any, Any] = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}
    copies = [os.dup(each.socket.fileno()) for each in ports]
    return Sockets(copies, asked=[(kinds[each.socket.type], asked_of(each)) for each in ports])


def quiet(protocol: Any) -> Any:
    protocol.noisy = False
    return protocol


@pytest.fixture
def fast(opened: list[Any]) -> Iterator[Any]:
    """Make a fast reactor, whose ports are closed before it."""
    made: Any = NetsvcReactor()
    yield made
    while opened:
        OpenPort(opened.pop()).release()
    shut(made)


def test_the_fast_reactor_uses_them_for_all_that_it_is_asked_to_open(
    fast: Any, opened: list[Any], tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    first = [
        fast.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
        fast.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
        fast.listenUNIX(path, quiet(Factory())),
    ]
    opened += first
    given = passed(*first)
    with offered(given, fast):
        again = [
            fast.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
            fast.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
            fast.listenUNIX(path, quiet(Factory()), mode=0o600),
        ]
        # Each is given once.
        others = [
            fast.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
            fast.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
            fast.listenUNIX(f"{path}2", quiet(Factory())),
            fast.listenSSL(0, quiet(Factory()), CertificateOptions(), interface="127.0.0.1"),
        ]
    opened += [*again, *others]
    assert [port.getHost() for port in again] == [port.getHost() for port in first]
    assert [given.has_given(port) for port in (*again, *others)] == [True] * 3 + [False] * 4
    # The process that these are handed to next finds them in the same way.
    assert [asked_of(port) for port in again] == [asked_of(port) for port in first]
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o666
    opened.append(fast.listenTCP(0, quiet(Factory()), interface="127.0.0.1"))
    assert not given.has_given(opened[-1])


def test_a_service_of_twisteds_is_given_them_on_any_reactor(opened: list[Any], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    opened += [
        reactor.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
        reactor.listenTCP(0, quiet(Factory())),
        reactor.listenUNIX(path, quiet(Factory())),
    ]
    asked = PortReactor(reactor, passed(*opened))
    again: list[Any] = [
        asked.listenSSL(0, quiet(Factory()), CertificateOptions(), interface="127.0.0.1"),
        asked.listenTCP(0, quiet(Factory())),
        asked.listenUNIX(path, quiet(Factory())),
        asked.listenTCP(0, quiet(Factory())),
    ]
    places = [port.getHost() for port in opened]
    opened += again
    assert [port.getHost() for port in again[:3]] == places
    assert again[3].getHost() not in places
    assert type(again[0].factory).__name__ == "TLSMemoryBIOFactory"
    assert [asked_of(port) for port in again[:3]] == [asked_of(port) for port in opened[:3]]


def test_other_reactors_are_left_alone() -> None:
    with offered(Sockets(), reactor):
        assert not hasattr(reactor, "find_port")


def test_a_file_is_known_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("here")
        opened: Any = bound
        given = Sockets([os.dup(bound.fileno())], asked=[("datagram", str(tmp_path / "here"))])
        assert given.take("stream", str(tmp_path / "here")) is None
        taken = given.take("datagram", str(tmp_path / "here"))
        assert taken is not None
        assert not taken.get_inheritable()
        taken.close()
        assert not given.has_given(opened.fileno())


def test_what_is_not_taken_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        given = Sockets.of(bound, bound)
        place = bound.getsockname()
    given.close()
    with socket.socket() as client:
        assert client.connect_ex(place)
