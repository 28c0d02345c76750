"""Builds a files service at a real port, and clients that block, for threads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThread
from twisted.protocols.haproxy import proxyEndpoint

from netsvc.listen.haproxy import ProxiedTransport
from netsvc.listen.opening import listen
from netsvc.plan.address import parse_address
from netsvc.service import stream_factory
from netsvc.services.files.classic import Classic
from netsvc.services.files.core import FilesCore
from netsvc.services.files.download import Download
from tests.builders.files import make_core, open_below, pattern
from tests.builders.loopback import turn

T = TypeVar("T")


MIB = 1024 * 1024


#: Seconds after which a client that gets nothing fails its test.
PATIENCE = 60


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
        if endpoint.startswith("proxied:"):
            listening.factory.protocol = ProxiedTransport
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


PROXIED = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"


class Custom(Protocol):
    """Sends a file after whatever `before` does with the transport."""

    transport: Any

    def __init__(self, core: FilesCore, name: bytes, before: Callable[[Any], None]) -> None:
        self._core, self._name, self._before = core, name, before

    def connectionMade(self) -> None:
        self._before(self.transport)
        file = self._core.open(self._name)
        Download(file, self.transport, self._ended, self._core.ahead, self._core.shares).start()

    def _ended(self, reason: str | None) -> None:
        self.transport.loseConnection()
