"""Ends conversations: asks, waits, closes, aborts, and says what was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.guard import Connection, Guard
from netsvc.guard.ending import abort, end
from netsvc.guard.gate import Gate
from netsvc.host.summary import Account, Summary, count_connections

__all__ = ["ABORT_GRACE", "CLOSE_GRACE", "Asked", "Drain"]

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


class _Group:
    """Those who have the same deadline: services that have been asked, and connections."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: Services that have not answered.
        self.asked: dict[int, str] = {}
        #: Connections, some of which may have ended.
        self.left: list[Connection] = []
        self.step: Any = None
        #: How far it is: everybody has ended, or had been closed, or nobody is waited for any more.
        self.quiet = self.closing = self.over = False


class Drain:
    """One drain, from the request to the last connection.

    First every service is asked to end its conversations, and each has the seconds that stand beside it to do so; so
    have the connections that have come by the gates in `deadlines`, and all others have `seconds`. Then what is left is
    closed: what was written is still sent, and the peer sees an orderly end. What is left `CLOSE_GRACE` later is
    aborted. `finished` fires at the end of it.

    With `alone`, only the connections that have come by these gates are meant. `look` is to be called after each
    connection that ends.
    """

    def __init__(
        self,
        clock: Any,
        guard: Guard,
        services: Sequence[tuple[str, Asked, float]],
        seconds: float,
        deadlines: Mapping[Gate, float],
        *,
        alone: bool = False,
    ) -> None:
        self.finished: Deferred[Summary] = Deferred()
        self._clock = clock
        self._guard = guard
        self._services = services
        self._seconds = seconds
        self._deadlines = deadlines
        self._alone = alone
        #: Not before every service has been asked, nor while others are ended, may an end be noticed.
        self._busy = True
        self._began = len(self._live())
        self._account = Account(self._began)
        moments = {each for _, _, each in services} | set(deadlines.values()) | (set() if alone else {seconds})
        self._groups = {each: _Group(each) for each in sorted(moments)}
        self._is_over = False

    def begin(self) -> None:
        """Ask every service, and start to wait."""
        for group in self._groups.values():
            group.step = self._clock.callLater(group.seconds, self._close, group)
        for number, (name, _, seconds) in enumerate(self._services):
            self._groups[seconds].asked[number] = name
        for number, (name, service, seconds) in enumerate(self._services):
            answer = maybeDeferred(service.drain)
            answer.addErrback(self._failed, name)
            answer.addBoth(self._answered, self._groups[seconds], number)
        self._busy = False
        live = self._live()
        if live:
            spans = {self._deadline(connection) for connection in live}
            _log.info(
                "draining: {open} may go on for {seconds} s{hint}",
                open=count_connections(self._began),
                seconds=" to ".join(f"{each:g}" for each in sorted({min(spans), max(spans)})),
                hint="" if self._alone else "; a second interrupt ends the wait",
            )
        self.look()

    def force(self) -> None:
        """Wait for nothing any more, and abort what is left."""
        if self._is_over:
            return
        self._busy = True
        for group in self._groups.values():
            if not group.over:
                self._stop(group)
                self._abort(group)
        self._busy = False
        self.look()

    def give_up(self) -> None:
        """End nothing any more: something else does it. `finished` does not fire."""
        self._is_over = True
        for group in self._groups.values():
            self._stop(group)

    def _stop(self, group: _Group) -> None:
        if group.step is not None and group.step.active():
            group.step.cancel()

    def _failed(self, failure: Failure, name: str) -> None:
        _log.failure("{name} failed to drain", failure, name=name)

    def _answered(self, _result: object, group: _Group, number: int) -> None:
        group.asked.pop(number, None)
        self.look()

    def _deadline(self, connection: Connection) -> float:
        return self._deadlines.get(connection.gate, self._seconds)

    def _live(self) -> list[Connection]:
        if not self._alone:
            return list(self._guard.live)
        return [connection for connection in self._guard.live if connection.gate in self._deadlines]

    def _sort(self) -> bool:
        """Find out again who is there, as some may have come late; tell whether anybody is still waited for."""
        groups = [group for group in self._groups.values() if not group.over]
        for group in self._groups.values():
            group.left = []
        for connection in self._live():
            self._groups[self._deadline(connection)].left.append(connection)
        for group in groups:
            group.quiet = not self._is_waiting(group)
        return not all(group.quiet for group in groups)

    def _is_waiting(self, group: _Group) -> bool:
        live, left = self._guard.live, group.left
        # From the end: so that all that end one after the other cost as much as one look at each.
        while left and left[-1] not in live:
            left.pop()
        return bool(left) or bool(group.asked and not group.closing)

    def look(self) -> None:
        """Look whether it is over."""
        if self._is_over or self._busy:
            return
        for group in self._groups.values():
            if not group.quiet:
                if self._is_waiting(group):
                    return
                group.quiet = True
        if not self._sort():
            self._finish()

    def _close(self, group: _Group) -> None:
        self._sort()
        for name in group.asked.values():
            self._account.late(name, group.seconds)
        self._account.closed(group.left, group.seconds, self._guard.clock.seconds())
        group.closing = True
        group.step = self._clock.callLater(CLOSE_GRACE, self._abort, group)
        for connection in group.left[:]:
            connection.cause = connection.cause or ("drain", None)
            end(connection.transport)
        self.look()

    def _abort(self, group: _Group) -> None:
        self._sort()
        seconds = group.seconds if group.closing else None
        self._account.aborted(group.left, seconds, self._guard.clock.seconds())
        group.closing = True
        group.step = self._clock.callLater(ABORT_GRACE, self._give_up, group)
        for connection in group.left[:]:
            connection.cause = connection.cause or ("drain", None)
            abort(connection.transport)
        self.look()

    def _give_up(self, group: _Group) -> None:
        group.over = group.quiet = True
        self.look()

    def _finish(self) -> None:
        self.give_up()
        self.finished.callback(self._account.summary())
