"""Ends conversations: asks, waits, closes, aborts, and says what was cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.guard import Connection, Guard
from netsvc.guard.ending import abort, end
from netsvc.guard.gate import Gate

__all__ = ["ABORT_GRACE", "CLOSE_GRACE", "Asked", "Drain", "count_connections"]

#: Seconds between closing a connection and aborting it. A supervisor that kills after 5 s still finds us gone
#: after a drain of 4 s.
CLOSE_GRACE = 0.5
#: Seconds for aborted connections to be told that they are.
ABORT_GRACE = 0.1

_log = Logger(namespace="netsvc.drain")


class Asked(Protocol):
    """What may be asked to end its conversations; see `IServiceInstance.drain`."""

    def drain(self) -> Deferred[None] | None:
        """End them."""


class Drain:
    """One drain, from the request to the last connection.

    First every service is asked to end its conversations, and they have `seconds` to do so. Then what is
    left is closed: what was written is still sent, and the peer sees an orderly end. What is left
    `CLOSE_GRACE` later is aborted. `finished` fires at the end of it, with a summary line.

    With `gates`, only the connections that have come by one of them are meant. `look` is to be called after each
    connection that ends.
    """

    def __init__(
        self,
        clock: Any,
        guard: Guard,
        services: Sequence[tuple[str, Asked]],
        seconds: float,
        gates: AbstractSet[Gate] | None = None,
    ) -> None:
        self.finished: Deferred[str] = Deferred()
        self._clock = clock
        self._guard = guard
        self._services = services
        self._seconds = seconds
        self._gates = gates
        self._asked = 0
        self._asking = False
        self._step: Any = None
        self._began = len(self._live())
        #: One of the connections that were there when it was last looked for one.
        self._one: Connection | None = None
        self._closed: Counter[str] = Counter()
        self._aborted: Counter[str] = Counter()

    @property
    def had_connections(self) -> bool:
        """Whether there was any connection to end."""
        return self._began > 0

    def begin(self) -> None:
        """Ask every service, and start to wait."""
        self._step = self._clock.callLater(self._seconds, self._close)
        self._asked = len(self._services)
        # Not before every service has been asked may an end be noticed.
        self._asking = True
        for name, service in self._services:
            answer = maybeDeferred(service.drain)
            answer.addErrback(self._failed, name)
            answer.addBoth(self._answered)
        self._asking = False
        if self._is_any_live():
            _log.info(
                "draining: {open} may go on for {seconds:g} s{hint}",
                open=count_connections(self._began),
                seconds=self._seconds,
                hint="" if self._gates is not None else "; a second interrupt ends the wait",
            )
        self.look()

    def force(self) -> None:
        """Wait for nothing any more, and abort what is left."""
        if self._step is not None:
            self._step.cancel()
            self._abort()

    def give_up(self) -> None:
        """End nothing any more: something else does it. `finished` does not fire."""
        if self._step is not None:
            self._step.cancel()
            self._step = None

    def _failed(self, failure: Failure, name: str) -> None:
        _log.failure("{name} failed to drain", failure, name=name)

    def _answered(self, _result: object) -> None:
        self._asked -= 1
        self.look()

    def _live(self) -> list[Connection]:
        if self._gates is None:
            return list(self._guard.live)
        return [connection for connection in self._guard.live if connection.gate in self._gates]

    def _is_any_live(self) -> bool:
        live, gates = self._guard.live, self._gates
        if gates is None:
            return bool(live)
        # Of many others one would have to be picked out again and again.
        if self._one not in live:
            self._one = next((connection for connection in live if connection.gate in gates), None)
        return self._one is not None

    def look(self) -> None:
        """Look whether it is over."""
        if self._step is None or self._asking:
            return
        closing = self._closed or self._aborted
        if (closing or not self._asked) and not self._is_any_live():
            self._step.cancel()
            self._finish()

    def _census(self) -> Counter[str]:
        return Counter(connection.label for connection in self._live())

    def _close(self) -> None:
        self._closed = self._census()
        self._step = self._clock.callLater(CLOSE_GRACE, self._abort)
        for connection in self._live():
            end(connection.transport)
        self.look()

    def _abort(self) -> None:
        self._aborted = self._census()
        self._step = self._clock.callLater(ABORT_GRACE, self._finish)
        for connection in self._live():
            abort(connection.transport)
        self.look()

    def _finish(self) -> None:
        self._step = None
        self.finished.callback(self._summary())

    def _summary(self) -> str:
        if not self._began:
            return "no connection was open"
        closed = self._closed - self._aborted
        by_themselves = self._began - closed.total() - self._aborted.total()
        parts = [f"{count_connections(by_themselves)} ended by {'itself' if by_themselves == 1 else 'themselves'}"]
        if closed:
            parts.append(f"closed at the end of {self._seconds:g} s: {_count(closed)}")
        if self._aborted:
            parts.append(f"cut off: {_count(self._aborted)}")
        return "; ".join(parts)


def count_connections(count: int) -> str:
    """Say how many connections there are."""
    return f"{count} connection{'' if count == 1 else 's'}"


def _count(census: Counter[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(census.items()))
