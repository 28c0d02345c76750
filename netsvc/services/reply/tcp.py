"""Reply over a stream: each chunk that arrives gets the answer, whatever its bytes."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from netsvc.services.reply.core import ReplyCore

__all__ = ["Reply"]


@implementer(IHalfCloseableProtocol)
class Reply(Protocol):
    """`exit` closes this connection, and this one only."""

    transport: Any

    def connectionMade(self) -> None:
        """Let a client that does not read its answers be read no further."""
        self.core: ReplyCore = self.factory.core
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Answer; or close, if that was asked for, with the answer to what came with it."""
        if not self.core.asks_to_leave(data):
            self.transport.write(self.core.stream_answer)
            return
        if data.strip().lower() != b"exit":
            self.transport.write(self.core.stream_answer)
        self._leave()

    def readConnectionLost(self) -> None:
        """Close, once the answers are out."""
        self._leave()

    def writeConnectionLost(self) -> None:
        """Close: nothing can be answered any more."""
        self._leave()

    def _leave(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()
