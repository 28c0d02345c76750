"""How connections are ended, over TLS too: in order, whatever service has them."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.processes import PATIENCE, Server, read_exactly

#: Real processes.
pytestmark = pytest.mark.slow


def connect(port: int, certificate: Path) -> ssl.SSLSocket:
    """Connect over TLS; an end without a farewell is an error to this client."""
    context = ssl.create_default_context(cafile=certificate)
    raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)


@pytest.mark.parametrize(("service", "label"), [("tcp", "echo tcp"), ("reply", "reply tcp"), ("chat", "chat line")])
def test_a_limit_ends_a_connection_with_the_farewell_of_tls(tmp_path: Path, service: str, label: str) -> None:
    key, pem = write_certificate(tmp_path, "localhost")
    place = f"tls:0:cert={pem}:key={key}:interface=127.0.0.1"
    with Server.twistd(f"--{service}", f"guard:life=0.5:{place}") as server:
        with connect(server.port(label), pem) as client:
            client.sendall(b"hello\n")
            while client.recv(1000):
                pass
        server.wait_for("limit life ended")


def test_a_drain_closes_an_idle_echo_over_tls_in_order(tmp_path: Path) -> None:
    key, pem = write_certificate(tmp_path, "localhost")
    place = f"tls:0:cert={pem}:key={key}:interface=127.0.0.1"
    with Server.twistd("--drain", "0.1", "--tcp", place) as server:
        with connect(server.port("echo tcp"), pem) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(1000) == b""
        server.wait_for("closed at the end of 0.1 s: 1 echo tcp")
