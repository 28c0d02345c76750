"""Counts what limits refuse and end, and says so in the log without drowning it."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.logger import Logger, LogLevel

from netsvc.text import escape

if TYPE_CHECKING:
    from netsvc.guard.tally import Tally

__all__ = ["INTERVAL", "MOST_RECENT", "Refusal", "Refusals"]

#: Seconds from one line to the next about the same limit.
INTERVAL = 1.0
#: The last ones that are remembered.
MOST_RECENT = 200

#: What is said of a limit that only reports or does not, of one that ends connections or does not.
_VERBS = {
    (False, False): "refused",
    (True, False): "would have refused",
    (False, True): "ended",
    (True, True): "would have ended",
}

_log = Logger(namespace="netsvc.guard")

#: A limit, whether it only reports, whether it has ended something that had begun.
_Reason = tuple[str, bool, bool]


class Refusal(NamedTuple):
    """One that is remembered. `tally` is the account of its listener, if there is one; `time` is since the epoch."""

    time: float
    label: str
    limit: str
    peer: str
    action: str
    tally: Tally | None


class Refusals:
    """Counts by listener and limit, and logs the first of a reason at once, then one line a second with how many.

    A reason is a limit's name and whether it refuses, ends, or only reports: there are so many lines a second at most,
    whoever comes. `counts` and `reported` (what only reports would have refused) live as long as this does.
    """

    def __init__(self, clock: Any) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.reported: Counter[tuple[str, str]] = Counter()
        #: The last ones, the newest last.
        self.last: deque[Refusal] = deque(maxlen=MOST_RECENT)
        self._clock = clock
        #: The reasons of which a line was logged less than a second ago.
        self._recent: dict[_Reason, _Pending] = {}

    def count(
        self,
        label: str,
        limit: str,
        peer: str,
        *,
        dry: bool = False,
        ended: bool = False,
        tally: Tally | None = None,
    ) -> None:
        """Count what `limit` did to `peer` at the listener `label`: refused it, or ended what had been admitted.

        `dry`: it would have, but only reports.
        """
        (self.reported if dry else self.counts)[label, limit] += 1
        self.last.append(Refusal(time.time(), label, limit, peer, _VERBS[dry, ended], tally))
        reason = (limit, dry, ended)
        pending = self._recent.get(reason)
        if pending is not None:
            pending.count += 1
            pending.label = label
            pending.peer = peer
            return
        self._say(reason, f"{_shown(peer)} at {label}")
        pending = self._recent[reason] = _Pending()
        pending.call = self._clock.callLater(INTERVAL, self._second_over, reason)

    def close(self) -> None:
        """Log what has not been logged yet, and wait for nothing any more."""
        for reason, pending in self._recent.items():
            pending.call.cancel()
            self._tell(reason, pending)
        self._recent.clear()

    def _second_over(self, reason: _Reason) -> None:
        pending = self._recent[reason]
        if not pending.count:
            del self._recent[reason]
            return
        self._tell(reason, pending)
        pending.count = 0
        pending.call = self._clock.callLater(INTERVAL, self._second_over, reason)

    def _tell(self, reason: _Reason, pending: _Pending) -> None:
        last = f"{_shown(pending.peer)} at {pending.label}"
        if pending.count == 1:
            self._say(reason, last)
        elif pending.count:
            self._say(reason, f"{pending.count} in {INTERVAL:g} s, the last {last}")

    def _say(self, reason: _Reason, what: str) -> None:
        limit, dry, ended = reason
        # That silent and old connections end is how a server is meant to go on.
        level = LogLevel.info if ended else LogLevel.warn
        _log.emit(level, "limit {limit} {verb} {what}", limit=limit, verb=_VERBS[dry, ended], what=what)


class _Pending:
    """What has come since the last line, and the call that will log it."""

    __slots__ = ("call", "count", "label", "peer")

    def __init__(self) -> None:
        self.count = 0
        self.label = ""
        self.peer = ""
        self.call: Any = None


def _shown(peer: str) -> str:
    return escape(peer) or "somebody"
