"""Clients of the chat's WebSocket, in memory: as clients of IRC, whose lines are messages."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.web import web_factory
from tests.builders.http import Transport, connect, request
from tests.builders.irc import IrcClient

#: What a browser sends.
ASKING = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "text.ircv3.net",
    "Origin": "http://localhost",
}


class WebSocketEnd:
    """Stands for the protocol and the transport of an `IrcClient`, at the browser's end of a WebSocket."""

    def __init__(self, core: ChatCore, peer: str) -> None:
        self.below = Transport()
        self.below.peerAddr = IPv4Address("TCP", peer, 4000)
        connect(web_factory(core), self.below)
        self._wire = Connection(ConnectionType.CLIENT)
        self.below.protocol.dataReceived(request("/", headers=ASKING))
        head, _, rest = self.below.take().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        self._wire.receive_data(rest)
        self.session: Any = self.below.protocol.receiver.protocol.session
        self.disconnecting = False
        self._seen = b""

    def dataReceived(self, data: bytes) -> None:
        """Send lines, a message each."""
        lines = data.decode().split("\r\n")[:-1]
        self.below.protocol.dataReceived(b"".join(bytes(self._wire.send(TextMessage(line))) for line in lines))

    def connectionLost(self, reason: Failure) -> None:
        """Lose the connection."""
        self.below.protocol.connectionLost(reason)

    def value(self) -> bytes:
        """Return the lines that have come since `clear`."""
        if sent := self.below.take():
            self._wire.receive_data(sent)
        for event in self._wire.events():
            if isinstance(event, Message):
                self._seen += str(event.data).encode() + b"\r\n"
            elif isinstance(event, CloseConnection):
                self.disconnecting = True
        return self._seen

    def clear(self) -> None:
        """Forget what has come."""
        self._seen = b""


class WebClient(IrcClient):
    """One WebSocket."""

    def __init__(self, core: ChatCore, peer: str = "192.0.2.1") -> None:
        self.core = core
        self.clock = core.context.reactor
        self.protocol: Any = WebSocketEnd(core, peer)
        self.transport: Any = self.protocol

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
