"""A level of limits: the process, a service or a listener."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any

from netsvc.guard.access import Access
from netsvc.guard.buckets import Bucket
from netsvc.guard.ledger import Ledger
from netsvc.interfaces import Kind
from netsvc.limits import Limits

__all__ = ["Level"]

#: The limit on how many at once that belongs to one on how many a second.
_BURSTS = {"rate": "burst", "periprate": "peripburst"}
_NOTHING: Limits = MappingProxyType({})


class Level:
    """The limits that everything at a level shares, and what they have counted so far.

    `limits` has what was set and, where nothing was, `defaults`. Raises `MistakeError` if a file of networks cannot be
    read. `localtime()` tells the time of day.
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
        self.limits: Limits = {}
        self._defaults = defaults
        #: The names of those that were set here.
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
        """How many connections and sessions there are."""
        return sum(ledger.live for ledger in self._ledgers.values())

    def ledger(self, kind: Kind) -> Ledger:
        """Return what counts connections (`stream`) or sessions (`datagram`): the same one whatever changes."""
        return self._ledgers[kind]

    def bucket(self, name: str) -> Bucket | None:
        """Return what all together take their bytes from, for `readall` or `writeall`; None if there is no limit."""
        return self._buckets.get(name)

    def reports(self, limit: str) -> bool:
        """Tell whether a limit only reports here."""
        return self._ledgers["stream"].reports(limit)

    def change(self, limits: Limits) -> None:
        """Keep these limits from now on, over the same defaults. Raises `MistakeError`, and changes nothing."""
        self.prepare(limits)()

    def prepare(self, limits: Limits) -> Callable[[], None]:
        """Do all of a change that can fail, and return what does the rest: so several levels change together.

        Files of networks are read again. What is there stays counted. Raises `MistakeError` if a file is wrong.
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
            rate = limits.get(name)
            if rate is not None:
                kept = before.get(name)
                self._buckets[name] = kept if kept is not None and kept.rate == rate else Bucket(rate, rate, now)


def _merged(limits: Limits, defaults: Limits) -> Limits:
    merged = {**defaults, **limits}
    for rate, burst in _BURSTS.items():
        # The default burst is made for the default rate: with periprate=1 it would be minutes' worth.
        if rate in limits and burst not in limits:
            merged.pop(burst, None)
    return merged
