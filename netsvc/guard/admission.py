"""Enforces the limits on new connections and sessions at three levels: process, service and listener."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakSet

from netsvc.base.bucket import Bucket, PeerBuckets
from netsvc.base.hosts import is_local, peer_key
from netsvc.base.networks import Access
from netsvc.guard.counters import Tally, split_label
from netsvc.guard.refusals import Refusals
from netsvc.interfaces import Kind
from netsvc.plan.limits import Limits, within

__all__ = ["Gate", "Ledger", "Level", "Table"]

#: The burst limit that belongs to each rate limit.
_BURSTS = {"rate": "burst", "periprate": "peripburst"}
_NOTHING: Limits = MappingProxyType({})

_NEVER = float("-inf")
_Rates = tuple[float, float] | None


class Table(Protocol):
    """A table of datagram sessions that can evict one."""

    def __len__(self) -> int:
        """Return the number of sessions."""

    def count(self, peer: str) -> int:
        """Return the number of sessions of a peer."""

    def forget_one(self) -> None:
        """Evict one session, if there is any."""

    def forget_one_of(self, peer: str) -> None:
        """Evict one session of a peer, if it has any."""


class Ledger:
    """Counts the connections or the datagram sessions of a level, and enforces its limits on new ones.

    Connections and sessions are counted separately: datagrams with forged addresses must not use up the connections.
    `live` is the current number, `peers` the current number of each peer.

    The limits on the number of sessions, of all peers and of one, refuse none: a new session evicts another one, of the
    same peer if that is at its limit. To remember a session is all that it costs, and a client that sends each request
    from a new port (a resolver, a NAT) needs the old ones no more.
    """

    __slots__ = (
        "_access",
        "_evicts",
        "_exempts_local",
        "_exempts_local_rate",
        "_has_access_rules",
        "_hours",
        "_localtime",
        "_max_live",
        "_max_name",
        "_max_per_peer",
        "_pause",
        "_paused_until",
        "_peer_rates",
        "_rate",
        "_reported",
        "live",
        "paced",
        "peers",
        "tables",
    )

    def __init__(self, kind: Kind, localtime: Callable[[], time.struct_time] = time.localtime) -> None:
        self.live = 0
        self.peers: dict[str, int] = {}
        #: The tables that can evict an entry that is counted here.
        self.tables: WeakSet[Table] = WeakSet()
        #: Whether `overrun` has to be called.
        self.paced = False
        self._evicts = kind == "datagram"
        self._max_name = "connections" if kind == "stream" else "sessions"
        self._localtime = localtime
        self._rate: Bucket | None = None
        self._peer_rates: PeerBuckets | None = None
        self._paused_until = _NEVER

    def change(self, limits: Limits, chosen: Collection[str], access: Access | None, now: float) -> None:
        """Apply these limits from now on; keep all counts, and the remaining burst of an unchanged rate.

        `chosen` are the limits that a user has set. Default limits per peer do not apply to peers on this machine: a
        local proxy connects for many clients.
        """
        self._max_live = limits.get(self._max_name) or math.inf
        self._max_per_peer = limits.get("perip") or math.inf
        self._exempts_local = "perip" not in chosen
        self._exempts_local_rate = "periprate" not in chosen and "peripburst" not in chosen
        self._access = access
        self._hours = limits.get("hours")
        self._has_access_rules = access is not None or self._hours is not None
        self._reported = limits.get("dryrun") or ()
        rates = _rates(limits, "rate", "burst")
        if rates != _kept(self._rate):
            self._rate = Bucket(*rates, now) if rates else None
            self._paused_until = _NEVER
        self.paced = rates is not None
        self._pause = (limits.get("pause") if self._max_name == "connections" else None) or 0.0
        if not self._pause:
            self._paused_until = _NEVER
        rates = _rates(limits, "periprate", "peripburst")
        if rates != _kept(self._peer_rates):
            self._peer_rates = PeerBuckets(*rates, now) if rates else None

    def make_room(self, peer: str) -> None:
        """Evict the session whose place a new one of `peer` needs, first one of its own. For datagrams only."""
        if self._is_at_limit(peer) and not self.reports("perip"):
            max(self.tables, key=lambda table: table.count(peer)).forget_one_of(peer)
        if self.live >= self._max_live and not self.reports(self._max_name):
            max(self.tables, key=len).forget_one()

    def _can_evict(self, limit: str) -> bool:
        return self._evicts and bool(self.tables) and not self.reports(limit)

    def _is_at_limit(self, peer: str) -> bool:
        # An unknown user of a UNIX socket has no key to count by.
        return (
            self.peers.get(peer, 0) >= self._max_per_peer
            and bool(peer)
            and not (self._exempts_local and is_local(peer))
        )

    def reports(self, limit: str) -> bool:
        """Return whether a limit is in dry-run mode: reported, not enforced."""
        return limit in self._reported or "all" in self._reported

    def breach(self, host: str | None, peer: str, now: float, waived: Collection[str] = ()) -> str:
        """Return the name of the first limit that refuses a new one of `peer`; an empty string if none does.

        `waived` limits and the limits of `overrun` are not checked. `host` is None for UNIX sockets.
        """
        if self._has_access_rules and (name := self._refused_by_access_rule(host, waived)):
            return name
        if self.live >= self._max_live and self._max_name not in waived and not self._can_evict(self._max_name):
            return self._max_name
        # Looked up before the call, as few peers are at the limit.
        if (
            self.peers.get(peer, 0) >= self._max_per_peer
            and self._is_at_limit(peer)
            and "perip" not in waived
            and not self._can_evict("perip")
        ):
            return "perip"
        rates = self._peer_rates
        if (
            rates is not None
            and rates.wait(peer, now)
            and not (self._exempts_local_rate and is_local(peer))
            and "periprate" not in waived
        ):
            return "periprate"
        return ""

    def _refused_by_access_rule(self, host: str | None, waived: Collection[str]) -> str:
        if self._access is not None and host is not None:
            name = self._access.refusal(host)
            if name and name not in waived:
                return name
        if self._hours is not None and "hours" not in waived and not within(self._hours, self._localtime()):
            return "hours"
        return ""

    def overrun(self, now: float, waived: Collection[str] = ()) -> str:
        """Return the name of the rate limit that refuses a new one, `rate` or `pause`; an empty string if none does.

        Call it last: what another limit refuses must not start a pause.
        """
        # Updated during a pause as well, so that the bucket notices a clock that was set back.
        exceeded = self._rate is not None and self._rate.wait(1.0, now) > 0
        if now < self._paused_until and "rate" not in waived:
            # A clock that was set back must not prolong the pause.
            self._paused_until = min(self._paused_until, now + self._pause)
            if "pause" not in waived:
                return "pause"
        if not exceeded or "rate" in waived:
            return ""
        # A dry-run rate starts no enforced pause.
        if self._pause and now >= self._paused_until and (self.reports("pause") or not self.reports("rate")):
            self._paused_until = now + self._pause
        return "rate"

    def enter(self, peer: str, now: float) -> None:
        """Count a new one of `peer`."""
        self.live += 1
        peers = self.peers
        peers[peer] = peers.get(peer, 0) + 1
        # What a dry-run limit lets through does not put the bucket into debt.
        if self._rate is not None and not self._rate.wait(1.0, now):
            self._rate.take(1.0, now)
        rates = self._peer_rates
        if rates is not None and peer and not (self._exempts_local_rate and is_local(peer)):
            rates.take(peer, now)

    def leave(self, peer: str) -> None:
        """Count one of `peer` less. Raises `KeyError`, and changes nothing, if none is counted."""
        left = self.peers[peer] - 1
        if left:
            self.peers[peer] = left
        else:
            del self.peers[peer]
        self.live -= 1


def _rates(limits: Limits, rate: str, burst: str) -> _Rates:
    """Return the rate per second and the burst, by default the rate of one second; None without a limit."""
    a_second: Any = limits.get(rate)
    return None if a_second is None else (a_second, limits.get(burst) or max(1.0, a_second))


def _kept(buckets: Bucket | PeerBuckets | None) -> _Rates:
    return None if buckets is None else (buckets.rate, buckets.burst)


class Level:
    """The limits that everything at a level shares, with their counts.

    `limits` are the limits that were set, over `defaults`. Raises `UserError` if a network file cannot be read.
    `localtime()` returns the time of day.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        clock: Any,
        defaults: Limits = _NOTHING,
        localtime: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self.name = name
        #: The limits in force.
        self.limits: Limits = {}
        self._defaults = defaults
        #: The names of the limits that were set here.
        self.chosen: frozenset[str] = frozenset()
        self._clock = clock
        self._ledgers: dict[Kind, Ledger] = {
            "stream": Ledger("stream", localtime),
            "datagram": Ledger("datagram", localtime),
        }
        self._buckets: dict[str, Bucket] = {}
        self.change(limits)

    @property
    def live(self) -> int:
        """The number of open connections and sessions."""
        return sum(ledger.live for ledger in self._ledgers.values())

    def ledger(self, kind: Kind) -> Ledger:
        """Return the ledger of connections (`stream`) or sessions (`datagram`). It is never replaced."""
        return self._ledgers[kind]

    def bucket(self, name: str) -> Bucket | None:
        """Return the shared bucket of `readall` or `writeall`; None without this limit."""
        return self._buckets.get(name)

    def reports(self, limit: str) -> bool:
        """Return whether a limit is in dry-run mode at this level."""
        return self._ledgers["stream"].reports(limit)

    def change(self, limits: Limits) -> None:
        """Apply these limits over the same defaults. Raises `UserError` and then changes nothing."""
        self.prepare(limits)()

    def prepare(self, limits: Limits) -> Callable[[], None]:
        """Do the part of a change that can fail; return a function that commits it, so that levels change together.

        Network files are read again. All counts are kept. Raises `UserError` if a file is invalid.
        """
        merged = _merged(limits, self._defaults)
        allow, deny = merged.get("allow"), merged.get("deny")
        access = None if allow is None and deny is None else Access(allow, deny)
        return lambda: self._become(merged, limits.keys(), access)

    def _become(self, limits: Limits, chosen: Collection[str], access: Access | None) -> None:
        now = self._clock.seconds()
        self.limits = limits
        self.chosen = frozenset(chosen)
        for ledger in self._ledgers.values():
            ledger.change(limits, chosen, access, now)
        before, self._buckets = self._buckets, {}
        for name in ("readall", "writeall"):
            rate = self.limits.get(name)
            if rate is not None:
                kept = before.get(name)
                self._buckets[name] = kept if kept is not None and kept.rate == rate else Bucket(rate, rate, now)


