"""The admin server opens its ports, says where, answers over real sockets, and closes."""

from __future__ import annotations

import socket
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.internet.defer import Deferred

from netsvc.admin.server import AdminServer
from netsvc.listen.handoff import Sockets
from netsvc.listen.opening import ListenError
from netsvc.plan.address import parse_address
from netsvc.plan.plan import AdminUse
from tests.builders.admin_site import FakeOperations, exposition
from tests.builders.http import request
from tests.builders.logs import Lines, collected
from tests.builders.loopback import converse, reactor, turn
from tests.builders.pems import KEY, Pem

Steps = Generator[Deferred[Any], Any, None]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def make(address: str, token_file: str | None = None) -> AdminServer:
    use = AdminUse(parse_address(address, "stream"), token_file, origin="netsvc.toml:7: ")
    return AdminServer(reactor(), use, FakeOperations(), exposition)


def get(connected: socket.socket, path: str = "/health", **headers: str) -> Deferred[tuple[int, bytes]]:
    return converse(connected, request(path, headers=headers, Connection="close"))


@inlineCallbacks
def test_a_port_is_served_on_both_loopback_addresses() -> Steps:
    server = make("0")
    yield server.open()
    try:
        where, _, port = server.place().rpartition(":")
        assert where == "http://localhost"
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, int(port))) as connected:
                _, answer = yield get(connected)
            assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"ok\n")
        assert [opened.place() for opened in server.listening] == [f"127.0.0.1:{port}", f"[::1]:{port}"]
    finally:
        yield server.close()
        # The last connections end.
        yield turn()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))


@inlineCallbacks
def test_one_address_is_one_port() -> Steps:
    server = make("127.0.0.1:0")
    yield server.open()
    assert server.place().startswith("http://127.0.0.1:")
    yield server.close()


@inlineCallbacks
def test_a_unix_socket_is_for_its_user_and_takes_any_name(tmp_path: Path) -> Steps:
    path = tmp_path / "admin"
    server = make(f"unix:{path}")
    yield server.open()
    assert server.place() == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(path))
        _, answer = yield get(connected, "/ready", Host="whatever")
    assert answer.endswith(b"ready\n")
    yield server.close()
    # The last connections end.
    yield turn()
    assert not path.exists()


@inlineCallbacks
def test_who_watches_is_let_go_at_the_end() -> Steps:
    server = make("127.0.0.1:0")
    yield server.open()
    with socket.create_connection(_end(server)) as connected:
        _, answer = yield converse(connected, request("/api/stream"))
        assert b"event: history" in answer and b"event: status" in answer
        yield server.close()
        with pytest.raises(ConnectionResetError):
            yield converse(connected, b"")


def _end(server: AdminServer) -> tuple[str, int]:
    host: Any = server.listening[0].port.getHost()
    return host.host, host.port


@inlineCallbacks
def test_a_port_in_use_is_a_line_and_leaves_nothing_open() -> Steps:
    for host in ("127.0.0.1", "::1"):
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
            server = make(f"{other.getsockname()[1]}")
            with pytest.raises(ListenError, match=r"^netsvc.toml:7: admin .*\d+: port \d+ is in use"):
                yield server.open()
            assert server.listening == []
            yield server.close()


@inlineCallbacks
def test_what_cannot_be_served_is_not_opened() -> Steps:
    server = make("0.0.0.0:0")
    with pytest.raises(ListenError, match="token"):
        yield server.open()
    yield server.close()


@inlineCallbacks
def test_the_sockets_of_another_process_are_gone_on_with() -> Steps:
    with socket.create_server(("127.0.0.1", 0)) as first:
        server = make(str(first.getsockname()[1]))
        yield server.open(Sockets([socket.dup(first.fileno())]))
        assert server.place() == f"http://127.0.0.1:{first.getsockname()[1]}"
        yield server.close()


@inlineCallbacks
def test_where_there_is_no_ipv6_the_other_address_will_do(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr("netsvc.config.admin_address.LOCALHOST", ("127.0.0.1", "192.0.2.1"))
    server = make(str(_free()))
    yield server.open()
    assert server.place().startswith("http://127.0.0.1:")
    yield server.close()


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


@inlineCallbacks
def test_a_token_is_asked_for_and_what_is_careless_is_warned_of(tmp_path: Path, lines: Lines) -> Steps:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o604)
    server = make("0.0.0.0:0", str(token))
    yield server.open()
    readable, clear = lines
    assert str(token) in readable
    assert f"chmod 600 {token}" in readable
    assert "0.0.0.0:0" in clear
    assert "tls:" in clear
    port = _end(server)[1]
    for headers, expected in (({}, b"401"), ({"Authorization": "Bearer 0123456789abcdef"}, b"200")):
        with socket.create_connection(("127.0.0.1", port)) as connected:
            _, answer = yield get(connected, Host="any.example", **headers)
        assert answer.split()[1] == expected
    yield server.close()
    # The last connections end.
    yield turn()


@inlineCallbacks
def test_tls_is_said_in_the_place(tmp_path: Path, lines: Lines) -> Steps:
    cert, key = Pem("localhost", key=KEY).write(tmp_path)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    server = make(f"tls:0:cert={cert}:key={key}", str(token))
    yield server.open()
    assert server.place().startswith("https://*:")
    assert lines == []
    yield server.close()


def test_nothing_is_closed_that_was_not_opened() -> None:
    server = make("0")
    server.close()


def collect(firing: Deferred[Any]) -> list[Any]:
    found: list[Any] = []
    firing.addCallback(found.append)
    return found
