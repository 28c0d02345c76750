"""Fixes Twisted's `haproxy:` endpoint. Imported only when it is used, as it imports all of Twisted's endpoints."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from zope.interface import implementer


@implementer(IHalfCloseableProtocol)
class ProxiedTransport(HAProxyProtocolWrapper):
    """Twisted's transport behind a PROXY header, with support for half-closes and invalid headers.

    Twisted's own closes the connection at a half-close, and unsent data is lost. For some invalid headers it raises
    exceptions that are not caught, and each such connection logs a traceback.
    """

    #: Twisted does not say where the header came from; see `netsvc.reactor.hooks`.
    confidential = False

    def readConnectionLost(self) -> None:
        """Pass on the half-close of the peer, or close the connection."""
        protocol: Any = self.wrappedProtocol
        if IHalfCloseableProtocol.providedBy(protocol):
            protocol.readConnectionLost()
        else:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Pass on the half-close of our side."""
        protocol: Any = self.wrappedProtocol
        if IHalfCloseableProtocol.providedBy(protocol):
            protocol.writeConnectionLost()

    def dataReceived(self, data: bytes) -> None:
        """Read the header, then pass data on."""
        try:
            super().dataReceived(data)
        except Exception:
            if self._proxyInfo is not None:
                # The header was valid; so the protocol has failed.
                raise
            self.loseConnection()
