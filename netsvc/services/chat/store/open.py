"""Which store the options choose, and its limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from netsvc.interfaces import Context
from netsvc.services.chat.store.interface import Store, StoreLimits
from netsvc.services.chat.store.memory import MemoryStore
from netsvc.services.chat.store.redis import RedisStore
from netsvc.services.chat.store.redis_link import RedisAddress, RedisLink
from netsvc.services.chat.store.sqlite import SqliteStore

__all__ = ["STORE_FILE", "build_store", "store_limits"]

#: The name of the file in the state directory.
STORE_FILE = "chat.sqlite"


def store_limits(options: Mapping[str, Any]) -> StoreLimits:
    """Return how much the options let a store keep."""
    return StoreLimits(
        # What is shown on joining is read from the store when it is opened.
        messages=max(options["keep-messages"], options["history"]),
        days=options["keep-days"] or None,
        rooms=options["rooms"],
        accounts=options["accounts"],
    )


def build_store(options: Mapping[str, Any], context: Context, now: Callable[[], float]) -> Store:
    """Build the store that the options choose. No side effects."""
    limits = store_limits(options)
    place: str | RedisAddress | None = options["store"]
    if place is None and context.state_directory is not None:
        path = os.path.join(context.state_directory, STORE_FILE)
        make_directory: Callable[[], object] = context.make_state_directory
    elif place is None or place == "memory":
        return MemoryStore(limits, now)
    elif isinstance(place, RedisAddress):
        link, sync = RedisLink(place, context.reactor), bool(options["sync"])
        return RedisStore(place, limits, context.reactor, context.log, now=now, link=link, sync=sync)
    else:
        path = place.removeprefix("sqlite:")
        make_directory = bool
    return SqliteStore(
        # The working directory may change, in a daemon.
        os.path.abspath(path),
        limits,
        context.reactor,
        context.log,
        now,
        full=bool(options["sync"]),
        make_directory=make_directory,
    )
