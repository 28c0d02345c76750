"""WebSocket connections (RFC 6455), and a transport over them for protocols of lines: a message is a line.

A request that asks for one is answered by `upgrade`. The frames that clients send are read by wsproto. Compression is
not negotiated: it would need memory for each client, and a frame of its own for each.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from zope.interface import implementer

from netsvc.http.connection import TEXT, Exchange, HTTPConnection, header_lines

#: Appended to a client's key (RFC 6455, section 1.3).
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: The first byte of a frame with a whole message (section 5.2).
_FINAL_TEXT, _FINAL_BINARY = b"\x81", b"\x82"
_SHORT, _MEDIUM = 126, 1 << 16
#: Bytes of lines whose frames are kept: what many clients get in one turn.
_MOST_KEPT = 16 * 1024
#: Status codes of a close (section 7.4.1).
_NORMAL, _TOO_BIG = 1000, 1009


@dataclass(frozen=True)
class WebSocketLimits:
    """Bytes of a received message, and seconds: of silence until the client is asked whether it is there, and to close.

    A client that sends nothing for as long again after it was asked is disconnected. `closing` and the end of the
    connection below it fit in a drain of 4 seconds.
    """

    message: int = 16 * 1024
    silence: float = 45.0
    closing: float = 1.5


def upgrade(
    exchange: Exchange,
    build: Callable[[], WebSocket | None],
    *,
    subprotocols: Mapping[str, bool],
    origins: Collection[str] = (),
) -> None:
    """Answer a request for a WebSocket (RFC 6455, section 4.2), and open it, or refuse it.

    `subprotocols` are the names that a client may ask for, and whether the messages of each are binary; a client that
    asks for none gets text. `build` returns a new WebSocket, or None to refuse. A page of another origin than the host
    that it asks is refused, unless its origin is one of `origins` (`*`: any): a browser asks in the name of its user.
    """
    status, reason, extra = _refusal(exchange, origins)
    websocket = build() if status is None else None
    if websocket is None:
        status, reason = status or HTTPStatus.SERVICE_UNAVAILABLE, reason or "try again later"
        exchange.answer(status, f"{reason}\n".encode(), header_lines({"Content-Type": TEXT, **extra}))
        return
    asked = [each.strip() for value in exchange.request.values(b"sec-websocket-protocol") for each in value.split(b",")]
    chosen = next((name for each in asked if (name := each.decode("latin-1")) in subprotocols), None)
    key = exchange.request.header(b"sec-websocket-key") or b""
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": b64encode(sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii"),
        **({} if chosen is None else {"Sec-WebSocket-Protocol": chosen}),
    }
    websocket.open(exchange, headers, is_binary=chosen is not None and subprotocols[chosen])


def asks_for_websocket(exchange: Exchange) -> bool:
    """Return whether a request wants to switch to WebSocket."""
    return b"websocket" in _tokens(exchange, b"upgrade")


def _refusal(exchange: Exchange, origins: Collection[str]) -> tuple[HTTPStatus | None, str, dict[str, str]]:
    """Return why a request cannot be answered with a WebSocket: the status, a line, headers; (None, "", {}) if it can.

    Raises nothing for whatever a client sends.
    """
    request = exchange.request
    if request.method != b"GET" or request.version != 11:
        return HTTPStatus.BAD_REQUEST, "a WebSocket is asked for with GET and HTTP/1.1", {}
    if not asks_for_websocket(exchange) or b"upgrade" not in _tokens(exchange, b"connection"):
        return HTTPStatus.UPGRADE_REQUIRED, "this is a WebSocket", {"Upgrade": "websocket"}
    if request.values(b"sec-websocket-version") != [b"13"]:
        return HTTPStatus.UPGRADE_REQUIRED, "only version 13 is spoken here", {"Sec-WebSocket-Version": "13"}
    keys = request.values(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in Base64", {}
    origin = request.header(b"origin")
    if origin is not None and not {"*", origin.decode("latin-1")} & set(origins):
        host = request.header(b"host") or b""
        if _authority(origin.partition(b"://")[2]) != _authority(host):
            return HTTPStatus.FORBIDDEN, "this page may not connect: its origin is another one", {}
    return None, "", {}


def _tokens(exchange: Exchange, name: bytes) -> set[bytes]:
    return {each.strip().lower() for value in exchange.request.values(name) for each in value.split(b",")}


def _is_key(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == 16
    except Base64Error:
        return False


def _authority(host: bytes) -> bytes:
    """Return a host and port without a default port: a proxy may have another scheme than the page."""
    host = host.lower()
    return host.removesuffix(b":80").removesuffix(b":443")


def _measure(data: bytes, start: int) -> tuple[int, int]:
    """Return the bytes of the frame that begins there, and those of its head; (0, 0) if it must go on for that."""
    if len(data) < start + 2:
        return 0, 0
    second = data[start + 1]
    length = second & 0x7F
    extended = 2 if length == _SHORT else 8 if length > _SHORT else 0
    head = 2 + extended + (4 if second & 0x80 else 0)
    if len(data) < start + head:
        return 0, 0
    if extended:
        length = int.from_bytes(data[start + 2 : start + 2 + extended], "big")
    return head + length, head


def _whole_message(data: bytes, start: int, head: int, size: int) -> tuple[bytes | None, bool]:
    """Return the message in a frame, and whether it is binary; (None, False) if the frame is an unusual one.

    It is usual if it is masked, and has a whole message of less than 64 KiB.
    """
    first = data[start : start + 1]
    # Two bytes have a length that needs them.
    if first not in (_FINAL_TEXT, _FINAL_BINARY) or head != (6 if size - head < _SHORT else 8):
        return None, False
    payload = _unmask(data, start + head, start + size)
    is_binary = first == _FINAL_BINARY
    return (payload, is_binary) if is_binary or _is_text(payload) else (None, False)


def _unmask(data: bytes, start: int, stop: int) -> bytes:
    """Return the payload of a frame, whose mask is before it (section 5.3)."""
    size = stop - start
    key = (data[start - 4 : start] * (size // 4 + 1))[:size]
    return (int.from_bytes(data[start:stop], "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _frame(payload: bytes, first: bytes) -> bytes:
    """Return the frame with a whole message (RFC 6455, section 5.2); a server's frames are not masked."""
    size = len(payload)
    if size < _SHORT:
        return b"%b%c%b" % (first, size, payload)
    if size < _MEDIUM:
        return b"%b\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%b\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


