"""Builds factories and protocols for a guard to wrap, which keep what happened to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer


class Recorder(Protocol):
    """Keeps what it is told, and answers in kind."""

    transport: Any

    def __init__(self) -> None:
        self.events: list[str] = []

    def connectionMade(self) -> None:
        self.events.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.events.append(f"got {data.decode()}")
        self.transport.write(data.upper())

    def connectionLost(self, reason: object = None) -> None:
        self.events.append("lost")


@implementer(IProtocol, IHalfCloseableProtocol)
class Slotted:
    """A protocol that takes no attributes."""

    __slots__ = ("events", "transport")

    def __init__(self) -> None:
        self.events: list[str] = []
        self.transport: Any = None

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        self.events.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.events.append(f"got {data.decode()}")
        self.transport.write(data.upper())

    def connectionLost(self, reason: object = None) -> None:
        self.events.append("lost")

    def readConnectionLost(self) -> None:
        self.events.append("half")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        self.events.append("other half")


class Making(Factory):
    """Makes protocols of one class, and keeps them; refuses with None."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.made: list[Any] = []
        self._make = make

    def buildProtocol(self, addr: object) -> Any:
        protocol = self._make()
        if protocol is not None:
            self.made.append(protocol)
        return protocol
