"""Closes connections, in order or at once."""

from __future__ import annotations

from typing import Any

from twisted.internet._producer_helpers import _PullToPush


def tls_of(transport: Any) -> Any:
    """Return the TLS transport that a transport is, has as its protocol, or is stacked on; None without TLS."""
    for layer in (transport, getattr(transport, "below", None), getattr(transport, "protocol", None)):
        # Of the class: a wrapper passes on the attributes of what it wraps.
        if hasattr(type(layer), "_handshakeDone"):
            return layer
    return None


def end(transport: Any, *, half: bool = True) -> None:
    """Send everything that was written, then close in order. Without `half`, read nothing more meanwhile."""
    # A half-close goes on reading: closing with unread bytes would reset the connection and lose what was just sent.
    # A wrapper would pass loseWriteConnection() on below TLS; so the class itself must have it, and the transport must
    # be plain text.
    tls = tls_of(transport)
    # A `Layer` unregisters its own producer.
    if tls is not None and not hasattr(transport, "below"):
        _release(tls)
    if (
        half
        and tls is None
        and not getattr(transport, "TLS", False)
        and hasattr(type(transport), "loseWriteConnection")
        and not getattr(transport, "_writeDisconnected", False)
    ):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()


def _release(tls: Any) -> None:
    """Unregister a push producer from TLS, so that TLS closes although the producer may send more later.

    TLS sends no close_notify while a producer is registered, and a service that pauses reading with its peer (echo)
    keeps one registered as long as the connection lasts. A pull producer comes to an end, which is waited for.
    """
    if hasattr(type(tls), "_producer"):
        producer = tls._producer
        is_push = producer is not None and not isinstance(producer._producer, _PullToPush)
    else:
        is_push = tls.producer is not None and tls.streamingProducer
    if is_push:
        tls.unregisterProducer()


def abort(transport: Any) -> None:
    """Reset a connection and discard unsent data; close it if the transport cannot reset it."""
    getattr(transport, "abortConnection", transport.loseConnection)()
