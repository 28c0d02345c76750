"""Reply over a stream: each chunk that arrives gets the answer, whatever its bytes."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from netsvc.services.reply.core import ReplyCore

__all__ = ["Reply"]

#: Bytes of a line that are remembered until it ends: room for `exit` with much space around it.
LONGEST_LINE = 64


@implementer(IHalfCloseableProtocol)
class Reply(Protocol):
    """`exit` closes this connection, and this one only."""

    transport: Any

    #: The beginning of a line that has not ended.
    _line = b""

    def connectionMade(self) -> None:
        """Let a client that does not read its answers be read no further."""
        self.core: ReplyCore = self.factory.core
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Answer; or close, if that was asked for, with the answer to what came with it."""
        # A line that ends here may have begun in an earlier chunk: TCP cuts anywhere.
        line = self._line + data
        readings = (data, line) if b"\n" in data else (data,)
        self._line = line.rpartition(b"\n")[2][:LONGEST_LINE]
        if all(reading.strip().lower() != b"exit" for reading in readings):
            self.transport.write(self.core.stream_answer)
        if any(map(self.core.asks_to_leave, readings)):
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
