"""One peer of a datagram port: what it has sent and been sent, and what it still may."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from netsvc.guard.bandwidth import Rate
from netsvc.guard.gate import Gate
from netsvc.guard.peers import plain_host
from netsvc.guard.tally import next_number
from netsvc.udp import ONE_COUNTED

__all__ = ["Pool", "Session"]


class Session:
    """One peer of a port. `credit` is how many bytes it may still be sent.

    What it may send and be sent in what is left of a batch is `granted` in one go: so many datagrams, in the form of
    `ONE_DATAGRAM`. `used` is what it has used of it, `unsent` the bytes of what it sent that were not answered.
    `received` and `sent` count all of its datagrams and their bytes, in the form of `ONE_COUNTED`.
    """

    __slots__ = (
        "address",
        "asked",
        "began",
        "credit",
        "gate",
        "granted",
        "number",
        "peer_key",
        "pool",
        "reads",
        "received",
        "seen",
        "sent",
        "unsent",
        "used",
        "writes",
    )

    def __init__(self, address: Any, gate: Gate, peer_key: str, began: float) -> None:
        self.address = address
        self.number = next_number()
        self.received = self.sent = 0
        #: What of both is in the account of the port already.
        self.seen = (0, 0)
        #: Where it has been admitted, and is to leave.
        self.gate = gate
        self.peer_key = peer_key
        self.began = began
        self.credit: float = 0
        #: The last batch in which a single datagram of it was asked for.
        self.asked = -1
        self.granted = -1
        self.used = 0
        self.unsent: float = 0
        self.pool: Pool | None = None
        self.reads: Sequence[Rate] = ()
        self.writes: Sequence[Rate] = ()

    def look(self) -> tuple[int, int, int, int]:
        """Bring the account of the port up to date; return bytes, then datagrams, that came and went."""
        received, sent = self.received, self.sent
        datagrams_in, bytes_in = divmod(received, ONE_COUNTED)
        datagrams_out, bytes_out = divmod(sent, ONE_COUNTED)
        before_in, before_out = self.seen
        if received != before_in or sent != before_out:
            counts = self.gate.tally.counts
            more_datagrams, more_bytes = divmod(received - before_in, ONE_COUNTED)
            counts.datagrams_in += more_datagrams
            counts.bytes_in += more_bytes
            more_datagrams, more_bytes = divmod(sent - before_out, ONE_COUNTED)
            counts.datagrams_out += more_datagrams
            counts.bytes_out += more_bytes
            self.seen = (received, sent)
        return bytes_in, bytes_out, datagrams_in, datagrams_out

    def peer_place(self) -> tuple[str, int | None]:
        """Return where the peer is: an address and a port, or the path of its UNIX socket and None."""
        if type(self.address) is tuple:
            return plain_host(self.address[0]), self.address[1]
        return _path(self.address), None


def _path(address: Any) -> str:
    return os.fsdecode(address) if isinstance(address, str | bytes) else ""


class Pool:
    """The rates of one peer, which all of its sessions share, whatever ports it sends from."""

    __slots__ = ("__weakref__", "gate", "reads", "writes")

    def __init__(self, gate: Gate, reads: Sequence[Rate], writes: Sequence[Rate]) -> None:
        self.gate = gate
        self.reads = reads
        self.writes = writes
