"""How often one may do something: a burst at once, then so many a second."""

from __future__ import annotations

__all__ = ["Bucket"]

#: Seconds. Two times that differ by less are the same: sums of floating point numbers are not exact, and a wait
#: of a tiny fraction would be waited for again and again.
_TOLERANCE = 1e-6


class Bucket:
    """Holds up to `burst` tokens and gets `rate` back a second.

    Times are seconds of any clock, which may be set: one that is set back refills the bucket no later than
    if it had just been emptied.
    """

    __slots__ = ("_full_at", "_interval", "_span", "refused")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._span = burst / rate
        self._full_at = float("-inf")
        #: How often a token was refused since the bucket was last full. 1: say so; more: it has been said.
        self.refused = 0

    def take(self, now: float) -> float:
        """Take a token and return 0.0; or take none and return the seconds until there will be one."""
        if self._full_at <= now:
            self._full_at = now
            self.refused = 0
        self._full_at = min(self._full_at, now + self._span)
        wait = self._full_at + self._interval - now - self._span
        if wait > _TOLERANCE:
            self.refused += 1
            return wait
        self._full_at += self._interval
        return 0.0
