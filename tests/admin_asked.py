"""Asks the admin server in memory, in bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from netsvc.admin.api import Service
from netsvc.admin.permission import Permission
from netsvc.admin.samples import Samples
from netsvc.admin.watching import Watching
from netsvc.admin.wire import AdminChannel, AdminFactory
from tests.admin_site import FakeOperations, exposition


class Reply(NamedTuple):
    """What was answered; header names are in lower case."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Transport(StringTransport):
    """A connection in memory, that ends when it is closed."""

    aborted = False
    gone = False
    protocol: AdminChannel

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 5555))

    def loseConnection(self) -> None:
        super().loseConnection()
        self.end()

    def abortConnection(self) -> None:
        self.aborted = True
        self.end()

    def end(self) -> None:
        """Tell the protocol, once, that the connection is gone."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def events(self) -> list[tuple[str, Any]]:
        """Read the server-sent events that have come since, of a chunked answer."""
        text = "".join(line for line in self.value().decode().split("\r\n") if line.startswith(("event", "data")))
        self.clear()
        pairs = [event.partition("\ndata: ") for event in text.split("\n\n") if event]
        return [(kind.removeprefix("event: "), json.loads(data)) for kind, _, data in pairs]


class Admin:
    """An admin server over made-up operations, whose time is a clock's."""

    def __init__(self, operations: FakeOperations | None = None, permission: Permission | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.operations = operations or FakeOperations()
        self.watching = Watching(self.clock, Samples(self.clock, self.operations), self.operations)
        self.service = Service(self.clock, self.operations, self.exposition, permission or Permission(), self.watching)
        self.factory = AdminFactory(self.clock, self.service.serve)
        self.exposed = 0

    def exposition(self, *seen: Any) -> tuple[bytes, str]:
        self.exposed += 1
        return exposition(*seen)

    def connect(self) -> Transport:
        """Open a connection."""
        transport = Transport()
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def send(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> Transport:
        """Ask on a connection of its own; an underscore stands for a hyphen in the name of a header."""
        transport = self.connect()
        transport.protocol.dataReceived(request(path, method, body, headers, **more))
        return transport

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> Reply:
        """Ask, and return the answer, which must have come at once."""
        return self.read(self.send(path, method, body, headers, **more))

    @staticmethod
    def read(transport: Transport) -> Reply:
        """Read the answer, and leave."""
        head, _, body = transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        transport.end()
        return Reply(int(first.split()[1]), {k.lower(): v for k, _, v in (x.partition(": ") for x in lines)}, body)

    def post(self, path: str, body: bytes = b"{}", headers: Mapping[str, str] | None = None, **more: str) -> Reply:
        """Have something done."""
        return self.ask(path, "POST", body, {"Content_Type": "application/json", **(headers or {}), **more})

    def close(self) -> None:
        """End what is open."""
        self.watching.stop()
        self.factory.close()


def request(
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> bytes:
    """Write a request of HTTP/1.1."""
    all_headers = {"Host": "localhost", **(headers or {}), **more}
    if body is not None:
        all_headers["Content-Length"] = str(len(body))
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in all_headers.items() if value]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + (body or b"")
