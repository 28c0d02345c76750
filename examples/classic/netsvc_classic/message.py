"""The wire forms of a service that has one thing to say, whatever it is sent."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol

from netsvc.datagram import AnsweringProtocol, LoopGuard

__all__ = ["Message", "MessageCore", "MessageDatagram"]


class MessageCore(LoopGuard):
    """What is said. Subclasses define `message`."""

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return float(self.context.reactor.seconds())

    def message(self) -> bytes:
        """Return what whoever asks now is told."""
        raise NotImplementedError


class Message(Protocol):
    """Sends the message to whoever connects, and closes. What the client sends is thrown away."""

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
        """Return the message, whatever was asked."""
        return self.core.message()
