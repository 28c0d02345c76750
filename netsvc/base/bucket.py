"""Token buckets: a burst at once, then a rate a second. They have no timers: the time is passed in.

Times are seconds of any clock. One that is set back makes a bucket wait no longer than if it had just been emptied.
"""

from __future__ import annotations

#: Buckets of single peers that are kept.
MOST_PEERS = 65536
#: Seconds. Two times that differ by less are the same: sums of floating point numbers are not exact, and a wait of a
#: tiny fraction would be waited for again and again.
_TOLERANCE = 1e-6


class Bucket:
    """Holds up to `burst` tokens and gets `rate` back a second. It is full at first."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` could be taken, 0.0 if it can be now. More than `burst`: until full."""
        self._fill(now)
        seconds = (min(amount, self.burst) - self._tokens) / self.rate
        return seconds if seconds > _TOLERANCE else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, whether it is there or not: what is missing has to come back first."""
        self._fill(now)
        self._tokens -= amount

    def left(self, now: float) -> float:
        """Return how many tokens there are: below zero, if more was taken than there was."""
        self._fill(now)
        return self._tokens

    def give_back(self, amount: float) -> None:
        """Put back what was taken a moment ago, and not used."""
        self._tokens += amount

    def _fill(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            self._tokens = min(self.burst, self._tokens + passed * self.rate)
        self._at = now


class PeerBuckets:
    """A bucket for each peer, of which a peer that is not known has a full one.

    A bucket that has not been used for as long as it takes to fill is full, and forgotten: then nothing is lost. Only
    where more than `most` peers take something in twice that time, others are forgotten as well, those first that have
    neither taken nor been refused anything for longest. So a peer gets a full bucket back before its time only by
    staying away until half of `most` other peers have come, each of which has a burst of its own anyway.
    """

    __slots__ = ("_half", "_interval", "_old", "_span", "_turned", "_young", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float, most: int = MOST_PEERS) -> None:
        self.rate = rate
        self.burst = burst
        self._interval = 1 / rate
        self._span = burst / rate
        self._half = most // 2
        # Peer to the time at which its bucket is full. The young are those heard of since the last turn.
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._turned = now

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def wait(self, peer: str, now: float) -> float:
        """Return the seconds until a peer could take one token, 0.0 if it can now."""
        full_at = self._young.get(peer)
        if full_at is None:
            full_at = self._old.get(peer)
            if full_at is None:
                return 0.0
        # A clock that was set back must not keep the peer out until it has caught up.
        missing = min(full_at - now, self._span)
        seconds = missing + self._interval - self._span
        if seconds <= _TOLERANCE:
            return 0.0
        self._keep(peer, now + missing, now)
        return seconds

    def take(self, peer: str, now: float) -> None:
        """Take a token of a peer's if there is one."""
        full_at = self._young.get(peer)
        if full_at is None:
            full_at = self._old.get(peer, now)
        full_at = (full_at if full_at > now else now) + self._interval
        limit = now + self._span
        self._keep(peer, full_at if full_at < limit else limit, now)

    def give_back(self, peer: str, now: float) -> None:
        """Put back a token that a peer took."""
        full_at = self._young.get(peer) or self._old.get(peer)
        if full_at is not None and full_at > now:
            self._keep(peer, full_at - self._interval, now)

    def _keep(self, peer: str, full_at: float, now: float) -> None:
        young = self._young
        passed = now - self._turned
        if passed > self._span or passed < 0 or (len(young) >= self._half and peer not in young):
            self._old = young if passed <= 2 * self._span else {}
            self._young = young = {}
            self._turned = now
        young[peer] = full_at
