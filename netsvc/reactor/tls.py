"""Twisted's TLS transport, fixed for how connections end."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet._newtls import _BypassTLS
from twisted.internet._producer_helpers import _PullToPush
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, ISSLTransport
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides

__all__ = ["TLSTransport", "start_tls"]

#: Bytes decrypted in one step, as in Twisted.
_MOST_READ = 2**15


class TLSTransport(BufferingTLSTransport):
    """Twisted's TLS transport, fixed for how connections end.

    - A close sends close_notify and closes the connection below. Twisted waits for the close_notify of the peer, which
      need not send one (RFC 8446, section 6.1), and which a malicious one does not send.
    - A client that sends close_notify may continue reading. A protocol that supports half-closes
      (`IHalfCloseableProtocol`) gets `readConnectionLost`, answers, and closes. Twisted answers with close_notify at
      once, as TLS 1.2 requires (RFC 5246, section 7.2.1), although its clients do read on. With any other protocol
      this does the same, but resets a connection with more to send: the client would take the data so far for complete.
    """

    #: Whether the peer has closed its side before we have closed ours.
    peer_first = False

    def _flushReceiveBIO(self) -> None:
        # The same as Twisted, except for a half-close.
        while not self._lostTLSConnection:
            try:
                data = self._tlsConnection.recv(_MOST_READ)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                if self._half_closes():
                    break
                self._shutdownTLS()
                self._tlsShutdownFinished(None)
            except SSL.Error:
                self._tlsShutdownFinished(Failure())
            else:
                if not self._aborted:
                    self.wrappedProtocol.dataReceived(data)
        self._flushSendBIO()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # For close_notify during the handshake: Twisted expects that the exception has arguments.
        if reason is not None and reason.check(SSL.ZeroReturnError):
            reason = None
        super()._tlsShutdownFinished(reason)

    def _half_closes(self) -> bool:
        """Report the close_notify of the peer to a protocol that supports half-closes; return whether it does."""
        if self.disconnecting:
            return False
        is_first, self.peer_first = not self.peer_first, True
        protocol: Any = self.wrappedProtocol
        if not IHalfCloseableProtocol.providedBy(protocol):
            return False
        if is_first:
            # The end of the stream below may follow now. Without close_notify before, it still ends the connection.
            alsoProvides(self, IHalfCloseableProtocol)
            protocol.readConnectionLost()
        return True

    def write_at_once(self, data: bytes) -> None:
        """Write as `write` does. Without this, the transport below would be found, and send in plain text."""
        self.write(data)

    def readConnectionLost(self) -> None:
        """Do nothing: the protocol knows. See `IHalfCloseableProtocol.readConnectionLost`."""

    def writeConnectionLost(self) -> None:
        """Do nothing: only we close our side. See `IHalfCloseableProtocol.writeConnectionLost`."""

    def _shutdownTLS(self) -> None:
        if self._tlsConnection.get_shutdown() & SSL.RECEIVED_SHUTDOWN and not self.disconnecting:
            # Data written in this iteration is still aggregated there.
            self._aggregator.flush()
            producer = None if self._producer is None else self._producer._producer
            if isinstance(producer, _PullToPush) or IPullProducer.providedBy(producer):
                # There is more to send, but it cannot be sent any more.
                inner: Any = self.transport
                inner.abortConnection()
                return
        super()._shutdownTLS()
        if self.disconnecting and not self._aborted and self.connected:
            # Nothing more is read: without close_notify, its end would be reported as an error.
            self._lostTLSConnection = True
            below: Any = self.transport
            below.loseConnection()


def start_tls(transport: Any, context: Any, *, client: bool) -> None:
    """Put TLS between a connection and its protocol, as `twisted.internet._newtls.startTLS` does with its own class."""
    producer, streaming = transport.producer, transport.streamingProducer
    if producer is not None:
        # It is registered with the TLS layer below.
        transport.unregisterProducer()
    factory: Any = TLSMemoryBIOFactory(context, client, None, transport.reactor)  # type: ignore[arg-type]
    layer = TLSTransport(factory, transport.protocol, False)
    transport.protocol = layer
    transport.getHandle, transport.getPeerCertificate = layer.getHandle, layer.getPeerCertificate
    directlyProvides(transport, ISSLTransport)
    transport.TLS = True
    layer.makeConnection(_BypassTLS(FileDescriptor, transport))
    if producer is not None:
        transport.registerProducer(producer, streaming)
