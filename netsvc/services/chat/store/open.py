"""Which store the options choose, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from netsvc.interfaces import Context
from netsvc.services.chat.store.interface import Store, StoreLimits
from netsvc.services.chat.store.memory import MemoryStore

__all__ = ["build_store", "store_limits"]


def store_limits(options: Mapping[str, Any]) -> StoreLimits:
    """Return how much the options let a store keep."""
    return StoreLimits(messages=options["history"], rooms=options["rooms"])


def build_store(options: Mapping[str, Any], context: Context, now: Callable[[], float]) -> Store:
    """Build the store that the options choose. No side effects."""
    return MemoryStore(store_limits(options), now)
