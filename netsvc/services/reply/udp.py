"""Reply over datagrams: each gets the answer, cut to its own length unless amplification is allowed."""

from __future__ import annotations

from netsvc.datagram import AnsweringProtocol
from netsvc.services.reply.core import ReplyCore

__all__ = ["ReplyDatagram"]


class ReplyDatagram(AnsweringProtocol):
    """`exit` is a datagram like any other: nobody can stop the server."""

    core: ReplyCore

    def answer(self, data: bytes) -> bytes:
        """Return the fixed answer."""
        return self.core.answer_within(len(data))
