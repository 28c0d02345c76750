"""Of a TLS connection it is known as well who has ended it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.accounted import Accounts, accounts, reset
from tests.certificates import write_certificate
from tests.pems import client_context
from tests.reloaded import World


class Peer:
    """A TLS client that reads nothing but what it must, on a socket of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.socket = world.connect(world.port())
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self._received, self._sent, server_hostname="localhost")
        self._until_done(self.tls.do_handshake)
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
        self.socket.send(self._sent.read())

    def say_farewell(self) -> None:
        """Say that nothing more comes (RFC 8446, section 6.1)."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.send()


def ending(tmp_path: Path) -> Any:
    key, certificate = write_certificate(tmp_path, "localhost")
    return accounts(f"one tcp tls:0:interface=127.0.0.1:cert={certificate}:key={key}")


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
