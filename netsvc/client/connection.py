"""Conversations with a server: over a connection, or a datagram at a time. Neither buffers without bound."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from netsvc.client.address import ServerAddress
from netsvc.client.failure import explain
from netsvc.client.resolve import resolve

__all__ = ["CONNECT_TIMEOUT", "Conversation", "Datagrams", "Stream", "connect"]

#: Seconds for one address of a host; the system's own patience is over two minutes.
CONNECT_TIMEOUT = 10.0
#: Bytes received and not yet asked for; then reading pauses, and the server's sending with it.
UNREAD_LIMIT = 1024 * 1024
#: Seconds that closing waits for what was sent to leave.
CLOSE_TIMEOUT = 2.0
#: Bytes: more than any UDP datagram, and what Linux lets a UNIX socket send in one.
LONGEST_DATAGRAM = 212992


class Stream(asyncio.Protocol):
    """A connection. What arrived before it broke is still received, and then the error is raised."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._ended = False
        self._error: OSError | None = None
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep a chunk until it is asked for."""
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread >= UNREAD_LIMIT:
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        """Note the end; what we send may go on, but for TLS, which has no half-closed state here."""
        self._ended = True
        self._news.set()
        return not self.is_encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, and the error if there was one."""
        self._ended = True
        if exc is not None and self._error is None:
            self._error = exc if isinstance(exc, OSError) else ConnectionResetError(str(exc))
        for event in (self._news, self._writable, self._lost):
            event.set()

    def pause_writing(self) -> None:
        """Hold `send` back: the server does not read as fast as we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    @property
    def is_encrypted(self) -> bool:
        """Whether this is TLS."""
        return self._transport.get_extra_info("ssl_object") is not None

    async def receive(self) -> bytes | None:
        """Return the next chunk, or None at the end. Raises `OSError` if the connection broke.

        Loses nothing when it is cancelled.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        data = self._chunks.popleft()
        self._unread -= len(data)
        if self._unread < UNREAD_LIMIT:
            self._transport.resume_reading()
        return data

    async def send(self, data: bytes) -> None:
        """Send, as fast as the server takes it. Raises `OSError` if the connection broke."""
        if self._lost.is_set():
            raise self._error or BrokenPipeError("the connection is closed")
        self._transport.write(data)
        await self._writable.wait()

    def finish(self) -> None:
        """Tell the server that nothing more will be sent, where the transport can; it may still answer."""
        if self._transport.can_write_eof() and not self._lost.is_set():
            self._transport.write_eof()

    def was_cut(self) -> bool:
        """Tell, at the end of a TLS connection, whether the server did not say that it is the end.

        Anybody on the way can forge the end of a TCP connection, but not TLS's own closing alert
        (RFC 8446, section 6.1). Always False without TLS.
        """
        tls = self._transport.get_extra_info("ssl_object")
        if tls is None:
            return False
        cut = False
        try:
            # The alert is the end of reading; without it TLS wants more.
            tls.read(1)
        except ssl.SSLZeroReturnError:
            cut = False
        except ssl.SSLError:
            cut = True
        return cut

    async def close(self, patience: float = CLOSE_TIMEOUT) -> None:
        """Close when what was sent has left, or after `patience` seconds."""
        self._transport.close()
        try:
            async with asyncio.timeout(patience):
                await self._lost.wait()
        except TimeoutError:
            await self.abort()

    async def abort(self) -> None:
        """Close at once, whatever is still unsent."""
        self._transport.abort()
        await self._lost.wait()


class Datagrams:
    """Datagrams to one server, and those that come from it and nobody else; the kernel holds the unread ones."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive(self) -> bytes | None:
        """Return the next datagram. Raises `OSError`: the server's host told that nobody listens, say."""
        return await asyncio.get_running_loop().sock_recv(self._socket, LONGEST_DATAGRAM)

    async def send(self, data: bytes) -> None:
        """Send one datagram, an empty one too. Raises `OSError`."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def finish(self) -> None:
        """Do nothing: datagrams have no end."""

    def was_cut(self) -> bool:
        """Return False: datagrams have no end."""
        return False

    async def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    abort = close


Conversation = Stream | Datagrams


async def _open(family: int, kind: int, place: Any, patience: float) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX and kind == socket.SOCK_DGRAM and sys.platform == "linux":
            # A server can only answer a socket that has a name: let the kernel choose one (unix(7), autobind).
            sock.bind("")
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


async def _socket(address: ServerAddress, patience: float) -> socket.socket:
    kind = socket.SOCK_DGRAM if address.is_datagram else socket.SOCK_STREAM
    if address.path:
        return await _open(socket.AF_UNIX, kind, address.path, patience)
    error: OSError | None = None
    for family, _, _, _, place in await resolve(address.host, address.port, kind):
        try:
            return await _open(family, kind, place, patience)
        except OSError as failure:
            # The first address is the preferred one, and its error the one to tell.
            error = error or failure
    raise cast(OSError, error)


async def _connect(address: ServerAddress, tls: ssl.SSLContext | None, patience: float) -> Conversation:
    sock = await _socket(address, patience)
    if address.is_datagram:
        return Datagrams(sock)
    name = address.host.partition("%")[0] if tls else None
    try:
        _, stream = await asyncio.get_running_loop().create_connection(
            Stream,
            sock=sock,
            ssl=tls,
            server_hostname=name,
            ssl_handshake_timeout=patience if tls else None,
            ssl_shutdown_timeout=CLOSE_TIMEOUT if tls else None,
        )
    except BaseException:
        sock.close()
        raise
    return stream


@asynccontextmanager
async def connect(
    address: ServerAddress, tls: ssl.SSLContext | None = None, patience: float = CONNECT_TIMEOUT
) -> AsyncIterator[Conversation]:
    """Hold a conversation for the length of the block; `tls` is for a tls address, and for no other.

    Each address of the host has `patience` seconds to answer.

    An `OSError` when it begins or inside the block becomes a `ClientError` that names the address.
    """
    try:
        conversation = await _connect(address, tls, patience)
        try:
            yield conversation
        except BaseException:
            await conversation.abort()
            raise
        await conversation.close()
    except OSError as error:
        raise explain(error, address) from error
