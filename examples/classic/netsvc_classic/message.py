"""The protocols of a service that sends one message to every client, whatever the client sends."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol

from netsvc.datagram import AnsweringProtocol
from netsvc.service import PlainCore

__all__ = ["Message", "MessageCore", "MessageDatagram"]


class MessageCore(PlainCore):
    """The core of such a service. Subclasses define `message`."""

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return float(self.context.reactor.seconds())

    def message(self) -> bytes:
        """Return the message to send now."""
        raise NotImplementedError


class Message(Protocol):
    """Sends the message to each client that connects, and closes. What the client sends is ignored."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        """Send it."""
        self.transport.write(self.factory.core.message())
        self.transport.loseConnection()


class MessageDatagram(AnsweringProtocol):
    """Answers each datagram, an empty one too, with the message."""

    core: MessageCore

    def answer(self, data: bytes) -> bytes:
        """Return the message, whatever the datagram."""
        return self.core.message()
