"""How connections are ended, over TLS too: in order, whatever service has them."""

from __future__ import annotations

import signal
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.facts import drained
from tests.builders.processes import PATIENCE, Server, read_exactly

#: Real processes.
pytestmark = pytest.mark.slow


def connect(port: int, certificate: Path) -> ssl.SSLSocket:
    """Connect over TLS; an end without a farewell is an error to this client."""
    context = ssl.create_default_context(cafile=certificate)
    raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)


def test_a_limit_ends_a_connection_with_the_farewell_of_tls(tmp_path: Path) -> None:
    key, pem = write_certificate(tmp_path, "localhost")
    place = f"tls:0:cert={pem}:key={key}:interface=127.0.0.1"
    # Long enough for the handshakes, and what is said after them.
    words = [word for service in ("tcp", "reply", "chat") for word in (f"--{service}", f"guard:life=5:{place}")]
    with Server.twistd(*words) as server, ExitStack() as stack:
        labels = ("echo tcp", "reply tcp", "chat line")
        clients = [stack.enter_context(connect(server.port(label), pem)) for label in labels]
        for client in clients:
            client.sendall(b"hello\n")
        for client in clients:
            while client.recv(1000):
                pass
        for _ in clients:
            server.wait_for("reason=limit limit=life$")


def test_a_drain_closes_an_idle_echo_over_tls_in_order(tmp_path: Path) -> None:
    key, pem = write_certificate(tmp_path, "localhost")
    place = f"tls:0:cert={pem}:key={key}:interface=127.0.0.1"
    with Server.twistd("--drain", "0.1", "--tcp", place) as server:
        with connect(server.port("echo tcp"), pem) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(1000) == b""
        assert drained(server.wait_for("closed at .*").string)[1] == {"echo tcp": 1}