def _merged(limits: Limits, defaults: Limits) -> Limits:
    merged = {**defaults, **limits}
    for rate, burst in _BURSTS.items():
        # The default burst suits the default rate only: with periprate=1 it would last for minutes.
        if rate in limits and burst not in limits:
            merged.pop(burst, None)
    return merged


class Gate:
    """Admits connections or datagram peers within the limits of the process, the service and the listener.

    A refusal at one level changes the counts of no level; it is noted in `refusals` and in the listener's `tally`.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        refusals: Refusals,
        label: str,
        kind: Kind,
        clock: Any,
        *,
        tally: Tally | None = None,
    ) -> None:
        self.levels = levels
        self.label = label
        self.refusals = refusals
        self.tally = tally or Tally(*split_label(label), kind)
        self.tally.gate = self
        self._counts = self.tally.counts
        self._seconds = clock.seconds
        self._evicts = kind == "datagram"
        self._ledgers = tuple(level.ledger(kind) for level in levels)

    def add_table(self, table: Table) -> None:
        """Register a table of admitted sessions, from which `admit` can evict."""
        for ledger in self._ledgers:
            ledger.tables.add(table)

    def remove_table(self, table: Table) -> None:
        """Unregister a table."""
        for ledger in self._ledgers:
            ledger.tables.discard(table)

    def admit(self, host: str | None, peer: str | None = None) -> str | None:
        """Admit a peer and return its key for `leave`; or refuse it, count the refusal, and return None.

        A session may be evicted for a new one (see `Ledger`), but for none that is refused.

        `host` is its address. For a UNIX socket, `host` is None and `peer` is the user, such as `uid 1000`, or an empty
        string if the user is unknown.
        """
        if host is not None:
            peer = peer_key(host)
        elif peer is None:
            peer = ""
        now = self._seconds()
        ledgers = self._ledgers
        paced = False
        for ledger in ledgers:
            name = ledger.breach(host, peer, now)
            if name and self._refuses(ledger, name, peer, ledger.breach, host, peer, now):
                return None
            paced |= ledger.paced
        if paced:
            for ledger in ledgers:
                name = ledger.overrun(now)
                if name and self._refuses(ledger, name, peer, ledger.overrun, now):
                    return None
        for ledger in ledgers:
            if self._evicts:
                ledger.make_room(peer)
            ledger.enter(peer, now)
        counts = self._counts
        counts.accepted += 1
        counts.open += 1
        return peer

    def _refuses(self, ledger: Ledger, name: str, peer: str, ask: Callable[..., str], *details: Any) -> bool:
        """Count each limit that is exceeded; return whether one of them is enforced."""
        waived: tuple[str, ...] = ()
        while name:
            reported = ledger.reports(name)
            self.count_refusal(name, peer, dry=reported)
            if not reported:
                return True
            waived += (name,)
            name = ask(*details, waived)
        return False

    def count_refusal(self, limit: str, peer: str, *, dry: bool = False, ended: bool = False, count: int = 1) -> None:
        """Count what a limit refused or ended, or with `dry` would have; see `Refusals.add`."""
        if not ended:
            (self._counts.reported if dry else self._counts.refused)[limit] += count
        self.refusals.add(self.label, limit, peer, dry=dry, ended=ended, tally=self.tally, count=count)

    def leave(self, peer: str) -> None:
        """Release a peer that was admitted, by the key that `admit` returned."""
        for ledger in self._ledgers:
            ledger.leave(peer)
        self._counts.open -= 1

    def leave_unserved(self, peer: str, place: tuple[str, int | None], reason: str) -> None:
        """Release an admitted peer that never got a protocol, and record that it ended for `reason`."""
        self.leave(peer)
        self.tally.ended(place, (0, 0, None, None), 0.0, (reason, None))
