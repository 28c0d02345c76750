"""The base of a stream protocol that can face the Internet; `netsvc.datagram` has the one for datagrams."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from netsvc.base.buffer import Buffer, LimitError
from netsvc.base.hosts import is_loopback

__all__ = ["LineProtocol", "StreamProtocol", "is_confidential"]


def is_confidential(transport: Any) -> bool:
    """Return whether a client can send a secret, such as a password, that nobody else in a network can read.

    True over TLS, over a UNIX socket, and from a loopback address. Behind a proxy that sends a PROXY header it is
    true if the proxy is on this machine and says that its own client uses TLS (PP2_TYPE_SSL), or is on this machine,
    too; with TLS between the proxy and netsvc always. In doubt it is false. Ask when the secret arrives, or once in
    `connectionMade`.
    """
    # Only encrypted transports have it: see `ISSLTransport`.
    if hasattr(transport, "getPeerCertificate"):
        return True
    known: bool | None = getattr(transport, "confidential", None)
    if known is not None:
        return known
    peer = transport.getPeer()
    return isinstance(peer, UNIXAddress) or is_loopback(getattr(peer, "host", None) or "")


@implementer(IHalfCloseableProtocol)
class StreamProtocol(Protocol):
    """A Twisted `Protocol` that bounds what it holds for a slow reader, and answers a client that has half-closed.

    A client that sends and does not read its answers would make the server hold all of them: while the send buffer
    of a connection is full, the connection is not read. A client that half-closes (`printf hello | nc`) has sent
    everything and still reads: it gets the rest of its answers, then the connection is closed.
    """

    transport: Any
    factory: Any

    @property
    def core(self) -> Any:
        """The state that all connections of the service share."""
        return self.factory.core

    def connectionMade(self) -> None:
        """Make the transport its own producer: a full send buffer pauses reading."""
        self.transport.registerProducer(self.transport, True)

    def close(self) -> None:
        """Close the connection, after everything that was written has been sent."""
        # A transport does not close under a producer.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def readConnectionLost(self) -> None:
        """Close: the client has sent everything."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Close: nothing can be sent any more."""
        self.close()


class LineProtocol(StreamProtocol):
    """Calls `line_received` for each line, which ends at LF or CRLF, or at the end of what the client sends.

    A line of more than `longest` bytes closes the connection, unless `line_too_long` does something else. The line
    is dropped as it arrives, and `line_received` is called for the next one.
    """

    longest = 8192

    def __init__(self) -> None:
        self._lines = Buffer()

    def dataReceived(self, data: bytes) -> None:
        """Take the lines that are complete."""
        self._lines.add(data)
        longest = self.longest
        while True:
            try:
                # A CR before the LF is not a part of the line.
                line = self._lines.until(b"\n", longest + 1)
            except LimitError:
                self.line_too_long()
            else:
                if line is None:
                    return
                self._received(line, longest)

    def _received(self, line: bytes, longest: int) -> None:
        line = line.removesuffix(b"\r")
        if len(line) > longest:
            self.line_too_long()
        else:
            self.line_received(line)

    def line_received(self, line: bytes) -> None:
        """Handle a line, without its end."""
        raise NotImplementedError

    def line_too_long(self) -> None:
        """Close the connection, and log that, at most once a second for each listener. Called once for each line."""
        limit_log = getattr(self.factory, "limit_log", None)
        if limit_log is not None:
            cure = f"if that is allowed, raise {type(self).__name__}.longest"
            limit_log.note(self.transport.getPeer(), f"a line of more than {self.longest} bytes", cure)
        self.close()

    def close(self) -> None:
        """Close the connection, after everything that was written has been sent; drop the lines that follow."""
        self._lines.clear()
        super().close()

    def readConnectionLost(self) -> None:
        """Take what is left as the last line, and close: the client has sent everything."""
        if self._lines:
            self._received(self._lines.take(len(self._lines)), self.longest)
        super().readConnectionLost()
