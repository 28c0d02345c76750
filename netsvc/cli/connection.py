"""Connections of the clients: a stream, or datagrams. Their buffers are bounded."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from netsvc.cli.errors import explain
from netsvc.plan.address import ServerAddress, bound_path

__all__ = ["CONNECT_TIMEOUT", "ClientDatagrams", "ClientStream", "Conversation", "connect"]

#: Seconds to connect to one address of a host. The system would try for over two minutes.
CONNECT_TIMEOUT = 10.0
#: Bytes received and not yet read by the client. Beyond it reading pauses, and TCP slows the server.
UNREAD_LIMIT = 1024 * 1024
#: Seconds to wait for unsent data when closing.
CLOSE_TIMEOUT = 2.0
#: Bytes: the maximum for a UNIX socket on Linux, and more than for UDP.
LONGEST_DATAGRAM = 212992


class ClientStream(asyncio.Protocol):
    """A stream connection. Data that arrived before it broke is received first, then the error is raised."""

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
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep a chunk until it is read."""
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread >= UNREAD_LIMIT:
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        """Note the end of the server's data; sending may continue, except with TLS."""
        self._ended = True
        self._news.set()
        return not self.is_encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, and its error."""
        self._ended = True
        if exc is not None and self._error is None:
            self._error = exc if isinstance(exc, OSError) else ConnectionResetError(str(exc))
        for event in (self._news, self._writable, self._lost):
            event.set()

    def pause_writing(self) -> None:
        """Make `send` wait: the server reads more slowly than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` continue."""
        self._writable.set()

    @property
    def is_encrypted(self) -> bool:
        """Whether this is TLS."""
        return self._transport.get_extra_info("ssl_object") is not None

    async def receive(self) -> bytes | None:
        """Return the next chunk, or None at the end. Raises `OSError` if the connection broke.

        No data is lost if it is cancelled.
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
        """Send data, and wait while the server does not read. Raises `OSError` if the connection broke."""
        if self._lost.is_set():
            raise self._error or BrokenPipeError("the connection is closed")
        self._transport.write(data)
        await self._writable.wait()

    def finish(self) -> None:
        """Close our side of the connection, if the transport can; the server may still answer."""
        if self._transport.can_write_eof() and not self._lost.is_set():
            self._transport.write_eof()

    def was_cut(self) -> bool:
        """Return whether a TLS connection ended without the closing alert (RFC 8446, section 6.1).

        The end of a TCP connection can be forged on the way, the alert cannot. Always False without TLS.
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
        """Close when all data is sent, or after `patience` seconds."""
        self._transport.close()
        try:
            async with asyncio.timeout(patience):
                await self._lost.wait()
        except TimeoutError:
            await self.abort()

    async def abort(self) -> None:
        """Close at once, and discard unsent data."""
        self._transport.abort()
        await self._lost.wait()


class ClientDatagrams:
    """Datagrams to and from one server; the kernel buffers those not read yet."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive(self) -> bytes | None:
        """Return the next datagram. Raises `OSError`, for example if the server's host reports a closed port."""
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


Conversation = ClientStream | ClientDatagrams

#: A result of `socket.getaddrinfo`: family, kind, protocol, name, socket address.
AddressInfo = tuple[int, int, int, str, Any]


async def resolve(
    host: str, port: int, kind: int, look_up: Callable[..., Any] = socket.getaddrinfo
) -> list[AddressInfo]:
    """Return the addresses of `host` for sockets of `kind`, in the system's order of preference.

    Raises `socket.gaierror` if there is none.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return await _in_thread(lambda: look_up(host, port, type=kind))
    return list(look_up(host, port, type=kind, flags=socket.AI_NUMERICHOST))


async def _in_thread(look_up: Callable[[], Any]) -> list[AddressInfo]:
    # The loop's own getaddrinfo uses a thread that is joined at exit: with a name server that does not answer, Ctrl-C
    # would take half a minute. A daemon thread is not joined.
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def set_result(places: list[AddressInfo], error: OSError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(places)
        else:
            found.set_exception(error)

    def look() -> None:
        places: list[AddressInfo] = []
        failure: OSError | None = None
        try:
            places = list(look_up())
        except OSError as error:
            failure = error
        except UnicodeError:
            failure = socket.gaierror(socket.EAI_NONAME, "not a host name")
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(set_result, places, failure)

    threading.Thread(target=look, name="resolve", daemon=True).start()
    return await found


async def _open(family: int, kind: int, address: Any, patience: float) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX and kind == socket.SOCK_DGRAM and sys.platform == "linux":
            # A server can answer only a socket with a name: the kernel chooses one (unix(7), autobind).
            sock.bind("")
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _socket(address: ServerAddress, patience: float) -> socket.socket:
    kind = socket.SOCK_DGRAM if address.is_datagram else socket.SOCK_STREAM
    if address.path:
        return await _open(socket.AF_UNIX, kind, bound_path(address.path), patience)
    error: OSError | None = None
    for family, _, _, _, resolved in await resolve(address.host, address.port, kind):
        try:
            return await _open(family, kind, resolved, patience)
        except OSError as failure:
            # The first address is the preferred one: its error is reported.
            error = error or failure
    raise cast(OSError, error)


async def _connect(address: ServerAddress, tls: ssl.SSLContext | None, patience: float) -> Conversation:
    sock = await _socket(address, patience)
    if address.is_datagram:
        return ClientDatagrams(sock)
    name = address.host.partition("%")[0] if tls else None
    try:
        _, stream = await asyncio.get_running_loop().create_connection(
            ClientStream,
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
    """Connect for the length of the block; `tls` is for a tls: address only.

    Each address of the host has `patience` seconds to answer.

    An `OSError` while connecting or inside the block becomes a `ClientError` that names the address.
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
