"""Counts the live connections of a guard."""

from __future__ import annotations

from collections import Counter

from netsvc.guard import Guard


def census(guard: Guard) -> Counter[str]:
    """Count the live connections by label."""
    return Counter(connection.label for connection in guard.live)
