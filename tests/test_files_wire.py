"""The files service over real sockets: plain ones, TLS, and behind a proxy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.protocols.haproxy import proxyEndpoint

from netsvc.address import parse_address
from netsvc.guard import Guard
from netsvc.listeners.opening import listen
from netsvc.service import stream_factory
from netsvc.services.files.classic import Classic
from netsvc.services.files.core import FilesCore
from tests.certificates import write_certificate
from tests.loopback import turn
from tests.test_files_beneath import open_below
from tests.test_files_classic import pattern
from tests.test_files_core import make_core

T = TypeVar("T")
MIB = 1024 * 1024
#: Seconds after which a client that gets nothing fails its test.
PATIENCE = 20


class Server:
    """A files service on a real port, that knows when its connections are gone."""

    def __init__(self, root: Path, **options: object) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.port = 0
        self.core: FilesCore
        self.core, self.events = make_core(root, reactor, **options)
        self.live: set[Classic] = set()
        self.buffered = 0
        self._idle: list[Deferred[None]] = []
        server = self

        class Watched(Classic):
            def connectionMade(self) -> None:
                server.live.add(self)
                super().connectionMade()

            def connectionLost(self, *reason: Any) -> None:
                server.live.discard(self)
                super().connectionLost(*reason)
                if not server.live:
                    for waiter in server._idle:
                        waiter.callback(None)
                    server._idle.clear()

        self.factory = stream_factory(Watched, self.core)
        self.factory.noisy = False  # type: ignore[attr-defined]

    async def client(self, talk: Callable[..., T], *arguments: Any) -> T:
        """Run a client that blocks, in a thread, and wait until the server is done with all clients."""
        result: T = await deferToThread(talk, self.port, *arguments)
        await self.idle()
        return result

    async def idle(self) -> None:
        if self.live:
            waiter: Deferred[None] = Deferred()
            self._idle.append(waiter)
            await waiter.addTimeout(PATIENCE, self.reactor)

    @property
    def results(self) -> list[tuple[str, int, str]]:
        return [(event["name"], event["size"], event["result"]) for event in self.events]


@contextlib.asynccontextmanager
async def serving(root: Path, endpoint: str = "tcp:0:interface=127.0.0.1", **options: object) -> AsyncIterator[Server]:
    server = Server(root, **options)
    server.core.start()
    wrapped = serverFromString(server.reactor, endpoint.removeprefix("proxied:"))
    if endpoint.startswith("proxied:"):
        wrapped = proxyEndpoint(wrapped)
    if endpoint.startswith("ssl:"):
        opened = await listen(server.reactor, parse_address(endpoint, "stream"), server.factory)
        listening: Any = opened.port
    else:
        listening = await wrapped.listen(server.factory)
    server.port = getattr(listening.getHost(), "port", 0)
    try:
        yield server
        await server.idle()
    finally:
        await maybeDeferred(listening.stopListening)
        for protocol in list(server.live):
            protocol.transport.abortConnection()
        await server.idle()
        server.core.stop()
        # A thread may still read, by a descriptor of its own, a file that is closed.
        while server.core.ahead.busy:
            await turn()
    assert server.core.downloads == 0
    assert open_below(root) == []


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def receive(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(MIB), b""))


def fetch(port: int, *segments: bytes, half_close: bool = False) -> bytes:
    with connect(port) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            stream.sendall(segment)
        if half_close:
            stream.shutdown(socket.SHUT_WR)
        return receive(stream)


def make_root(directory: Path) -> Path:
    top = directory / "public"
    top.mkdir()
    (top / "f").write_bytes(b"content")
    (top / "mib").write_bytes(pattern(MIB))
    (top / "文件.txt").write_bytes("内容".encode())
    return top


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_name_that_ends_in_any_way_gets_its_file(root: Path) -> None:
    async with serving(root) as server:
        for name in ("文件.txt".encode(), "文件.txt".encode("gbk")):
            for ways in ((name + b"\n",), (name + b"\r\n",), (name,), (name[:3], name[3:])):
                assert await server.client(fetch, *ways) == "内容".encode()
        assert await server.client(lambda port: fetch(port, b"mib", half_close=True)) == pattern(MIB)
        assert [result for _, _, result in server.results] == ["sent"] * 9


@pytest_twisted.ensureDeferred
async def test_what_is_not_a_file_below_the_root_closes_with_no_bytes(root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "device").symlink_to("/dev/zero")
    (root / "d").mkdir()
    async with serving(root) as server:
        for name in (b"missing", b"fifo", b"device", b"d", b"../f", b"/etc/passwd", b"", b"x" * 5000, b"\xff\0"):
            assert await server.client(fetch, name + b"\n") == b""
        assert await server.client(lambda port: fetch(port, half_close=True)) == b""
        assert len(server.events) == 9


def fetch_and_hash(port: int, name: bytes) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with connect(port) as stream:
        stream.sendall(name + b"\n")
        while data := stream.recv(MIB):
            size += len(data)
            digest.update(data)
    return size, digest.hexdigest()


PROXIED = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"


@pytest.mark.parametrize(("endpoint", "before", "limit"), [("", b"", 0), ("proxied:", PROXIED, 256 * 1024)])
@pytest_twisted.ensureDeferred
async def test_a_big_file_is_sent_whole_in_constant_memory(
    root: Path, endpoint: str, before: bytes, limit: int
) -> None:
    size = 64 * MIB
    marks = {0: b"first", 17 * MIB + 3: b"middle", size - 4: b"last"}
    with (root / "big").open("wb") as big:
        big.truncate(size)
        for place, mark in marks.items():
            os.pwrite(big.fileno(), mark, place)
    digest = hashlib.sha256((root / "big").read_bytes()).hexdigest()

    most, blocks = 0, 0
    async with serving(root, f"{endpoint}tcp:0:interface=127.0.0.1") as server:
        opened = server.core.open

        def observed(name: bytes) -> Any:
            file = opened(name)

            class Observed:
                """Looks at what the transport still holds whenever the next bytes are taken from the file."""

                def __getattr__(self, attribute: str) -> Any:
                    return getattr(file, attribute)

                def read(self, limit: int) -> bytes:
                    nonlocal blocks
                    blocks += 1
                    data = file.read(limit)
                    self.look(len(data))
                    return data

                def move(self, count: int) -> None:
                    file.move(count)
                    self.look(0)

                def look(self, more: int) -> None:
                    nonlocal most
                    (protocol,) = server.live
                    transport = protocol.transport
                    most = max(most, more + len(transport.dataBuffer) + transport._tempDataLen)

            return Observed()

        server.core.open = observed  # type: ignore[method-assign]
        assert await server.client(fetch_and_hash, before + b"big") == (size, digest)
        assert server.results == [("big", size, "sent")]
    assert most <= limit
    # The kernel sends what goes over a plain connection: we never see it.
    assert bool(blocks) is bool(limit)


@pytest_twisted.ensureDeferred
async def test_many_clients_at_once_each_get_their_file(root: Path) -> None:
    count, size = 100, 300_000
    os.truncate(root / "mib", size)

    def fetch_many(port: int) -> set[bytes]:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(connect(port)) for _ in range(count)]
            for stream in streams:
                stream.sendall(b"mib\n")
            return {hashlib.sha256(receive(stream)).digest() for stream in streams}

    async with serving(root) as server:
        assert await server.client(fetch_many) == {hashlib.sha256(pattern(MIB)[:size]).digest()}
        assert server.results == [("mib", size, "sent")] * count


# Twisted's own way of loading a certificate.
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_files_come_whole_over_tls(root: Path, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")

    def fetch_encrypted(port: int, name: bytes) -> bytes:
        context = ssl.create_default_context(cafile=str(certificate))
        with connect(port) as raw, context.wrap_socket(raw, server_hostname="localhost") as stream:
            stream.sendall(name + b"\nmore")
            return receive(stream)

    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    async with serving(root, endpoint) as server:
        assert await server.client(fetch_encrypted, b"f") == b"content"
        assert await server.client(fetch_encrypted, b"mib") == pattern(MIB)
        assert await server.client(fetch_encrypted, b"missing") == b""
        assert server.results == [("f", 7, "sent"), ("mib", MIB, "sent"), ("missing", 0, "no such file")]


@pytest_twisted.ensureDeferred
async def test_a_proxied_client_gets_its_file_and_is_logged_by_its_own_address(root: Path) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"
    async with serving(root, "proxied:tcp:0:interface=127.0.0.1") as server:
        assert await server.client(fetch, header + b"mib\n") == pattern(MIB)
        assert [event["peer"] for event in server.events] == ["192.0.2.7:4000"]


@pytest_twisted.ensureDeferred
async def test_a_proxied_client_that_half_closes_still_gets_its_file(root: Path) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"
    (root / "big").write_bytes(pattern(16 * MIB))
    async with serving(root, "proxied:tcp:0:interface=127.0.0.1") as server:
        guard = Guard(Clock())
        server.factory.buildProtocol = guard.wrap(copy(server.factory), "files").buildProtocol  # type: ignore[method-assign]
        assert await server.client(partial(fetch, half_close=True), header + b"big\n") == pattern(16 * MIB)
        assert server.results == [("big", 16 * MIB, "sent")]
        assert not guard.live


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_a_tls_client_that_says_farewell_in_mid_file_is_reset(root: Path, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    (root / "big").write_bytes(pattern(16 * MIB))

    def leave_early(port: int) -> None:
        with connect(port) as raw:
            raw.settimeout(None)
            client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), raw)
            client.set_connect_state()
            client.sendall(b"big\n")
            client.shutdown()
            while client.recv(MIB):
                pass

    async with serving(root, f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}") as server:
        # And not ZeroReturnError, which is an orderly end.
        with pytest.raises(SSL.SysCallError):
            await server.client(leave_early)
        assert [result for _, _, result in server.results] == ["cut off"]
