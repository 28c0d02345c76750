"""Ends connections: in order, or at once."""

from __future__ import annotations

from typing import Any

__all__ = ["abort", "end"]


def end(transport: Any, *, half: bool = True) -> None:
    """Send all that was written, and then an orderly end. Without `half`, nothing more is read meanwhile."""
    # To half-close still reads what the peer was about to say: to close with bytes unread would reset the connection
    # under what was just sent. A wrapper would pass the call on to what it wraps, under the TLS: so the class must have
    # it, and the transport be in plain text.
    if (
        half
        and hasattr(type(transport), "loseWriteConnection")
        and not getattr(transport, "TLS", False)
        and not getattr(transport, "_writeDisconnected", False)
    ):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()


def abort(transport: Any) -> None:
    """Cut a connection off, whatever was still to be sent; a transport that cannot is closed."""
    getattr(transport, "abortConnection", transport.loseConnection)()
