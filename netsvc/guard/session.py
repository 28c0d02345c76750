"""One peer of a datagram port: what was received from it and sent to it, and what it may be sent.

Services that answer can be made to answer each other without end, by one datagram with a forged address. So one address
and port is sent `answers` datagrams a second; beyond that its datagrams are dropped before the protocol sees them, and
with the last one that circulates such a loop ends. The default is not for a loopback peer on a port that the system
gives to clients, except that a service which itself has such a port mutes it for a moment each time that it was sent
twice as many.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from netsvc.base.bucket import Bucket
from netsvc.base.hosts import plain_host
from netsvc.guard.admission import Gate
from netsvc.guard.bandwidth import Rate
from netsvc.guard.counters import next_number
from netsvc.plan.address import written_path
from netsvc.plan.limits import IPV4_HEADERS, IPV6_HEADERS
from netsvc.reactor.datagrams import ONE_COUNTED
from netsvc.reactor.pktinfo import Source

#: Datagrams of the limit `answers` that a session takes at a time.
_ANSWERS_A_PORTION = 64
#: Sent datagrams after which a loopback peer that is exempt from `answers` is first muted, and seconds of that: as long
#: as the datagrams of a loop may take to come back.
MUTED_FIRST = 10_000
_MUTED = 0.005
#: A `Session.ceiling` that is never reached.
NO_CEILING = 1 << 200


class Session:
    """One peer of a port. `headers` is the length of the IP and UDP headers of each of its datagrams.

    When `sent` has reached `ceiling`, nothing is received from the peer nor sent to it unless `Sessions.may_answer`
    allows more.
    Within a batch, `granted` datagrams may be exchanged without checking the limits again, counted in units of
    `ONE_DATAGRAM`. `used` is the used part of the grant, and `unchecked` how many more bytes may be sent in it: as many
    as were received. `received` and `sent` count all datagrams and bytes in units of `ONE_COUNTED`.
    """

    __slots__ = (
        "address",
        "answers",
        "asked",
        "began",
        "ceiling",
        "controls",
        "gate",
        "granted",
        "headers",
        "lookups",
        "number",
        "peer_key",
        "peer_rates",
        "reads",
        "received",
        "seen",
        "sent",
        "sockaddr",
        "source",
        "spared",
        "unchecked",
        "used",
        "waived",
        "writes",
    )

    def __init__(self, address: Any, gate: Gate, peer_key: str, began: float) -> None:
        self.address = address
        #: The same as received from the system, with the scope that a link-local address needs.
        self.sockaddr = address
        #: What sets the source of datagrams to it; the ancillary data of those from it for which that is settled; and
        #: for how many it was looked up.
        self.source: Source = None
        self.controls: Any = None
        self.lookups = 0
        is_ipv6 = type(address) is tuple and ":" in address[0] and not address[0].startswith("::ffff:")
        self.headers = IPV6_HEADERS if is_ipv6 else IPV4_HEADERS
        self.number = next_number()
        self.received = self.sent = 0
        self.ceiling = NO_CEILING
        #: What is left of `answers`, once more than one portion was sent.
        self.answers: Answers | LoopBreak | None = None
        #: What of both is in the account of the port already.
        self.seen = (0, 0)
        #: `received` when it was spared from eviction last.
        self.spared = 0
        #: The gate that has admitted it, and that it leaves.
        self.gate = gate
        self.peer_key = peer_key
        self.began = began
        #: Bytes beyond `amplify` that were sent all the same, before it was set or in its dry run.
        self.waived: float = 0
        #: The last batch in which the limits were checked for a single datagram of it.
        self.asked = -1
        self.granted = -1
        self.used = self.unchecked = 0
        self.peer_rates: PeerRates | None = None
        self.reads: Sequence[Rate] = ()
        self.writes: Sequence[Rate] = ()

    def is_idle(self) -> bool:
        """Return whether it can be evicted without harm; if not, it can be the next time, unless something comes."""
        received = self.received
        before, self.spared = self.spared, received
        return received == before if before else bool(self.sent) and received < 2 * ONE_COUNTED

    def look(self) -> tuple[int, int, int, int]:
        """Update the counters of the port; return bytes in and out, then datagrams in and out."""
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
        """Return the address and port of the peer, or the path of its UNIX socket and None."""
        return peer_place(self.address)


def peer_place(address: Any) -> tuple[str, int | None]:
    """Return the address and port of a peer, or the path of its UNIX socket and None."""
    return (plain_host(address[0]), address[1]) if type(address) is tuple else (_path(address), None)


class Answers:
    """What `answers` allows one peer: so many a second, in portions."""

    __slots__ = ("_bucket",)

    def __init__(self, rate: float, now: float) -> None:
        self._bucket = Bucket(rate, max(rate, 1.0), now)
        self._bucket.take(first_portion(rate), now)

    def grant(self, now: float) -> int:
        """Return how many more datagrams may be sent; 0 if none now."""
        if self._bucket.wait(1.0, now):
            return 0
        portion = max(1, min(_ANSWERS_A_PORTION, int(self._bucket.left(now))))
        self._bucket.take(portion, now)
        return portion


def first_portion(rate: float) -> int:
    """Return how many datagrams a peer may be sent before `answers` is counted for it."""
    return min(_ANSWERS_A_PORTION, max(int(rate), 1))


class LoopBreak:
    """Mutes one peer for a moment each time that it was sent twice as many datagrams."""

    __slots__ = ("_portion", "_until")

    def __init__(self) -> None:
        self._portion = MUTED_FIRST
        self._until: float | None = None

    def grant(self, now: float) -> int:
        """Return how many more datagrams may be sent; 0 if none now."""
        # A clock that was set back must not prolong it.
        if self._until is None or now < self._until - _MUTED:
            self._until = now + _MUTED
        if now < self._until:
            return 0
        portion, self._portion, self._until = self._portion, 2 * self._portion, None
        return portion


def _path(address: Any) -> str:
    return written_path(os.fsdecode(address)) if isinstance(address, str | bytes) else ""


class PeerRates:
    """The rates of one peer, shared by its sessions from all source ports."""

    __slots__ = ("__weakref__", "gate", "reads", "writes")

    def __init__(self, gate: Gate, reads: Sequence[Rate], writes: Sequence[Rate]) -> None:
        self.gate = gate
        self.reads = reads
        self.writes = writes
