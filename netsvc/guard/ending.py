"""Ends connections: in order, or at once."""

from __future__ import annotations

from typing import Any

from twisted.internet._producer_helpers import _PullToPush
from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = ["abort", "end"]


def end(transport: Any, *, half: bool = True) -> None:
    """Send all that was written, and then an orderly end. Without `half`, nothing more is read meanwhile."""
    # To half-close still reads what the peer was about to say: to close with bytes unread would reset the connection
    # under what was just sent. A wrapper would pass the call on to what it wraps, under the TLS: so the class must have
    # it, and the transport be in plain text.
    layer = getattr(transport, "protocol", None) if getattr(transport, "TLS", False) else transport
    if isinstance(layer, TLSMemoryBIOProtocol):
        _release(layer)
    if (
        half
        and hasattr(type(transport), "loseWriteConnection")
        and not getattr(transport, "TLS", False)
        and not getattr(transport, "_writeDisconnected", False)
    ):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()


def _release(layer: Any) -> None:
    """Have TLS wait for nobody who may have something to send later.

    It sends no farewell while a producer is registered, and a service that holds back who does not read (echo) has
    one for as long as the connection. One that is asked for more, piece by piece, has an end, and is waited for.
    """
    producer = layer._producer
    if producer is not None and not isinstance(producer._producer, _PullToPush):
        layer.unregisterProducer()


def abort(transport: Any) -> None:
    """Cut a connection off, whatever was still to be sent; a transport that cannot is closed."""
    getattr(transport, "abortConnection", transport.loseConnection)()
