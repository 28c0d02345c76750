"""Character generator (RFC 864): a recognizable pattern, without end over a stream, a piece in a datagram."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.datagram import AnsweringProtocol, LoopGuard
from netsvc.interfaces import Context
from netsvc.service import Service

__all__ = ["service"]

RING = bytes(range(0x20, 0x7F))
#: Every line of the pattern once; then it begins again.
PAGE = b"".join((RING + RING)[start : start + 72] + b"\r\n" for start in range(len(RING)))
#: Characters of a datagram at most.
LONGEST_ANSWER = 512


class Chargen(LoopGuard):
    """Knows the live connections, which would never end by themselves."""

    def __init__(self, options: usage.Options, context: Context) -> None:
        super().__init__(options, context)
        self.live: set[ChargenStream] = set()

    def drain(self) -> None:
        """End them, each after what it has begun to send."""
        for stream in list(self.live):
            stream.end()


@implementer(IPullProducer)
class ChargenStream(Protocol):
    """Sends as fast as the client reads, and no faster. What the client sends is thrown away."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        """Begin. The transport asks for more whenever it has sent what it had."""
        self.factory.core.live.add(self)
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next page."""
        self.transport.write(PAGE)

    def stopProducing(self) -> None:
        """Do nothing: no page is sent unless it is asked for."""

    def end(self) -> None:
        """Close once the client has read what was sent."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Forget a connection, however it ended."""
        self.factory.core.live.discard(self)


class ChargenDatagram(AnsweringProtocol):
    """Answers with as many characters as it was sent, so that nobody can make it send more than they do."""

    def answer(self, data: bytes) -> bytes:
        """Return the beginning of the pattern."""
        return PAGE[: min(len(data), LONGEST_ANSWER)]


service = Service(
    "chargen",
    "Send a pattern of characters (RFC 864)",
    core=Chargen,
    streams={"tcp": ChargenStream},
    datagrams={"udp": ChargenDatagram},
)