def _frames(lines: bytes, first: bytes) -> bytes:
    return b"".join([_frame(line.removesuffix(b"\r"), first) for line in lines.split(b"\n")[:-1]])


class _Framed:
    """The last lines that were framed, and their frames: a line that many clients get is the same object for each."""

    def __init__(self) -> None:
        self.lines = self.frames = b""


#: By the first byte of the frames.
_framed = {_FINAL_TEXT: _Framed(), _FINAL_BINARY: _Framed()}


def _line_writer(send: Callable[[bytes], object], first: bytes) -> Callable[[bytes], None]:
    """Return a function that sends a message for each line; one without an end waits for it.

    It is called for each line and each client, so it looks up nothing in an object.
    """
    unended = b""
    last = _framed[first]

    def write(data: bytes) -> None:
        nonlocal unended
        if data is last.lines and not unended:
            send(last.frames)
            return
        if unended or data[-1:] != b"\n":
            lines, end, unended = (unended + data).rpartition(b"\n")
            data = lines + end
        frames = _frames(data, first)
        if len(data) <= _MOST_KEPT:
            last.lines, last.frames = data, frames
        send(frames)

    return write


def _drop(_data: bytes) -> None:
    """Send nothing: a close was sent."""


@implementer(IPushProducer)
class _Flow:
    """The producer of the transport below: it passes on what the transport says, and remembers it."""

    def __init__(self, resumed: Callable[[], None]) -> None:
        self.is_full = False
        #: The producer of the protocol above.
        self.above: Any = None
        self._resumed = resumed

    def pauseProducing(self) -> None:
        """The client does not take what was written."""
        self.is_full = True
        if self.above is not None:
            self.above.pauseProducing()

    def resumeProducing(self) -> None:
        """The client has taken what was written."""
        self.is_full = False
        self._resumed()
        if self.above is not None:
            self.above.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is gone."""
        if self.above is not None:
            self.above.stopProducing()


class WebSocket:
    """An open WebSocket, the receiver of its HTTP connection. Subclasses say what they do with messages.

    Bounded: a received message, and what is answered to a client that does not read.
    """

    def __init__(self, limits: WebSocketLimits | None = None) -> None:
        self._limits = limits or WebSocketLimits()
        self._wire = Connection(ConnectionType.SERVER)
        #: The parts of a message that has not ended, and their bytes.
        self._parts: list[bytes] = []
        self._size = 0
        #: The beginning of a frame whose length is not known yet; and the bytes to come of one that wsproto reads.
        self._held = b""
        self._unread = 0
        self._was_heard = True
        self._is_asked = False
        #: The payload of a ping that could not be answered yet.
        self._ping: bytes | None = None
        #: Whether nothing is sent or received any more: a close was sent.
        self._has_closed = False
        self._flow = _Flow(self._answer_ping)
        self._connection: HTTPConnection
        self._below: Any

    def open(self, exchange: Exchange, headers: Mapping[str, str], *, is_binary: bool) -> None:
        """Begin, and answer the request that asked for it. `is_binary`: what the client wants to receive."""
        self._connection = exchange.connection
        self._below = exchange.switch(self, header_lines(headers))
        self._below.registerProducer(self._flow, True)
        self._wait(self._limits.silence)
        self.opened(is_binary)
        # What came behind the request.
        self._connection.dataReceived(b"")

    def opened(self, is_binary: bool) -> None:
        """Begin: the client can be sent something."""

    def messages_received(self, messages: list[tuple[bytes, bool]]) -> None:
        """Receive the messages that are complete: their bytes, and whether each is binary and not text."""
        raise NotImplementedError

    def lost(self, reason: Failure) -> None:
        """End: the connection is gone."""

    def send_message(self, data: bytes, *, is_binary: bool) -> None:
        """Send a message; nothing after a close. Text is UTF-8."""
        if not self._has_closed:
            self._below.write(_frame(data, _FINAL_BINARY if is_binary else _FINAL_TEXT))

    def _wait(self, seconds: float) -> None:
        self._connection.deadline = self._connection.factory.clock.seconds() + seconds

    def received(self, data: bytes) -> None:
        """Read what the client has sent; see `Exchange.switch`."""
        self._was_heard = True
        if self._wire.state is ConnectionState.CLOSED:
            return
        messages: list[tuple[bytes, bool]] = []
        close = self._read(self._held + data if self._held else data, messages)
        if messages and not self._has_closed:
            self.messages_received(messages)
        if close is not None:
            self.close(close.code, close.reason or None)
            self._connection.close()

    def _read(self, data: bytes, messages: list[tuple[bytes, bool]]) -> CloseConnection | None:
        """Read frames; add the messages that are complete. Return the close, if there is one.

        The usual frame, which is here as a whole and is a whole message, is read at once. wsproto reads all others.
        """
        start, end = 0, len(data)
        while start < end:
            size = self._unread
            if not size:
                size, head = _measure(data, start)
                if not size:
                    break
                stop = start + size
                if start + size <= end and not self._parts:
                    payload, is_binary = _whole_message(data, start, head, size)
                    if payload is not None:
                        if len(payload) > self._limits.message:
                            return self._too_big()
                        messages.append((payload, is_binary))
                        start += size
                        continue
            stop = min(start + size, end)
            self._unread = start + size - stop
            if close := self._parse(data[start:stop], messages):
                return close
            start = stop
        self._held = data[start:]
        return None

    def _too_big(self) -> CloseConnection:
        return CloseConnection(_TOO_BIG, f"a message has at most {self._limits.message} bytes")

    def _parse(self, data: bytes, messages: list[tuple[bytes, bool]]) -> CloseConnection | None:
        """Let wsproto read a frame, or a part of one; see `_read`."""
        self._wire.receive_data(data)
        for event in self._wire.events():
            if isinstance(event, TextMessage | BytesMessage):
                part = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
                self._size += len(part)
                if self._size > self._limits.message:
                    return self._too_big()
                self._parts.append(part)
                if event.message_finished:
                    messages.append((b"".join(self._parts), isinstance(event, BytesMessage)))
                    self._parts, self._size = [], 0
            elif isinstance(event, Ping):
                self._ping = bytes(event.payload)
                self._answer_ping()
            elif isinstance(event, CloseConnection):
                # What wsproto finds wrong in a frame, it reports in the same way; then the code says what is wrong.
                return event
        return None

    def client_done(self) -> None:
        """Close: the client has closed its side; see `Exchange.switch`."""
        self._connection.close()

    def overdue(self) -> None:
        """Ask a silent client whether it is there, and disconnect one that does not answer; see `Exchange.switch`."""
        if self._has_closed:
            self._connection.close()
        elif self._was_heard:
            self._was_heard = self._is_asked = False
            self._wait(self._limits.silence)
        elif self._is_asked:
            self._connection.abort()
        else:
            self._is_asked = True
            if not self._flow.is_full:
                self._below.write(bytes(self._wire.send(Ping())))
            self._wait(self._limits.silence)

    def _answer_ping(self) -> None:
        # A client that sends pings and reads nothing gets one answer, to the last (RFC 6455, section 5.5.3).
        is_open = self._wire.state is ConnectionState.OPEN
        if self._ping is not None and is_open and not self._flow.is_full:
            self._below.write(bytes(self._wire.send(Pong(self._ping))))
            self._ping = None

    def close(self, code: int = _NORMAL, reason: str | None = None) -> None:
        """Send a close (RFC 6455, section 7.1.2), and nothing more; the connection ends when the client has, too."""
        if not self._has_closed:
            self._has_closed = True
            self._below.write(bytes(self._wire.send(CloseConnection(code, reason))))
            self._wait(self._limits.closing)

    def abort(self) -> None:
        """Reset the connection."""
        self._connection.abort()


@implementer(ITransport)
class WebSocketLines(WebSocket):
    """The transport of a protocol that receives and writes lines, each of which is a message.

    The protocol knows nothing of WebSocket: its lines end in CR LF. Attributes that are not here are those of the
    transport below, such as `getPeerCertificate`.
    """

    #: Send lines, each with its end; and such that many others are sent as well (see `netsvc.reactor.streams`).
    write: Callable[[bytes], None]
    write_at_once: Callable[[bytes], None] = staticmethod(_drop)

    def __init__(self, protocol: Protocol, limits: WebSocketLimits | None = None) -> None:
        super().__init__(limits)
        self.protocol = protocol
        self.write = self.write_at_once = _drop

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._below, name)

    def opened(self, is_binary: bool) -> None:
        """Connect the protocol."""
        first, below = _FINAL_BINARY if is_binary else _FINAL_TEXT, self._below
        self.write = _line_writer(below.write, first)
        # Asked of the class: TLS passes on the attributes of the transport below, which would send in plain text.
        is_direct = hasattr(type(below), "write_at_once")
        self.write_at_once = _line_writer(below.write_at_once if is_direct else below.write, first)
        self.protocol.makeConnection(self)

    def messages_received(self, messages: list[tuple[bytes, bool]]) -> None:
        """Give the protocol a line for each message."""
        self.protocol.dataReceived(b"".join([data.rstrip(b"\r\n") + b"\r\n" for data, _ in messages]))

    def lost(self, reason: Failure) -> None:
        """Tell the protocol that the connection is gone."""
        self.protocol.connectionLost(reason)

    def close(self, code: int = _NORMAL, reason: str | None = None) -> None:
        """See `WebSocket.close`."""
        self.write = self.write_at_once = _drop
        super().close(code, reason)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """See `write`."""
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a push producer know when the client does not take what was written; see `IConsumer`."""
        if not streaming:
            raise ValueError("a WebSocket takes push producers only")
        self._flow.above = producer
        if self._flow.is_full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """See `IConsumer`."""
        self._flow.above = None

    def loseConnection(self) -> None:
        """Close in order: after everything that was written, and when the client has closed too."""
        self.close()
        # It may have been paused, and the client's close must be read.
        self._below.resumeProducing()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self.abort()

    def getPeer(self) -> Any:
        """Return the address of the client."""
        return self._below.getPeer()

    def getHost(self) -> Any:
        """Return the address that the client asked."""
        return self._below.getHost()
