"""What goes over TLS is on the wire in no other form: these tests look at the wire."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.threads import deferToThread
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory

from netsvc.services.files.core import FilesCore
from netsvc.services.files.download import SMALL, Download
from netsvc.services.files.file import AHEAD, OpenFile
from tests.builders.certificates import write_certificate
from tests.builders.files import ColdFile, open_cold
from tests.builders.files_server import MIB, PATIENCE, PROXIED, Custom, connect, serving

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

MARK = b"the secret of the file, "
SIZE = 5 * MIB
SECRET = (MARK * (SIZE // len(MARK) + 1))[:SIZE]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "public"
    top.mkdir()
    (top / "big").write_bytes(SECRET)
    (top / "small").write_bytes(SECRET[:SMALL])
    return top


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path, "localhost")


def ssl_endpoint(certificate: tuple[Path, Path]) -> str:
    return f"ssl:0:interface=127.0.0.1:privateKey={certificate[0]}:certKey={certificate[1]}"


class Wire:
    """A TLS client that keeps every byte that its socket received."""

    def __init__(self, stream: socket.socket, trusted: Path) -> None:
        self.stream = stream
        self.raw = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(trusted))
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def _step(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                result = None
            self.stream.sendall(self._outgoing.read())
            if result is not None:
                return result
            data = self.stream.recv(MIB)
            self.raw += data
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def handshake(self) -> None:
        def shake() -> bool:
            self._tls.do_handshake()
            return True

        self._step(shake)

    def send(self, data: bytes) -> None:
        self._step(lambda: self._tls.write(data))

    def receive(self) -> bytes:
        found = b""
        while data := self._step(lambda: self._tls.read(MIB)):
            found += data
        return found


def fetch_secretly(port: int, trusted: Path, name: bytes, before: bytes = b"") -> tuple[bytes, bytes]:
    with connect(port) as stream:
        wire = Wire(stream, trusted)
        wire.handshake()
        wire.send(before + name + b"\n")
        return wire.receive(), wire.raw


@pytest.mark.parametrize("name", [b"big", b"small"])
@pytest_twisted.ensureDeferred
async def test_over_a_tls_listener(root: Path, certificate: tuple[Path, Path], name: bytes) -> None:
    async with serving(root, ssl_endpoint(certificate)) as server:
        found, raw = await server.client(fetch_secretly, certificate[1], name)
        assert found == (root / name.decode()).read_bytes()
        assert len(raw) > len(found)
        assert MARK not in raw


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_header_over_tls(root: Path, certificate: tuple[Path, Path]) -> None:
    async with serving(root, ssl_endpoint(certificate)) as server:
        server.factory.buildProtocol = HAProxyWrappingFactory(copy(server.factory)).buildProtocol  # type: ignore
        found, raw = await server.client(fetch_secretly, certificate[1], b"big", PROXIED)
        assert found == SECRET
        assert MARK not in raw
        assert [event["peer"] for event in server.events] == ["192.0.2.7:4000"]


def server_options(certificate: tuple[Path, Path]) -> Any:
    return PrivateCertificate.loadPEM(b"".join(path.read_bytes() for path in certificate)).options()


@pytest_twisted.ensureDeferred
async def test_over_a_plain_connection_that_starts_tls_before_the_request(
    root: Path, certificate: tuple[Path, Path]
) -> None:
    options = server_options(certificate)
    async with serving(root) as server:
        build = server.factory.buildProtocol

        def build_starting(address: Any) -> Any:
            protocol: Any = build(address)
            made = protocol.connectionMade

            def start() -> None:
                protocol.transport.startTLS(options)
                made()

            protocol.connectionMade = start
            return protocol

        server.factory.buildProtocol = build_starting  # type: ignore
        found, raw = await server.client(fetch_secretly, certificate[1], b"big")
        assert found == SECRET
        assert MARK not in raw


@pytest_twisted.ensureDeferred
async def test_over_a_plain_connection_that_starts_tls_in_the_middle_of_the_file(
    root: Path, certificate: tuple[Path, Path]
) -> None:
    options = server_options(certificate)
    plain = 0
    begun = threading.Event()

    class Late(Custom):
        def connectionMade(self) -> None:
            nonlocal plain
            file = self._core.open(b"big")
            Download(file, self.transport, self._ended, self._core.ahead, self._core.shares).start()
            plain = file.offset
            self.transport.startTLS(options)
            begun.set()

    def read_both(port: int) -> tuple[bytes, bytes]:
        with connect(port) as stream:
            assert begun.wait(PATIENCE)
            first = b""
            while len(first) < plain:
                first += stream.recv(plain - len(first))
            wire = Wire(stream, certificate[1])
            wire.handshake()
            return first + wire.receive(), wire.raw

    async with serving(root) as server:
        server.factory.buildProtocol = lambda address: Late(server.core, b"big", lambda transport: None)  # type: ignore
        found, raw = await deferToThread(read_both, server.port)
        assert found == SECRET
        assert 0 < plain < SIZE
        assert MARK not in raw


class Cold:
    """Opens cold files, and remembers them."""

    def __init__(self, core: FilesCore) -> None:
        self._core = core
        self.files: list[ColdFile] = []

    def open(self, name: bytes) -> OpenFile:
        self.files.append(open_cold(self._core, name))
        return self.files[-1]


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_not_in_memory_is_waited_for_and_not_asked_for_again_and_again(
    root: Path, certificate: tuple[Path, Path]
) -> None:
    async with serving(root, ssl_endpoint(certificate)) as server:
        cold = Cold(server.core)
        server.core.open = cold.open  # type: ignore[method-assign]
        found, _ = await server.client(fetch_secretly, certificate[1], b"big")
        assert found == SECRET
        assert cold.files[0].asked == -(-SIZE // AHEAD)


@pytest.mark.parametrize("early", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_to_close_while_the_disk_is_waited_for_is_reset_and_not_ended_in_order(
    root: Path, certificate: tuple[Path, Path], early: bool
) -> None:
    async with serving(root, ssl_endpoint(certificate)) as server:
        cold = Cold(server.core)
        server.core.open = cold.open  # type: ignore[method-assign]
        fetch = server.core.ahead.fetch

        def close_and_fetch(file: OpenFile, ready: Callable[[], None]) -> bool:
            (protocol,) = server.live
            if early:
                protocol.transport.loseConnection()
                return fetch(file, ready)
            server.reactor.callLater(0, protocol.transport.loseConnection)
            server.reactor.callLater(0.01, fetch, file, ready)
            return True

        server.core.ahead.fetch = close_and_fetch  # type: ignore[method-assign]
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            await server.client(fetch_secretly, certificate[1], b"big")
        # The client hears of the end before the server has recorded it.
        await server.idle()
        assert server.results == [("big", 0, "cut off")]
