"""Of a TLS connection it is known as well who has ended it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.ssl import PrivateCertificate

from netsvc.guard.timeouts import LINGER
from tests.builders.accounted import Accounts, accounts, reset
from tests.builders.certificates import write_certificate
from tests.builders.pems import client_context
from tests.builders.reloaded import RunningServer


class Peer:
    """A TLS client that reads nothing but what it must, on a socket of its own."""

    def __init__(self, world: RunningServer, plain: socket.socket | None = None) -> None:
        self.world = world
        self.socket = world.connect(world.port()) if plain is None else plain
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self._received, self._sent, server_hostname="localhost")
        self._until_done(self.tls.do_handshake)
        if plain is None:
            assert self._until_done(lambda: self.tls.read(4)) == b"one\n"

    def _until_done(self, action: Any) -> Any:
        for _ in range(100):
            try:
                return action()
            except ssl.SSLWantReadError:
                self.send()
                self._received.write(self.world.receive(self.socket))
        raise AssertionError("it is never done")

    def send(self) -> None:
        """Send what there is to be sent."""
        if data := self._sent.read():
            self.socket.send(data)

    def read(self) -> bytes:
        """Read what comes next; nothing at the end."""
        try:
            return bytes(self._until_done(lambda: self.tls.read(65536)))
        except ssl.SSLZeroReturnError:
            return b""

    def say_farewell(self) -> None:
        """Say that nothing more comes (RFC 8446, section 6.1)."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.send()


def ending(tmp_path: Path, service: str = "says") -> Any:
    key, certificate = write_certificate(tmp_path, "localhost")
    uses = {"one": {"text": "one", "service": service}}
    return accounts(f"one tcp tls:0:interface=127.0.0.1:cert={certificate}:key={key}", uses=uses)


def ended(made: Accounts) -> str:
    return made.last().reason


@pytest.mark.parametrize("farewell", [True, False])
def test_a_peer_that_ends_it_in_order_has_ended_it(tmp_path: Path, farewell: bool) -> None:
    with ending(tmp_path) as made:
        peer = Peer(made.world)
        if farewell:
            peer.say_farewell()
        else:
            peer.socket.close()
        assert ended(made) == "peer"


def test_a_peer_that_half_closes_has_ended_it_and_got_its_answer(tmp_path: Path) -> None:
    with ending(tmp_path, "halves") as made:
        peer = Peer(made.world)
        peer.tls.write(b"question")
        peer.say_farewell()
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.read() == b"question"
        assert peer.read() == b""
        assert ended(made) == "peer"


def test_a_service_closes_without_waiting_for_the_farewell_of_the_peer(tmp_path: Path) -> None:
    with ending(tmp_path) as made:
        peer = Peer(made.world)
        [connection] = made.world.host.guard.live
        connection.transport.loseConnection()
        assert peer.read() == b""
        # The end of the stream follows.
        assert made.world.receive(peer.socket) == b""
        assert ended(made) == "server"


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest.mark.parametrize("form", ["one tcp 127.0.0.1:0", "one tcp unix:{}"])
def test_tls_that_a_protocol_starts_ends_in_the_same_way(tmp_path: Path, form: str) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    options = PrivateCertificate.loadPEM(key.read_bytes() + certificate.read_bytes()).options()
    with accounts(form.format(tmp_path / "socket")) as made:
        if "unix" in form:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "socket"))
            assert made.world.receive(client) == b"one\n"
        else:
            client, _ = made.world.greeting(made.world.port())
        [connection] = made.world.host.guard.live
        connection.transport.startTLS(options)
        peer = Peer(made.world, client)
        connection.transport.write(b"secret")
        assert peer.read() == b"secret"
        connection.transport.loseConnection()
        assert peer.read() == b""
        assert made.world.receive(peer.socket) == b""
        assert ended(made) == "server"
        client.close()


def test_a_peer_that_does_not_read_keeps_its_place_with_tls_as_well(tmp_path: Path) -> None:
    with ending(tmp_path) as made:
        peer = Peer(made.world)
        [connection] = made.world.host.guard.live
        connection.transport.write(bytes(1_000_000))
        connection.transport.loseConnection()
        made.world.turn(20)
        assert connection.closed is not None
        assert made.status().listeners[0].counts.open == 1
        made.world.advance(LINGER + 1)
        assert ended(made) == "stalled"
        peer.socket.close()


def test_a_service_that_ends_it_has_ended_it(tmp_path: Path) -> None:
    with ending(tmp_path) as made:
        peer = Peer(made.world)
        [connection] = made.world.host.guard.live
        connection.transport.loseConnection()
        made.world.turn()
        peer.say_farewell()
        assert ended(made) == "server"


def test_a_peer_that_breaks_it_off_is_told_apart(tmp_path: Path) -> None:
    with ending(tmp_path) as made:
        peer = Peer(made.world)
        reset(peer.socket)
        assert ended(made) == "reset"
