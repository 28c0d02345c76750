"""The guard of a host: its levels of limits, and everything that is behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocolFactory

from netsvc.guard.faults import Faults
from netsvc.guard.gate import Gate
from netsvc.guard.level import Level
from netsvc.guard.refusals import Refusals
from netsvc.guard.sessions import Sessions
from netsvc.guard.stream import Connection, GuardedFactory
from netsvc.guard.tally import Book, Tally, split_label
from netsvc.guard.watch import Watch
from netsvc.interfaces import Kind
from netsvc.limits import DEFAULTS, Limits

__all__ = ["Guard"]


class Guard:
    """Knows all live stream connections of a host, and keeps its limits.

    `limits` are those of the process, with `DEFAULTS` under them. Raises `MistakeError` where a file of addresses
    cannot be read; so does everything here that takes limits, and then changes nothing.
    """

    def __init__(self, clock: Any, limits: Limits | None = None) -> None:
        self.live: set[Connection] = set()
        #: Called after each connection that ends.
        self.ended: Callable[[], None] = lambda: None
        self.clock = clock
        self.refusals = Refusals(clock)
        self.faults = Faults(clock)
        self.book = Book()
        self.process = Level("process", limits or {}, clock, DEFAULTS)
        self.watch = Watch(clock, self._overstayed, self._would_end)
        self._services: dict[str, Level] = {}

    def service(self, name: str, limits: Limits, defaults: Limits | None = None) -> Level:
        """Return the level of a service, with these limits from now on.

        `defaults` are what the service declares itself; they are asked for once.
        """
        level = self._services.get(name)
        if level is None:
            level = self._services[name] = Level(name, limits, self.clock, defaults or {})
        else:
            level.change(limits)
        return level

    def gate(
        self,
        label: str,
        kind: Kind,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        tally: Tally | None = None,
    ) -> Gate:
        """Make what admits the peers of one listener, with an account of its own unless one is given."""
        levels = [self.process, *([service] if service else [])]
        if limits:
            levels.append(Level(label, limits, self.clock))
        tally = tally or self.book.open(*split_label(label), kind)
        return Gate(levels, self.refusals, label, kind, self.clock, tally=tally)

    def wrap(
        self,
        factory: IProtocolFactory,
        label: str,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        tally: Tally | None = None,
    ) -> GuardedFactory:
        """Return a factory that builds what `factory` builds, guarded. `label` names the listener."""
        return GuardedFactory(self, factory, label, self.gate(label, "stream", service, limits, tally=tally))

    def sessions(
        self,
        label: str,
        service: Level | None = None,
        limits: Limits | None = None,
        *,
        verified: bool = False,
        tally: Tally | None = None,
    ) -> Sessions:
        """Make the table of a datagram port's peers. `verified`: the protocol sees to it that they are not forged."""
        gate = self.gate(label, "datagram", service, limits, tally=tally)
        return Sessions(self.clock, gate, verified=verified)

    def census(self) -> Counter[str]:
        """Count the live connections by label."""
        return Counter(connection.label for connection in self.live)

    def close(self) -> None:
        """Log what is left to log, and wait for nothing any more."""
        self.watch.close()
        self.refusals.close()

    def _overstayed(self, connection: Connection, limit: str) -> None:
        connection.cause = ("limit", limit)
        connection.gate.note(limit, str(connection.peer_key), ended=True)

    def _would_end(self, connection: Connection, limit: str) -> None:
        connection.gate.note(limit, str(connection.peer_key), ended=True, dry=True)
