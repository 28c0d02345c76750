"""Connections of HTTP/1.1 that answer requests, one at a time and in their order (RFC 9112)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from fcntl import ioctl
from functools import lru_cache
from http import HTTPStatus
from math import inf
from termios import TIOCOUTQ
from typing import Any, NamedTuple

from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocolFactory,
    IPushProducer,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.text import peer_name
from netsvc.http.request import KnownHeaders, Request, RequestError, RequestLimits, RequestParser

#: Bytes that may wait behind a request that is being answered, before the client is not read any more.
MOST_WAITING = 64 * 1024
#: Requests of one connection that are answered without a turn of the event loop for others.
AT_ONCE = 16
#: Seconds between two looks at the deadlines.
RESOLUTION = 1.0

#: The content type of plain text.
TEXT = "text/plain; charset=utf-8"

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode("ascii")) for status in HTTPStatus}
_INT = struct.Struct("@i")
_ZERO = bytes(_INT.size)
_CONTINUE = _STATUS_LINES[100] + b"\r\n"

_log = Logger(namespace="netsvc.http")


@dataclass(frozen=True)
class Times:
    """Seconds for a request to arrive, for its answer, between two requests, and for the client to close.

    `closing`: for a client to take the rest of the answers, if that is less than `answer`.
    """

    request: float = 30.0
    answer: float = inf
    idle: float = 60.0
    linger: float = 2.0
    closing: float = 600.0


class WholeAnswer(NamedTuple):
    """An answer to GET with status 200: the size of its content, and what follows the first lines."""

    size: int
    rest: bytes

    @classmethod
    def of(cls, body: bytes, headers: bytes) -> WholeAnswer:
        """Prepare an answer; see `Exchange.answer`."""
        return cls(len(body), b"Content-Length: %d\r\n%b\r\n%b" % (len(body), headers, body))


class Exchange:
    """A request and its answer.

    Answer with `answer`; or with `start`, any number of `write`, and `finish`. Once the client has gone, `waiting` is
    false, and all of them do nothing.
    """

    __slots__ = (
        *("_ended", "_is_chunked", "connection", "keep_alive", "producer", "request", "sent", "started", "status"),
        *("target", "user", "waiting"),
    )

    def __init__(self, connection: HTTPConnection, request: Request, started: float) -> None:
        self.connection = connection
        self.request = request
        #: When the request had arrived, by the clock of the factory.
        self.started = started
        self.waiting = True
        #: The status of the answer, once it has begun, and the bytes of its content so far.
        self.status = 0
        self.sent = 0
        #: The target as access records have it: without a secret in it.
        self.target = request.target
        #: Who the client has proved to be, for access records; empty if nobody in particular.
        self.user = ""
        #: Whether another request may follow.
        self.keep_alive = request.keep_alive
        #: Told to pause while the client does not read; see `IPushProducer`.
        self.producer: Any = None
        self._is_chunked = False
        self._ended: tuple[Callable[[], None], ...] = ()

    @property
    def peer(self) -> Any:
        """The address of the client."""
        return self.connection.transport.getPeer()

    @property
    def peer_name(self) -> str:
        """The address of the client as log lines have it."""
        connection = self.connection
        return connection.peer_name or connection.name_peer()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call a function when the answer is finished or the client is gone; see `waiting`."""
        self._ended += (call,)

    def answer(self, status: int, body: bytes = b"", headers: bytes = b"") -> None:
        """Send a whole answer. `headers` are lines that end with CR LF. A part that was sent is cut off by a reset."""
        if not self.waiting:
            return
        if self.status:
            self.connection.abort()
            return
        if self.request.method == b"HEAD":
            data = self._head(status, headers, len(body))
        else:
            self.sent = len(body)
            data = self._head(status, headers, len(body), body)
        self.connection.transport.write(data)
        self._finish()

    def answer_whole(self, whole: WholeAnswer) -> None:
        """Send an answer to GET that was prepared."""
        if not self.waiting:
            return
        if self.status:
            self.connection.abort()
            return
        self.status = 200
        self.sent = whole.size
        connection = self.connection
        factory = connection.factory
        first = _first_lines(200, int(factory.now()))
        if not self.keep_alive or self.request.version != 11 or factory.draining:
            first += self._connection_line()
        connection.transport.write(first + whole.rest)
        self._finish()

    def start(self, status: int, headers: bytes = b"", length: int | None = None) -> None:
        """Begin an answer of `length` bytes, or of any length."""
        if self.waiting:
            self.connection.transport.write(self._head(status, headers, length))

    def write(self, data: bytes) -> None:
        """Send a part of the content; nothing in the answer to HEAD."""
        if not self.waiting or not data or self.request.method == b"HEAD":
            return
        self.sent += len(data)
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self.connection.transport.write(data)

    def switch(self, receiver: Any, headers: bytes) -> Any:
        """Switch to another protocol (RFC 9110, section 15.2.2); return the transport, without a producer.

        From now on `receiver.received` gets what the client sends, also what it has sent already, at the next
        `dataReceived`; `receiver.client_done` is called when the client has closed its side, `receiver.overdue` at the
        deadline of the connection, and `receiver.lost` with the reason at its end.
        """
        self.status = HTTPStatus.SWITCHING_PROTOCOLS
        self.keep_alive = False
        connection = self.connection
        connection.receiver = receiver
        connection.go_on()
        first = _first_lines(self.status, int(connection.factory.now()))
        connection.transport.write(b"".join((first, headers, b"\r\n")))
        return connection.lend_transport()

    def lend_transport(self) -> Any:
        """Return the transport, without a producer, for the content of a begun answer; `finish` takes it back.

        Add the bytes that are written to `sent`.
        """
        return self.connection.lend_transport()

    def finish(self) -> None:
        """End the answer."""
        if self.waiting:
            if self._is_chunked:
                self.connection.transport.write(b"0\r\n\r\n")
            self._finish()

    def _head(self, status: int, headers: bytes, length: int | None, body: bytes = b"") -> bytes:
        """Return the head of the answer, followed by `body`."""
        self.status = status
        request = self.request
        factory = self.connection.factory
        first = _first_lines(status, int(factory.now()))
        framing = b""
        if length is not None:
            # An answer without content has no length (RFC 9110, section 8.6).
            if status not in (204, 304):
                if self.keep_alive and request.version == 11 and not factory.draining:
                    # The usual case.
                    return b"".join((first, b"Content-Length: %d\r\n" % length, headers, b"\r\n", body))
                framing = b"Content-Length: %d\r\n" % length
        elif request.version == 11:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._is_chunked = request.method != b"HEAD"
        else:
            self.keep_alive = False
        return b"".join((first, framing, self._connection_line(), headers, b"\r\n", body))

    def _connection_line(self) -> bytes:
        """Decide whether another request may follow, and return the header that says so."""
        self.keep_alive = self.keep_alive and not self.connection.factory.draining
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.request.version == 10 else b""

    def _finish(self) -> None:
        connection = self.connection
        if self._ended or connection.factory.request_ended is not None:
            self.end()
        else:
            self.waiting = False
            self.producer = None
        connection.finished(self)

    def end(self) -> None:
        """Note that the answer is finished or the client is gone."""
        self.waiting = False
        self.producer = None
        if self._ended:
            ended, self._ended = self._ended, ()
            for call in ended:
                call()
        if self.connection.factory.request_ended is not None:
            self.connection.factory.request_ended(self)


