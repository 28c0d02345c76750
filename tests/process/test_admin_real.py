"""The admin server as a process: with client certificates, and with peers that mean no good."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsvc.admin.http import MOST_CONNECTIONS
from netsvc.admin.stream import MOST_WATCHERS
from tests.builders.http import request
from tests.builders.pems import KEY, Pem, client_context
from tests.builders.processes import PATIENCE, ROOT, Server

pytestmark = pytest.mark.slow


def serving(*arguments: str) -> Server:
    server = Server([sys.executable, "-m", "tests.builders.admin_site", *arguments], cwd=ROOT)
    server.wait_for("^admin listens on ")
    return server


def port(server: Server) -> int:
    return int(server.lines[-1].rpartition(":")[2])


@pytest.fixture
def site() -> Iterator[int]:
    with serving("50") as server:
        yield port(server)


def health(at: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", at, timeout=PATIENCE)
    connection.request("GET", "/health")
    body = connection.getresponse().read()
    connection.close()
    return body


def connect(at: int, data: bytes, room: int | None = None) -> socket.socket:
    """Ask; `room` is for how many bytes the system keeps of the answer."""
    connected = socket.socket()
    connected.settimeout(PATIENCE)
    if room is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connected.connect(("127.0.0.1", at))
    connected.sendall(data)
    return connected


def test_only_clients_with_a_certificate_are_answered(tmp_path: Path) -> None:
    cert, key = Pem("localhost", key=KEY).write(tmp_path, "server")
    ca, ca_key = Pem("operator").write(tmp_path, "client")
    other, other_key = Pem("stranger").write(tmp_path, "other")
    with serving("20", "1", f"tls:0:cert={cert}:key={key}", "", str(ca)) as server:

        def ask(context: ssl.SSLContext) -> int:
            connection = http.client.HTTPSConnection("127.0.0.1", port(server), timeout=PATIENCE, context=context)
            try:
                connection.request("GET", "/api/status", headers={"Host": "admin.example"})
                return connection.getresponse().status
            finally:
                connection.close()

        known = client_context()
        known.load_cert_chain(ca, ca_key)
        # The second time, the session of the first may be resumed.
        assert [ask(known), ask(known)] == [200, 200]
        stranger = client_context()
        stranger.load_cert_chain(other, other_key)
        for context in (stranger, client_context()):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                ask(context)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = client_context()
            context.minimum_version = context.maximum_version = version
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                ask(context)


def test_peers_that_ask_nothing_keep_nobody_out(site: int) -> None:
    silent = [connect(site, b"GET / HT") for _ in range(MOST_CONNECTIONS * 2)]
    assert health(site) == b"ok\n"
    for each in silent:
        each.close()


def test_who_watches_without_reading_costs_little_and_others_go_on(site: int) -> None:
    stalled = [connect(site, request("/api/stream?connections=500"), 4096) for _ in range(MOST_WATCHERS - 1)]
    connection = http.client.HTTPConnection("127.0.0.1", site, timeout=PATIENCE)
    connection.request("GET", "/api/stream")
    answer = connection.getresponse()
    told = [answer.readline() for _ in range(40)]
    assert sum(line.startswith(b"event: status") for line in told) >= 8
    assert health(site) == b"ok\n"
    for each in stalled:
        each.close()
    connection.close()


def test_resets_in_the_middle_of_everything_leave_nothing(site: int) -> None:
    for path in ("/", "/api/stream", "/api/status?connections=500", "/metrics"):
        for cut in (5, None):
            for _ in range(10):
                connected = connect(site, request(path)[:cut])
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connected.close()
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", site, timeout=PATIENCE)
        connection.request("GET", "/api/stream")
        answer = connection.getresponse()
        status = answer.status
        connection.close()
        if status == 200:
            break
        assert time.monotonic() < deadline
    assert health(site) == b"ok\n"


def test_a_flood_of_questions_leaves_the_server_answering(site: int) -> None:
    flood = [connect(site, request(f"/api/connections?words=w{number}") * 20) for number in range(50)]
    answered = [each.recv(65536)[:12] for each in flood]
    assert set(answered) <= {b"HTTP/1.1 200", b"HTTP/1.1 429"}
    assert health(site) == b"ok\n"
    connection = http.client.HTTPConnection("127.0.0.1", site, timeout=PATIENCE)
    connection.request("GET", "/ready")
    assert connection.getresponse().read() == b"ready\n"
    connection.close()
    for each in flood:
        each.close()


def test_a_socket_file_serves_whoever_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with serving("20", "1", f"unix:{path}") as server:
        assert server.lines[-1] == f"admin listens on {path}"
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(PATIENCE)
            connected.connect(str(path))
            connected.sendall(request("/api/status", Connection="close"))
            body = b"".join(iter(lambda: connected.recv(65536), b"")).partition(b"\r\n\r\n")[2]
        assert json.loads(body)["state"] == "ready"


def test_a_real_server_shows_and_does_it() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--admin", "0") as server:
        admin = server.port("admin")

        def ask(method: str, path: str) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=PATIENCE)
            connection.request(method, path, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            code, body = answer.status, answer.read()
            connection.close()
            return code, body if method == "GET" and not path.startswith("/api") else json.loads(body)

        with socket.create_connection(("127.0.0.1", server.port("echo tcp")), timeout=PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            code, status = ask("GET", "/api/status")
            assert (code, status["state"], status["totals"]["open"]) == (200, "ready", 1)
            [connection] = status["connections"]
            assert connection["peer"] == "{}:{}".format(*client.getsockname())
            assert ask("POST", f"/api/connections/{connection['id']}/close") == (200, {"closed": connection["id"]})
            assert client.recv(1) == b""
        assert ask("POST", "/api/reload") == (200, {"done": True, "lines": ["reloaded: 1 listener kept"]})
        assert ask("GET", "/ready") == (200, b"ready\n")
        assert b'netsvc_connections_accepted_total{listener="' in ask("GET", "/metrics")[1]
