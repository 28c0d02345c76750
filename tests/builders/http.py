"""Builds an HTTP server in memory, and reads what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.http.connection import Exchange, HTTPConnection, HTTPFactory


class Reply(NamedTuple):
    """What was answered; header names are in lower case."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@implementer(IHalfCloseableDescriptor)
class Transport(StringTransport):
    """A connection in memory, whose client reads, and closes as soon as the server has closed its side."""

    aborted = False
    #: Whether the server has closed its side, and whether both have.
    ended = False
    gone = False
    #: Whether the client leaves its side open, and whether it takes nothing from a pull producer.
    stays = False
    reads_nothing = False
    protocol: HTTPConnection

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 5555))

    def loseWriteConnection(self) -> None:
        self.ended = True
        if not self.stays:
            self.protocol.readConnectionLost()

    def readConnectionLost(self, reason: Failure) -> None:
        """See `IHalfCloseableDescriptor`."""

    def writeConnectionLost(self, reason: Failure) -> None:
        """See `IHalfCloseableDescriptor`."""

    def loseConnection(self) -> None:
        super().loseConnection()
        self.end()

    def abortConnection(self) -> None:
        self.aborted = True
        self.end()

    def end(self) -> None:
        """Tell the protocol, once, that the connection is gone."""
        self.ended = True
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask a pull producer as long as it is registered."""
        super().registerProducer(producer, streaming)
        asked: Any = producer
        while not streaming and self.producer is producer and not self.gone and not self.reads_nothing:
            asked.resumeProducing()

    def take(self) -> bytes:
        """Return what was sent since."""
        data: bytes = self.value()
        self.clear()
        return data


T = TypeVar("T", bound=Transport)


def connect(factory: HTTPFactory, transport: T) -> T:
    """Open a connection."""
    protocol = factory.buildProtocol(None)
    assert protocol is not None
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return transport


class Server:
    """A server whose answers a function makes."""

    def __init__(self, serve: Callable[[Exchange], object], **options: Any) -> None:
        self.clock = Clock()
        self.factory = HTTPFactory(self.clock, serve, now=self.clock.seconds, **options)

    def connect(self, data: bytes = b"") -> Transport:
        transport = connect(self.factory, Transport())
        if data:
            transport.protocol.dataReceived(data)
        return transport


def read_replies(data: bytes) -> list[Reply]:
    """Read answers with a length, or of which one is the last."""
    replies = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", len(data)))
        replies.append(Reply(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return replies


def request(
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> bytes:
    """Write a request of HTTP/1.1. An underscore stands for a hyphen in the name of a header."""
    all_headers = {"Host": "localhost", **(headers or {}), **more}
    if body is not None:
        all_headers["Content-Length"] = str(len(body))
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in all_headers.items() if value]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + (body or b"")
