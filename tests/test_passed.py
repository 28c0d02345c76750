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

from netsvc.embedded.passed import Passed, PassedSocket, asked_of
from netsvc.listeners.opening import Listening

reactor: Any = any_reactor


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    ports: list[Any] = []
    yield ports
    for port in ports:
        Listening(port).let_go()


def passed(*ports: Any) -> Passed:
    """Pass the sockets of ports that are open, as another process would."""
    kinds: dict[Any, Any] = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}
    return Passed(
        [PassedSocket(kinds[each.socket.type], asked_of(each), os.dup(each.socket.fileno())) for each in ports]
    )


def close(given: Passed, descriptors: list[PassedSocket]) -> None:
    for each in descriptors:
        os.close(each.descriptor)


def quiet(protocol: Any) -> Any:
    protocol.noisy = False
    return protocol


def test_whatever_is_asked_for_in_the_same_way_has_the_same_socket(opened: list[Any], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = [
        reactor.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
        reactor.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
        reactor.listenUNIX(path, quiet(Factory())),
    ]
    opened += first
    given = passed(*first)
    descriptors = list(given._sockets)
    with given.offered(reactor):
        again = [
            reactor.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
            reactor.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
            reactor.listenUNIX(path, quiet(Factory()), mode=0o600),
        ]
        # Each is given once.
        others = [
            reactor.listenTCP(0, quiet(Factory()), interface="127.0.0.1"),
            reactor.listenUDP(0, quiet(DatagramProtocol()), interface="127.0.0.1"),
            reactor.listenUNIX(f"{path}2", quiet(Factory())),
            reactor.listenSSL(0, quiet(Factory()), CertificateOptions(), interface="127.0.0.1"),
        ]
    opened += [*again, *others]
    assert [port.getHost() for port in again] == [port.getHost() for port in first]
    assert [given.has_given(port) for port in (*again, *others)] == [True] * 3 + [False] * 4
    # And whoever takes these over finds them in the same way.
    assert [asked_of(port) for port in again] == [asked_of(port) for port in first]
    assert "listenTCP" not in vars(reactor)
    close(given, descriptors)


def test_tls_stands_around_what_is_given(opened: list[Any]) -> None:
    opened.append(reactor.listenTCP(0, quiet(Factory()), interface="127.0.0.1"))
    given = passed(*opened)
    descriptors = list(given._sockets)
    with given.offered(reactor):
        opened.append(reactor.listenSSL(0, quiet(Factory()), CertificateOptions(), interface="127.0.0.1"))
    assert opened[1].getHost() == opened[0].getHost()
    assert type(opened[1].factory).__name__ == "TLSMemoryBIOFactory"
    close(given, descriptors)


def test_a_port_that_is_to_be_opened_has_its_socket_and_a_file_is_known_by_its_path(
    opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.append(reactor.listenUDP(0, quiet(DatagramProtocol())))
    given = passed(*opened)
    descriptors = list(given._sockets)

    class Wanted:
        interface, port = "", 0
        _preexistingSocket: Any = None

    wanted = Wanted()
    given.take_datagrams(wanted)
    assert wanted._preexistingSocket.getsockname() == opened[0].socket.getsockname()
    wanted._preexistingSocket.close()
    given.take_datagrams(wanted)
    assert wanted._preexistingSocket is None
    close(given, descriptors)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("here")
        other = Passed([PassedSocket("datagram", str(tmp_path / "here"), bound.fileno())])
        taken = other.take_path("datagram", b"here")
        assert taken is not None
        taken.close()
        assert other.take_path("datagram", "\0here") is None
    assert not other.has_given(object())
