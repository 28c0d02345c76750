"""Where the peers of one listener come in: past all of its levels, or past none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from netsvc.guard.ledger import Ledger, Table
from netsvc.guard.level import Level
from netsvc.guard.peers import peer_key
from netsvc.guard.refusals import Refusals
from netsvc.guard.tally import Tally, split_label
from netsvc.interfaces import Kind

__all__ = ["Gate"]


class Gate:
    """Admits connections, or datagram peers, by the limits of the process, the service and the listener.

    What is refused at one level leaves no trace at any, but in `refusals` and in the account of the listener, `tally`.
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
        self._ledgers = tuple(level.ledger(kind) for level in levels)

    def add_table(self, table: Table) -> None:
        """Note a table of those who have been admitted, some of whom can be asked to leave."""
        for ledger in self._ledgers:
            ledger.tables.add(table)

    def remove_table(self, table: Table) -> None:
        """Forget a table."""
        for ledger in self._ledgers:
            ledger.tables.discard(table)

    def make_room(self) -> None:
        """Where a level is full, have the largest of its tables forget somebody."""
        for ledger in self._ledgers:
            if ledger.full and ledger.tables:
                max(ledger.tables, key=len).forget_one()

    def admit(self, host: str | None, peer: str | None = None) -> str | None:
        """Admit a peer and return its key, with which it is to `leave`; or refuse it, count that, and return None.

        `host` is its address. For a UNIX socket it is None, and `peer` says who it is, as far as is known: `uid 1000`,
        or an empty string.
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
            ledger.enter(peer, now)
        counts = self._counts
        counts.accepted += 1
        counts.open += 1
        return peer

    def _refuses(self, ledger: Ledger, name: str, peer: str, ask: Callable[..., str], *details: Any) -> bool:
        """Count what is in the way; return whether it is more than limits that only report."""
        waived: tuple[str, ...] = ()
        while name:
            reported = ledger.reports(name)
            self.note(name, peer, dry=reported)
            if not reported:
                return True
            waived += (name,)
            name = ask(*details, waived)
        return False

    def note(self, limit: str, peer: str, *, dry: bool = False, ended: bool = False) -> None:
        """Count what a limit did, or would have done; see `Refusals.count`."""
        if not ended:
            (self._counts.reported if dry else self._counts.refused)[limit] += 1
        self.refusals.count(self.label, limit, peer, dry=dry, ended=ended, tally=self.tally)

    def leave(self, peer: str) -> None:
        """Let go whom `admit` returned."""
        for ledger in self._ledgers:
            ledger.leave(peer)
        self._counts.open -= 1

    def leave_unserved(self, peer: str, place: tuple[str, int | None], reason: str) -> None:
        """Let go whom `admit` returned, and who never had a protocol. It has ended all the same, for `reason`."""
        self.leave(peer)
        self.tally.ended(place, (0, 0, None, None), 0.0, (reason, None))
