"""Behind nginx and haproxy as Debian has them: the real client is seen, with TLS behind the header and without."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.processes import PATIENCE, Server, free_port, read_all
from tests.builders.programs import haproxy_before, nginx_before

pytestmark = pytest.mark.slow

_TELL = """\
from twisted.internet.protocol import Protocol

class Tell(Protocol):
    "Says who is there, before anything is asked, and then echoes."

    def connectionMade(self):
        peer, host = self.transport.getPeer(), self.transport.getHost()
        self.transport.write(f"{peer.host} {peer.port} {host.host} {host.port}\\n".encode())

    def dataReceived(self, data):
        self.transport.write(data)
"""

Before = Callable[[int, int, Path], AbstractContextManager[None]]
PROXIES: dict[str, Before] = {
    "nginx": nginx_before,
    "haproxy v1": partial(haproxy_before, options="send-proxy"),
    "haproxy v2": partial(haproxy_before, options="send-proxy-v2"),
    # With TLVs behind the addresses, and connections of haproxy's own, which are LOCAL.
    "haproxy v2, TLVs": partial(
        haproxy_before,
        options="send-proxy-v2 proxy-v2-options crc32c,unique-id,authority,ssl,cert-cn check inter 50ms",
    ),
}


@contextmanager
def served(words: list[str], tmp_path: Path, before: Before) -> Iterator[tuple[Server, int]]:
    """Run netsvc and a proxy before its one listener; yield the proxy's port."""
    with Server.twistd(*words) as server:
        [back] = [int(match[1]) for line in server.lines if (match := re.search(r"listens on \S*:(\d+)", line))]
        front = free_port()
        with before(front, back, tmp_path):
            yield server, front


def client(port: int) -> socket.socket:
    """Connect from an address that no proxy has."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=("127.0.0.5", 0))


def tell(tmp_path: Path, address: str) -> list[str]:
    (tmp_path / "tell.py").write_text(_TELL)
    return ["--serve", f"{tmp_path}/tell.py:Tell={address}"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_service_that_speaks_first_is_told_the_real_client(proxy: str, tmp_path: Path) -> None:
    words = tell(tmp_path, "proxy:trust=127.0.0.1:127.0.0.1:0")
    with served(words, tmp_path, PROXIES[proxy]) as (_, port):
        for _ in range(20):
            with client(port) as stream, stream.makefile("rb") as lines:
                host, number = stream.getsockname()
                assert lines.readline().decode() == f"{host} {number} 127.0.0.1 {port}\n"
                stream.sendall(b"hello")
                assert lines.read(5) == b"hello"


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("form", ["tls:0:cert={1}:key={0}", "ssl:0:certKey={1}:privateKey={0}"])
def test_tls_goes_through_behind_the_header(form: str, proxy: str, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    words = tell(tmp_path, f"proxy:trust=127.0.0.1:{form.format(key, certificate)}:interface=127.0.0.1")
    with served(words, tmp_path, PROXIES[proxy]) as (_, port):
        for _ in range(5):
            with context.wrap_socket(client(port), server_hostname="localhost") as stream:
                host, number = stream.getsockname()
                with stream.makefile("rb") as lines:
                    assert lines.readline().decode() == f"{host} {number} 127.0.0.1 {port}\n"


@pytest.mark.parametrize("proxy", ["nginx", "haproxy v2"])
def test_chat_and_files_are_as_without_a_proxy(proxy: str, tmp_path: Path) -> None:
    with served(["--chat", "proxy:trust=127.0.0.1:127.0.0.1:0"], tmp_path, PROXIES[proxy]) as (_, port):
        with client(port) as one, client(port) as other:
            readers = [stream.makefile("rb") for stream in (one, other)]
            for reader in readers:
                assert reader.readline()
            one.sendall(b"hello from one\n")
            assert any(b"hello from one" in line for line in iter(readers[1].readline, b"end"))
            for reader in readers:
                reader.close()
    content = bytes(range(256)) * 40960
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "big").write_bytes(content)
    words = ["--files", "proxy:trust=127.0.0.1:127.0.0.1:0", "--files-root", str(tmp_path / "root")]
    with served(words, tmp_path, PROXIES[proxy]) as (_, port):
        with client(port) as stream:
            stream.sendall(b"big\n")
            stream.shutdown(socket.SHUT_WR)
            assert read_all(stream) == content


@pytest.mark.parametrize("proxy", ["nginx", "haproxy v1", "haproxy v2"])
def test_a_proxy_that_is_not_trusted_gets_nothing(proxy: str, tmp_path: Path) -> None:
    words = tell(tmp_path, "proxy:trust=192.0.2.0/24:127.0.0.1:0")
    with served(words, tmp_path, PROXIES[proxy]) as (_, port):
        with client(port) as stream:
            with suppress(ConnectionResetError):
                assert stream.recv(1) == b""


@pytest.mark.parametrize("proxy", ["nginx", "haproxy v2"])
def test_several_workers_share_what_a_proxy_sends(proxy: str, tmp_path: Path) -> None:
    words = ["--workers", "2", "--tcp", "proxy:trust=127.0.0.1:127.0.0.1:0"]
    with served(words, tmp_path, PROXIES[proxy]) as (_, port):
        for _ in range(20):
            with client(port) as stream:
                stream.sendall(b"hello")
                stream.shutdown(socket.SHUT_WR)
                assert read_all(stream) == b"hello"
