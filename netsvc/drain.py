"""Ends a host's conversations: asks, waits, closes, aborts, and says what was cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.guard import Guard
from netsvc.interfaces import IServiceInstance

__all__ = ["Drain"]

#: Seconds between closing a connection and aborting it. A supervisor that kills after 5 s still finds us gone
#: after a drain of 4 s.
CLOSE_GRACE = 0.5
#: Seconds for aborted connections to be told that they are.
ABORT_GRACE = 0.1

_log = Logger(namespace="netsvc.drain")


class Drain:
    """One drain, from the request to the last connection.

    First every service is asked to end its conversations, and they have `seconds` to do so. Then what is
    left is closed: what was written is still sent, and the peer sees an orderly end. What is left
    `CLOSE_GRACE` later is aborted. `finished` fires at the end of it, with a summary line.
    """

    def __init__(
        self, clock: Any, guard: Guard, instances: Sequence[tuple[str, IServiceInstance]], seconds: float
    ) -> None:
        self.finished: Deferred[str] = Deferred()
        self._clock = clock
        self._guard = guard
        self._instances = instances
        self._seconds = seconds
        self._asked = 0
        self._step: Any = None
        self._began = len(guard.live)
        self._closed: Counter[str] = Counter()
        self._aborted: Counter[str] = Counter()

    def begin(self) -> None:
        """Ask every service, and start to wait."""
        self._step = self._clock.callLater(self._seconds, self._close)
        self._asked = len(self._instances)
        # Not before every service has been asked may an end be noticed.
        for name, instance in self._instances:
            answer = maybeDeferred(instance.drain)
            answer.addErrback(self._failed, name)
            answer.addBoth(self._answered)
        if self._guard.live:
            _log.info(
                "draining: {open} may go on for {seconds:g} s; a second interrupt ends the wait",
                open=_connections(self._began),
                seconds=self._seconds,
            )
        self._guard.ended = self._look
        self._look()

    def force(self) -> None:
        """Wait for nothing any more."""
        if self._step is not None:
            self._step.cancel()
            self._abort()

    def _failed(self, failure: Failure, name: str) -> None:
        _log.failure("{name} failed to drain", failure, name=name)

    def _answered(self, _result: object) -> None:
        self._asked -= 1
        if self._step is not None and self._guard.ended == self._look:
            self._look()

    def _look(self) -> None:
        closing = self._closed or self._aborted
        if self._step is not None and not self._guard.live and (closing or not self._asked):
            self._step.cancel()
            self._finish()

    def _close(self) -> None:
        self._closed = self._guard.census()
        self._step = self._clock.callLater(CLOSE_GRACE, self._abort)
        for connection in list(self._guard.live):
            _close(connection.transport)
        self._look()

    def _abort(self) -> None:
        self._aborted = self._guard.census()
        self._step = self._clock.callLater(ABORT_GRACE, self._finish)
        for connection in list(self._guard.live):
            getattr(connection.transport, "abortConnection", connection.transport.loseConnection)()
        self._look()

    def _finish(self) -> None:
        self._step = None
        self._guard.ended = lambda: None
        self.finished.callback(self._summary())

    def _summary(self) -> str:
        if not self._began:
            return "no connection was open"
        closed = self._closed - self._aborted
        by_themselves = self._began - closed.total() - self._aborted.total()
        parts = [f"{_connections(by_themselves)} ended by {'itself' if by_themselves == 1 else 'themselves'}"]
        if closed:
            parts.append(f"closed at the end of {self._seconds:g} s: {_count(closed)}")
        if self._aborted:
            parts.append(f"cut off: {_count(self._aborted)}")
        return "; ".join(parts)


def _close(transport: Any) -> None:
    """Send all that was written and then an orderly end."""
    # To half-close still reads what the peer was about to say: to close with bytes unread would reset the
    # connection under what was just sent. TLS has no such thing, and a wrapper would pass the call on to what
    # it wraps, under the TLS: so the class must have it, and the transport be in plain text.
    if hasattr(type(transport), "loseWriteConnection") and not getattr(transport, "TLS", False):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()


def _connections(count: int) -> str:
    return f"{count} connection{'' if count == 1 else 's'}"


def _count(census: Counter[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(census.items()))
