"""The connection to a real Redis over TCP, TLS and a UNIX socket, and to what is no Redis."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, inlineCallbacks

from netsvc.services.chat.store.redis_link import LinkError, RedisAddress, RedisLink, RefusedError, parse_address
from tests.builders.certificates import write_certificate
from tests.builders.loopback import reactor, turn
from tests.builders.processes import free_port
from tests.builders.redis import RedisServer


class Place:
    """A Redis that wants a password, with a port, a port with TLS, and a UNIX socket."""

    def __init__(self, directory: Path) -> None:
        key, self.certificate = write_certificate(directory, "localhost")
        self.port, self.tls_port = free_port(), free_port()
        self.server = RedisServer(
            directory,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", "geheim"),
            *("--tls-port", str(self.tls_port), "--tls-cert-file", str(self.certificate), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(self.certificate), "--tls-auth-clients", "no"),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("redis"))
    yield made
    made.server.stop()


def link(address: RedisAddress, patience: float = 60) -> RedisLink:
    return RedisLink(address, reactor(), patience=patience)


@inlineCallbacks
def closed(used: RedisLink) -> Any:
    """Close a link, and wait until the reactor has."""
    protocol = used._protocol
    used.close()
    if protocol is not None and protocol.connected:
        yield protocol.whenDisconnected()


@inlineCallbacks
@pytest.mark.parametrize("form", ["redis://:geheim@127.0.0.1:{port}/1", "redis+unix://:geheim@{path}?db=1"])
def test_it_logs_in_and_asks_in_utf_8(place: Place, form: str) -> Any:
    used = link(parse_address(form.format(port=place.port, path=place.server.path)))
    yield used.connect()
    yield used.command("SET", "学习", "a\r\nb")
    answer = yield used.command("GET", "学习")
    assert answer == b"a\r\nb"
    answer = yield used.command("EVAL", "return {1, 'x', {2}}", 0)
    assert answer == [1, b"x", [2]]
    with pytest.raises(RefusedError, match="ERR unknown command"):
        yield used.command("NONSENSE")
    assert used.is_connected
    yield closed(used)
    with pytest.raises(LinkError):
        yield used.command("PING")


@inlineCallbacks
def test_it_uses_tls_and_knows_its_server(place: Place, tmp_path: Path) -> Any:
    (tmp_path / "password").write_text("geheim\n")
    url = f"rediss://default@localhost:{place.tls_port}?password-file={tmp_path / 'password'}"
    used = link(parse_address(f"{url}&ca-file={place.certificate}"))
    yield used.connect()
    answer = yield used.command("ECHO", "hello")
    assert answer == b"hello"
    yield closed(used)
    with pytest.raises(LinkError):
        yield link(parse_address(url)).connect()


@inlineCallbacks
@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("redis://127.0.0.1:{port}", "NOAUTH"),
        ("redis://:wrong@127.0.0.1:{port}", "WRONGPASS"),
        ("redis://:geheim@127.0.0.1:{port}/99", "out of range"),
        ("redis://127.0.0.1:{free}", "refused"),
        ("redis+unix:///nowhere/redis.sock", "No such file"),
        ("redis://127.0.0.1:{port}?password-file=/nowhere", "No such file"),
        ("rediss://localhost:{tls}?ca-file=/nowhere", "No such file"),
    ],
)
def test_what_is_wrong_is_said(place: Place, form: str, reason: str) -> Any:
    used = link(parse_address(form.format(port=place.port, tls=place.tls_port, free=free_port())))
    with pytest.raises((LinkError, RefusedError), match=reason) as refused:
        yield used.connect()
    assert "geheim" not in str(refused.value)
    assert not used.is_connected
    yield turn()


@inlineCallbacks
def test_a_server_that_does_not_answer_is_given_up() -> Any:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        used = link(RedisAddress("127.0.0.1", silent.getsockname()[1]), patience=0.05)
        with pytest.raises(LinkError, match="no answer"):
            yield used.connect()
        assert not used.is_connected
    yield turn()


@inlineCallbacks
def test_what_waits_fails_when_the_connection_is_lost(place: Place) -> Any:
    used, other = (link(parse_address(f"redis+unix://:geheim@{place.server.path}")) for _ in range(2))
    yield used.connect()
    yield other.connect()
    identity = yield used.command("CLIENT", "ID")
    waiting: Deferred[Any] = used.command("BLPOP", "nothing", 0)
    yield other.command("CLIENT", "KILL", "ID", identity)
    with pytest.raises(LinkError):
        yield waiting
    yield used.connect()
    yield closed(used)
    yield closed(other)
