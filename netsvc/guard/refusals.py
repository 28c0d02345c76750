"""Logs what limits refuse and end, at most one line a second for each limit, and remembers the latest refusals."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.logger import Logger, LogLevel

from netsvc.base.text import shown_peer

if TYPE_CHECKING:
    from netsvc.guard.counters import Tally

#: Seconds between two log lines about the same limit.
INTERVAL = 1.0
#: Refusals that are remembered.
MOST_RECENT = 200

#: The verb for (dry run, ended).
_VERBS = {
    (False, False): "refused",
    (True, False): "would have refused",
    (False, True): "ended",
    (True, True): "would have ended",
}

_log = Logger(namespace="netsvc.guard")

#: The name of a limit, whether it is a dry run, and whether it has ended an admitted connection.
_Reason = tuple[str, bool, bool]


class Refusal(NamedTuple):
    """A refusal that is remembered. `tally` is its listener's, if any; `time` is in seconds since the epoch."""

    time: float
    label: str
    limit: str
    peer: str
    action: str
    tally: Tally | None


class Refusals:
    """Logs the first refusal for a reason at once, then one line a second with the number of further ones.

    A reason is the name of a limit, whether it is a dry run, and whether it has refused or ended. So the number of
    lines a second is bounded by the number of reasons, regardless of the number of peers.
    """

    def __init__(self, clock: Any) -> None:
        #: The latest refusals, the newest last.
        self.last: deque[Refusal] = deque(maxlen=MOST_RECENT)
        self._clock = clock
        #: The reasons that were logged less than `INTERVAL` seconds ago.
        self._recent: dict[_Reason, _Pending] = {}

    def add(
        self,
        label: str,
        limit: str,
        peer: str,
        *,
        dry: bool = False,
        ended: bool = False,
        tally: Tally | None = None,
        count: int = 1,
    ) -> None:
        """Note that `limit` has refused `peer` at the listener `label`, or `ended` its connection, `count` times.

        `dry`: the limit is a dry run and would have done so.
        """
        self.last.append(Refusal(time.time(), label, limit, peer, _VERBS[dry, ended], tally))
        reason = (limit, dry, ended)
        pending = self._recent.get(reason)
        if pending is not None:
            pending.count += count
            pending.label = label
            pending.peer = peer
            return
        self._log_line(reason, f"{shown_peer(peer)} at {label}")
        pending = self._recent[reason] = _Pending()
        pending.count = count - 1
        pending.label, pending.peer = label, peer
        pending.call = self._clock.callLater(INTERVAL, self._interval_over, reason)

    def close(self) -> None:
        """Log what is pending, and cancel all delayed calls."""
        for reason, pending in self._recent.items():
            pending.call.cancel()
            self._log_pending(reason, pending)
        self._recent.clear()

    def _interval_over(self, reason: _Reason) -> None:
        pending = self._recent[reason]
        if not pending.count:
            del self._recent[reason]
            return
        self._log_pending(reason, pending)
        pending.count = 0
        pending.call = self._clock.callLater(INTERVAL, self._interval_over, reason)

    def _log_pending(self, reason: _Reason, pending: _Pending) -> None:
        last = f"{shown_peer(pending.peer)} at {pending.label}"
        if pending.count == 1:
            self._log_line(reason, last)
        elif pending.count:
            self._log_line(reason, f"{pending.count} in {INTERVAL:g} s, the last {last}")

    def _log_line(self, reason: _Reason, what: str) -> None:
        limit, dry, ended = reason
        # Ending idle and old connections is normal operation.
        level = LogLevel.info if ended else LogLevel.warn
        _log.emit(level, "limit {limit} {verb} {what}", limit=limit, verb=_VERBS[dry, ended], what=what)


class _Pending:
    """The refusals since the last line, and the delayed call that logs them."""

    __slots__ = ("call", "count", "label", "peer")

    def __init__(self) -> None:
        self.count = 0
        self.label = ""
        self.peer = ""
        self.call: Any = None