@lru_cache(maxsize=16)
def _first_lines(status: int, seconds: int) -> bytes:
    """Return the status line and the date of an answer."""
    return b"%bDate: %b\r\n" % (_STATUS_LINES[status], formatdate(seconds, usegmt=True).encode("ascii"))


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Return headers as the lines that `Exchange` takes. Raises `ValueError` for a CR or LF in one."""
    if any("\r" in each or "\n" in each for each in (*headers, *headers.values())):
        raise ValueError("a header cannot contain a line end")
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items())


@implementer(IHalfCloseableProtocol, IPushProducer)
class HTTPConnection(Protocol):
    """A connection: it calls `serve` of its factory with each request, when the answer to the one before has ended.

    Nothing is read or answered while the client does not read, and at most `MOST_WAITING` bytes are kept. When the
    server closes, what the client still sends is read and dropped for a while, because a reset could cut the answer
    (RFC 9112, section 9.6); but not if the client has asked for it, and has got everything.
    """

    factory: HTTPFactory
    transport: Any
    #: Called with the connection and None before it closes or when the client has closed its side, and at its end with
    #: the reason.
    closing: Callable[[HTTPConnection, Failure | None], None] | None = None
    #: Has the connection, once that has switched to another protocol; see `Exchange.switch`.
    receiver: Any = None

    # What all connections begin with is kept in the class: few need all of it, and there may be many.
    #: The request that is being answered.
    exchange: Exchange | None = None
    #: When something is due, in seconds.
    deadline = inf
    #: The client as log lines name it, once a line was written.
    peer_name = ""
    #: While a request is on its way that is not known as a whole.
    _parser: RequestParser | None = None
    _unread = b""
    _is_paused = False
    _is_lent = False
    _reads = True
    _answering = False
    _has_begun = False
    _client_done = False
    _closing = False
    _ending = False
    #: Whether the client has said that it asks for nothing more.
    _is_asked = False

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self.exchange is None and not self._has_begun and not self._closing

    def connectionMade(self) -> None:
        """Wait for a request."""
        factory = self.factory
        self.transport.registerProducer(self, True)
        factory.opened(self)
        self.deadline = factory.clock.seconds() + factory.times.request

    def name_peer(self) -> str:
        """Name the client: as long as the connection lasts it stays the same."""
        self.peer_name = peer_name(self.transport.getPeer())
        return self.peer_name

    def _continue(self) -> None:
        self.transport.write(_CONTINUE)

    def dataReceived(self, data: bytes) -> None:
        """Answer the requests that have come."""
        if self._closing:
            return
        if self.exchange is None and self._parser is None and not (self._unread or self._is_paused or self._answering):
            # The usual case: one request whose headers are known, and nothing before it or behind it.
            request = self.factory.known_headers.find(data)
            if request is not None:
                self._answering = True
                try:
                    self._serve(request)
                finally:
                    self._answering = False
                return
        self._unread = self._unread + data if self._unread else data
        if self.exchange is None:
            self._answer()
        elif self.receiver is not None:
            data, self._unread = self._unread, b""
            self.receiver.received(data)
            return
        if len(self._unread) > MOST_WAITING and self._reads:
            self._reads = False
            self.transport.pauseProducing()

    def _answer(self) -> None:
        """Parse and answer what was received, as far as the client reads it."""
        if self._answering:
            return
        self._answering = True
        turns = AT_ONCE
        try:
            while self._unread and self.exchange is None and not (self._closing or self._is_paused):
                if not turns:
                    self.factory.clock.callLater(0, self._answer)
                    break
                turns -= 1
                self._parse()
        finally:
            self._answering = False
        if self._client_done and self.exchange is None and not self._unread and not self._closing:
            if self._has_begun:
                # RFC 9112, section 8.
                self._has_begun = False
                self._refuse(RequestError(HTTPStatus.BAD_REQUEST, "the request is incomplete"))
            else:
                self.close()
        if not self._reads and len(self._unread) <= MOST_WAITING and not self._closing:
            self._reads = True
            self.transport.resumeProducing()

    def _parse(self) -> None:
        parser = self._parser
        if parser is None:
            factory = self.factory
            parser = self._parser = RequestParser(factory.limits, self._continue, factory.known_headers)
        # Requests behind it wait as bytes.
        found, self._unread = parser.take(self._unread)
        if not parser.busy:
            # Between requests it would only take memory.
            self._parser = None
        for each in found:
            self._has_begun = False
            if isinstance(each, Request):
                self._serve(each)
            else:
                self._refuse(each, parser.method)
        if parser.busy and not self._has_begun and not self._closing:
            self._has_begun = True
            self.deadline = self.factory.clock.seconds() + self.factory.times.request

    def _serve(self, request: Request) -> None:
        factory = self.factory
        started = factory.clock.seconds()
        exchange = self.exchange = factory.exchange(self, request, started)
        if self._client_done and not self._unread:
            exchange.keep_alive = False
        self.deadline = started + factory.times.answer
        try:
            factory.serve(exchange)
        except Exception:  # noqa: BLE001  (it ends one answer only)
            _log.failure("a request failed")
            exchange.answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _refuse(self, error: RequestError, method: bytes = b"") -> None:
        request = Request(method, b"", 11, [], keep_alive=False)
        self.exchange = self.factory.exchange(self, request, self.factory.clock.seconds())
        self.factory.refuse(self.exchange, error)

    def lend_transport(self) -> Any:
        """Return the transport, without a producer, until the answer is finished."""
        self._is_lent = True
        self.transport.unregisterProducer()
        return self.transport

    def finished(self, exchange: Exchange) -> None:
        """Continue after an answer."""
        if exchange is not self.exchange:
            return
        self.exchange = None
        if self._is_lent:
            self._is_lent = False
            self.transport.registerProducer(self, True)
        if not exchange.keep_alive or self.factory.draining:
            request = exchange.request
            self._is_asked = bool(request.target) and not request.keep_alive and not self._unread
            self._close(self._now(exchange))
            return
        self.deadline = self._now(exchange) + self.factory.times.idle
        if self._unread or self._client_done:
            self._answer()

    def _now(self, exchange: Exchange) -> float:
        # An answer without delay took no time that matters to a deadline.
        return exchange.started if self._answering else self.factory.clock.seconds()

    def close(self) -> None:
        """Close when everything is sent."""
        if not self._closing:
            self._close(self.factory.clock.seconds())

    def _close(self, now: float) -> None:
        self._closing = True
        self._unread = b""
        transport = self.transport
        transport.unregisterProducer()
        if self._client_done or not _knows_half_close(transport.__class__) or getattr(transport, "TLS", False):
            self._end()
            return
        self.deadline = now + self.factory.times.linger
        transport.loseWriteConnection()
        if not self._reads:
            self._reads = True
            transport.resumeProducing()

    def _end(self) -> None:
        """Close when everything is sent, and reset the connection if the client has not read it in time."""
        self._ending = True
        if self.closing is not None:
            self.closing(self, None)
        times = self.factory.times
        self.deadline = self.factory.clock.seconds() + min(times.answer, times.closing)
        self.transport.loseConnection()

    def go_on(self) -> None:
        """Give the answer in progress unlimited time."""
        self.deadline = inf

    def abort(self) -> None:
        """Reset the connection."""
        self._closing = True
        self.transport.abortConnection()

    def overdue(self) -> None:
        """End what has taken too long."""
        self.deadline = inf
        if self.receiver is not None and not self._closing:
            self.receiver.overdue()
        elif self._ending:
            self.abort()
        elif self._closing:
            self._end()
        elif self.exchange is not None:
            self.abort()
        elif self._has_begun:
            self._has_begun = False
            self._refuse(RequestError(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"))
        else:
            self.close()

    def pauseProducing(self) -> None:
        """Answer nothing more until the client has read the answers before."""
        self._is_paused = True
        if self.exchange is not None and self.exchange.producer is not None:
            self.exchange.producer.pauseProducing()

    def resumeProducing(self) -> None:
        """Continue."""
        self._is_paused = False
        if self.exchange is None:
            self._answer()
        elif self.exchange.producer is not None:
            self.exchange.producer.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    def readConnectionLost(self) -> None:
        """Answer what has been received: the client may still read."""
        self._client_done = True
        if self.closing is not None:
            self.closing(self, None)
        if self._closing:
            self._end()
        elif self.exchange is None:
            self._answer()
        elif self.receiver is not None:
            self.receiver.client_done()

    def writeConnectionLost(self) -> None:
        """Close, unless the client is awaited."""
        if not self._closing:
            self.close()
        elif self._is_asked and not self._ending and unacknowledged(self.transport) == 0:
            self._ending = True
            if self.closing is not None:
                self.closing(self, None)
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the answer in progress."""
        self._closing = True
        self._unread = b""
        self.factory.closed(self)
        if self.closing is not None:
            self.closing(self, reason)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end()
        if self.receiver is not None:
            self.receiver.lost(reason)


