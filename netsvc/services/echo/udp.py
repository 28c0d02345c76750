"""Echo over datagrams: each goes back whole, an empty one too (RFC 862)."""

from __future__ import annotations

from netsvc.datagram import AnsweringProtocol

__all__ = ["EchoDatagram"]


class EchoDatagram(AnsweringProtocol):
    """Answers a datagram with itself."""

    def answer(self, data: bytes) -> bytes:
        """Return what came."""
        return data
