"""Echo over a stream: every byte goes back unchanged (RFC 862)."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

__all__ = ["Echo"]


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    """When the client stops reading, so do we; when it has sent all, it still gets the rest."""

    transport: Any

    def connectionMade(self) -> None:
        """Let a full send buffer pause the reading of the same connection."""
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        """Close, once everything has gone back."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Close: nothing can go back any more."""
        self.transport.loseConnection()
