"""What waits to be sent to one client, and what happens to one that does not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["Outbox"]


@implementer(IPushProducer)
class Outbox:
    """Stands between a wire and its transport, as the transport's producer.

    `send` goes straight to the transport until that says that its own buffer (64 KiB in Twisted) is full. From
    then on up to `limit` bytes are held until it has room again. More than that, and the connection is aborted:
    `overflowed` is called, just before, and whatever is sent afterwards is dropped.
    """

    def __init__(self, transport: Any, limit: int, overflowed: Callable[[], None]) -> None:
        self._transport = transport
        self._limit = limit
        self._overflowed = overflowed
        self._held: list[bytes] = []
        self._size = 0
        #: Sends bytes; never raises, and never waits. It is replaced as the transport fills and empties.
        self.send: Callable[[bytes], object] = transport.write
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Hold what is sent."""
        self.send = self._hold

    def resumeProducing(self) -> None:
        """Send what was held."""
        # First, for this write may fill the transport again.
        self.send = self._transport.write
        self._release()

    def stopProducing(self) -> None:
        """Drop everything from now on: the connection is gone."""
        self.send = _drop
        self._held.clear()

    def close(self, *, unread: bool) -> None:
        """Send what is held, take nothing more, and close the connection after it.

        `unread` tells that the client may have sent what nobody has read. To close over it would reset the
        connection under what was just sent: where the transport can, only our side is closed then, and the
        caller has to close the rest when the client has, or after some time.
        """
        self._release()
        self.send = _drop
        # A TLS transport closes only when it has no producer any more.
        self._transport.unregisterProducer()
        if unread and _half_closes(self._transport):
            self._transport.loseWriteConnection()
        else:
            self._transport.loseConnection()

    def _release(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held:
            self._transport.write(b"".join(held))

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._held.append(data)
            return
        self.stopProducing()
        self._overflowed()
        self._transport.abortConnection()


def _half_closes(transport: Any) -> bool:
    # A transport that wraps another, as TLS does, would pass the call on to that.
    return hasattr(type(transport), "loseWriteConnection") and not getattr(transport, "TLS", False)


def _drop(_data: bytes) -> None:
    """Stand in for a transport that is gone."""
