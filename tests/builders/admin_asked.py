"""Asks the admin server in memory, in bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import Clock

from netsvc.admin.api import AdminAPI
from netsvc.admin.http import AdminFactory
from netsvc.admin.permission import Permission
from netsvc.admin.status import Samples
from netsvc.admin.stream import EventStream
from tests.builders.admin_site import FakeOperations, exposition
from tests.builders.http import Reply, Transport, connect, read_replies, request


class AdminTransport(Transport):
    """A connection in memory, of which events can be read."""

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
        self.watching = EventStream(self.clock, Samples(self.clock, self.operations), self.operations)
        self.service = AdminAPI(self.clock, self.operations, self.exposition, permission or Permission(), self.watching)
        self.factory = AdminFactory(self.clock, self.service.serve)
        self.exposed = 0

    def exposition(self, *seen: Any) -> tuple[bytes, str]:
        self.exposed += 1
        return exposition(*seen)

    def connect(self) -> AdminTransport:
        """Open a connection."""
        return connect(self.factory, AdminTransport())

    def send(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> AdminTransport:
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
    def read(transport: AdminTransport) -> Reply:
        """Read the answer, and leave."""
        head, end, body = transport.value().partition(b"\r\n\r\n")
        transport.end()
        return read_replies(head.replace(b"Content-Length", b"X-Length") + end + body)[0]

    def post(self, path: str, body: bytes = b"{}", headers: Mapping[str, str] | None = None, **more: str) -> Reply:
        """Have something done."""
        return self.ask(path, "POST", body, {"Content_Type": "application/json", **(headers or {}), **more})

    def close(self) -> None:
        """End what is open."""
        self.watching.stop()
        self.factory.close()