def unacknowledged(transport: Any) -> int | None:
    """Return how many of the written bytes the other end's system has not acknowledged; None if it cannot be known.

    The end of the stream counts as one.
    """
    try:
        (waiting,) = _INT.unpack(ioctl(transport.fileno(), TIOCOUTQ, _ZERO))
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int(waiting) + len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer))


@lru_cache(maxsize=32)
def _knows_half_close(transport: type) -> bool:
    # Of the class: a wrapper claims the interfaces of what it wraps, but a half-close ends it.
    return bool(IHalfCloseableDescriptor.implementedBy(transport))


@implementer(IProtocolFactory)
class HTTPFactory:
    """Builds connections. `serve` is called with an `Exchange` for each request.

    Beyond `most` connections, one that has asked for nothing yet, or for nothing more, is closed for a new one: the one
    whose time ends first. There is no bound without.
    """

    exchange: type[Exchange] = Exchange

    def __init__(
        self,
        clock: Any,
        serve: Callable[[Exchange], object],
        *,
        limits: RequestLimits | None = None,
        times: Times | None = None,
        most: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.serve = serve
        self.limits = limits or RequestLimits()
        self.times = times or Times()
        #: Returns the time of day, for the header Date.
        self.now = now
        self.known_headers = KnownHeaders(self.limits)
        #: Called with each request that has ended, answered or not.
        self.request_ended: Callable[[Exchange], None] | None = None
        #: Whether each answer is the last one of its connection.
        self.draining = False
        self._most = most
        #: The open connections.
        self.connections: dict[HTTPConnection, None] = {}
        self._call: Any = None

    def doStart(self) -> None:
        """See `IProtocolFactory`."""

    def doStop(self) -> None:
        """See `IProtocolFactory`."""

    def buildProtocol(self, _addr: object) -> HTTPConnection | None:
        """Build a connection, or return None if there are too many and none is idle."""
        if self._most is not None and len(self.connections) >= self._most:
            # One that has sent a part of a request, and no more, would otherwise keep its place.
            waiting = (each for each in self.connections if each.exchange is None)
            idle = min(waiting, key=lambda each: each.deadline, default=None)
            if idle is None:
                return None
            idle.abort()
        connection = HTTPConnection()
        connection.factory = self
        return connection

    def refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Answer what is no request, or too large a one; it has nothing but its method, as far as that is known."""
        exchange.answer(error.status, f"{error.line}\n".encode(), header_lines({"Content-Type": TEXT}))

    def opened(self, connection: HTTPConnection) -> None:
        """Watch the deadlines of a connection."""
        self.connections[connection] = None
        if self._call is None:
            self._call = self.clock.callLater(RESOLUTION, self._look)

    def closed(self, connection: HTTPConnection) -> None:
        """Forget a connection."""
        self.connections.pop(connection, None)
        if not self.connections:
            self._stop_looking()

    def _stop_looking(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = self.clock.callLater(RESOLUTION, self._look)
        now = self.clock.seconds()
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.overdue()

    def drain(self) -> None:
        """Close idle connections now and each other one after its answer."""
        self.draining = True
        for connection in [each for each in self.connections if each.idle]:
            connection.close()

    def close(self) -> None:
        """Reset all connections."""
        for connection in list(self.connections):
            connection.abort()
        self._stop_looking()
