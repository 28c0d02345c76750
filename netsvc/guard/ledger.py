"""The book of one level: who is there, and who may come in addition."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol
from weakref import WeakSet

from netsvc.guard.access import Access, within
from netsvc.guard.buckets import Bucket, PeerBuckets
from netsvc.guard.peers import is_local
from netsvc.interfaces import Kind
from netsvc.limits import Limits

__all__ = ["Ledger", "Table"]

_NEVER = float("-inf")
_Rates = tuple[float, float] | None


class Table(Protocol):
    """Who has been admitted and need not stay."""

    def __len__(self) -> int:
        """Count them."""

    def forget_one(self) -> None:
        """Let one of them leave, if there is any."""


class Ledger:
    """Counts the connections of a level, or its datagram peers' sessions, and keeps its limits on new ones.

    The two are counted each for itself: datagrams have forged addresses, and could keep out those who connect.
    `live` is how many there are, `peers` how many of each peer.
    """

    __slots__ = (
        "_access",
        "_hours",
        "_localtime",
        "_most",
        "_most_name",
        "_most_of_one",
        "_pause",
        "_paused_until",
        "_peer_rates",
        "_rate",
        "_reported",
        "_screens",
        "_spares",
        "_spares_rate",
        "live",
        "paced",
        "peers",
        "tables",
    )

    def __init__(self, kind: Kind, localtime: Callable[[], time.struct_time] = time.localtime) -> None:
        self.live = 0
        self.peers: dict[str, int] = {}
        #: Those that can make room, by forgetting who is counted here.
        self.tables: WeakSet[Table] = WeakSet()
        #: Whether `overrun` has to be asked.
        self.paced = False
        self._most_name = "connections" if kind == "stream" else "sessions"
        self._localtime = localtime
        self._rate: Bucket | None = None
        self._peer_rates: PeerBuckets | None = None
        self._paused_until = _NEVER

    def change(self, limits: Limits, chosen: Collection[str], access: Access | None, now: float) -> None:
        """Keep these limits from now on. What is there stays, and what is left of a rate that stays the same.

        `chosen` are those limits that a user has set: on peers of this machine no others hold of those on single
        peers. A proxy here speaks for many.
        """
        self._most = limits.get(self._most_name) or math.inf
        self._most_of_one = limits.get("perip") or math.inf
        self._spares = "perip" not in chosen
        self._spares_rate = "periprate" not in chosen and "peripburst" not in chosen
        self._access = access
        self._hours = limits.get("hours")
        self._screens = access is not None or self._hours is not None
        self._reported = limits.get("dryrun") or ()
        rates = _rates(limits, "rate", "burst")
        if rates != _kept(self._rate):
            self._rate = Bucket(*rates, now) if rates else None
            self._paused_until = _NEVER
        self.paced = rates is not None
        self._pause = (limits.get("pause") if self._most_name == "connections" else None) or 0.0
        if not self._pause:
            self._paused_until = _NEVER
        rates = _rates(limits, "periprate", "peripburst")
        if rates != _kept(self._peer_rates):
            self._peer_rates = PeerBuckets(*rates, now) if rates else None

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be, and another one would be refused for that."""
        return self.live >= self._most and not self.reports(self._most_name)

    def reports(self, limit: str) -> bool:
        """Tell whether a limit only reports."""
        return limit in self._reported or "all" in self._reported

    def breach(self, host: str | None, peer: str, now: float, waived: Collection[str] = ()) -> str:
        """Name the first limit that is in the way of a new one of `peer`; an empty string if none is.

        Those that are `waived` are not looked at, nor are those of `overrun`. `host` is None for UNIX sockets.
        """
        if self._screens and (name := self._screened(host, waived)):
            return name
        if self.live >= self._most and self._most_name not in waived:
            return self._most_name
        # Of an unknown user it cannot be said how many there are.
        if (
            self.peers.get(peer, 0) >= self._most_of_one
            and peer
            and not (self._spares and is_local(peer))
            and "perip" not in waived
        ):
            return "perip"
        rates = self._peer_rates
        if (
            rates is not None
            and rates.wait(peer, now)
            and not (self._spares_rate and is_local(peer))
            and "periprate" not in waived
        ):
            return "periprate"
        return ""

    def _screened(self, host: str | None, waived: Collection[str]) -> str:
        if self._access is not None and host is not None:
            name = self._access.refusal(host)
            if name and name not in waived:
                return name
        if self._hours is not None and "hours" not in waived and not within(self._hours, self._localtime()):
            return "hours"
        return ""

    def overrun(self, now: float, waived: Collection[str] = ()) -> str:
        """Name the limit on how many come a second that is in the way of a new one; an empty string if none is.

        To be asked last of all: what another limit refuses must not begin a pause.
        """
        # Asked for in a pause as well, so that it knows of a clock that is set back.
        exceeded = self._rate is not None and self._rate.wait(1.0, now) > 0
        if now < self._paused_until and "rate" not in waived:
            # A clock that was set back must not prolong it.
            self._paused_until = min(self._paused_until, now + self._pause)
            if "pause" not in waived:
                return "pause"
        if not exceeded or "rate" in waived:
            return ""
        # A rate that only reports begins no pause in earnest.
        if self._pause and now >= self._paused_until and (self.reports("pause") or not self.reports("rate")):
            self._paused_until = now + self._pause
        return "rate"

    def enter(self, peer: str, now: float) -> None:
        """Count one more."""
        self.live += 1
        peers = self.peers
        peers[peer] = peers.get(peer, 0) + 1
        # What a limit that only reports lets through is taken from what there is, and no more.
        if self._rate is not None and not self._rate.wait(1.0, now):
            self._rate.take(1.0, now)
        rates = self._peer_rates
        if rates is not None and peer and not (self._spares_rate and is_local(peer)):
            rates.take(peer, now)

    def leave(self, peer: str) -> None:
        """Count one less. Raises `KeyError`, and counts nothing, if none of this peer is there."""
        left = self.peers[peer] - 1
        if left:
            self.peers[peer] = left
        else:
            del self.peers[peer]
        self.live -= 1


def _rates(limits: Limits, rate: str, burst: str) -> _Rates:
    """Return how many may come a second and at once: one second's, if it is not said; None without a limit."""
    a_second: Any = limits.get(rate)
    return None if a_second is None else (a_second, limits.get(burst) or max(1.0, a_second))


def _kept(buckets: Bucket | PeerBuckets | None) -> _Rates:
    return None if buckets is None else (buckets.rate, buckets.burst)
