"""Counts what the limits of a guard have done."""

from __future__ import annotations

from collections import Counter

from netsvc.guard.guard import Guard

__all__ = ["refused"]


def refused(guard: Guard) -> dict[str, int]:
    """Count, by limit, the connections and sessions that a guard has refused or ended."""
    counted: Counter[str] = Counter(each.limit for each in guard.refusals.last if each.action == "ended")
    for tally in guard.book.tallies:
        counted.update(tally.counts.refused)
    return dict(counted)
