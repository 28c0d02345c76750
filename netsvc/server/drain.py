"""Ends connections within their deadlines, and then stops the services.

`Drain` asks the services to end their conversations, waits, and closes and then aborts the remaining connections.
`Drains` holds the drains of services that a reload removed, and replaced services until their last connection has
ended. `DrainCommand` answers `netsvc drain` with the report of `netsvc.server.drain_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.guard import Connection, Guard
from netsvc.guard.admission import Gate
from netsvc.guard.closing import abort, end
from netsvc.plan.answer import Answer
from netsvc.server.drain_report import Account, Summary, count_connections, log_summary
from netsvc.server.instances import RunningService

#: Seconds between closing a connection and aborting it. With a drain of 4 s, the process ends before a supervisor that
#: kills after 5 s.
CLOSE_GRACE = 0.5
#: Seconds for aborted connections to be reported as lost.
ABORT_GRACE = 0.1

_log = Logger(namespace="netsvc.drain")


class Drainable(Protocol):
    """A `RunningService` or a twistd plugin: it serves connections until it is drained and stopped."""

    key: str
    #: The gates that admitted its connections.
    gates: set[Gate]

    def drain_seconds(self, default: float) -> float:
        """Return the seconds for its connections to end; `default` is the plan's `drain`."""

    def drain(self) -> Deferred[None] | None:
        """End its conversations; see `IServiceInstance.drain`."""

    def stop(self) -> object:
        """Stop it."""


class _Group:
    """Services and connections with the same deadline."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: Keys, by number, of services that have not answered.
        self.asked: dict[int, str] = {}
        #: Its connections; some may have ended.
        self.left: list[Connection] = []
        self.step: Any = None
        #: Progress: all have ended; the rest has been closed; the group is no longer waited for.
        self.quiet = self.closing = self.over = False


class Drain:
    """One drain, from the request to the last connection.

    Every service is asked to end its conversations within its own deadline, which also applies to the connections of
    its gates. The gates in `more` have the deadlines given there; all other connections have `seconds`. At a deadline
    the remaining connections are closed: written data is still sent, and the peer sees an orderly end. Connections that
    remain `CLOSE_GRACE` later are aborted. `finished` fires last.

    With `alone`, only connections of the given gates are drained. Call `look` after each connection that ends.
    """

    def __init__(
        self,
        clock: Any,
        guard: Guard,
        services: Sequence[Drainable],
        seconds: float,
        more: Mapping[Gate, float] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self.finished: Deferred[Summary] = Deferred()
        self._clock = clock
        self._guard = guard
        self._services = [(each, each.drain_seconds(seconds)) for each in services]
        self._seconds = seconds
        # By gate and not by port: the port of a service may serve another service now.
        self._deadlines = {**(more or {}), **{gate: span for each, span in self._services for gate in each.gates}}
        self._alone = alone
        #: True while services are asked or connections are ended: `look` runs once afterwards.
        self._busy = True
        self._began = len(self._live())
        self._account = Account(self._began)
        moments = {span for _, span in self._services} | set(self._deadlines.values()) | (set() if alone else {seconds})
        self._groups = {each: _Group(each) for each in sorted(moments)}
        self._is_over = False

    def begin(self) -> None:
        """Ask every service, and start the deadlines."""
        for group in self._groups.values():
            group.step = self._clock.callLater(group.seconds, self._close, group)
        for number, (service, seconds) in enumerate(self._services):
            self._groups[seconds].asked[number] = service.key
        for number, (service, seconds) in enumerate(self._services):
            answer = maybeDeferred(service.drain)
            answer.addErrback(self._failed, service.key)
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
        """Stop waiting, and abort the remaining connections."""
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
        """Cancel the drain: another one ends the connections. `finished` does not fire."""
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
        """Assign the live connections to their groups, as some are new; return whether any group is waited for."""
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
        # From the end: n connections that end one after the other cost n checks in all.
        while left and left[-1] not in live:
            left.pop()
        return bool(left) or bool(group.asked and not group.closing)

    def look(self) -> None:
        """Finish the drain if nothing is waited for."""
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


class Drains:
    """The drains under way, and replaced services with connections; a service is stopped after its last connection."""

    def __init__(self, clock: Any, guard: Guard) -> None:
        #: Services that get no new connections, with one live connection of each.
        self.retiring: dict[Drainable, Connection | None] = {}
        self._clock = clock
        self._guard = guard
        self._drains: dict[Drain, list[Drainable]] = {}
        self._over: Deferred[None] | None = None

    def retire(self, service: Drainable) -> None:
        """Stop a service when its last connection has ended, however long that takes."""
        self.retiring[service] = None
        self._watch()

    def drain(self, services: Iterable[Drainable], more: Mapping[Gate, float], seconds: float) -> None:
        """Drain these services and the connections of the gates in `more`; see `Drain`. Then stop the services."""
        leaving = list(services)
        drain = Drain(self._clock, self._guard, leaving, seconds, more, alone=True)
        self._drains[drain] = leaving
        self._watch()
        drain.finished.addCallback(self._drained, drain)
        drain.begin()

    def hasten(self, keys: Collection[str]) -> list[RunningService]:
        """Remove the retiring services with these keys and return them, to be drained."""
        leaving = [each for each in self.retiring if isinstance(each, RunningService) and each.key in keys]
        for service in leaving:
            del self.retiring[service]
        return leaving

    def over(self) -> Deferred[None]:
        """Return a Deferred that fires when all drains and retiring services have ended. May be called once."""
        self._over = Deferred()
        over = self._over
        self._watch()
        return over

    def take_over(self) -> list[Drainable]:
        """Cancel all drains, and return the services that have not been stopped."""
        services = [*self.retiring, *(each for leaving in self._drains.values() for each in leaving)]
        for drain in self._drains:
            drain.give_up()
        self.retiring.clear()
        self._drains.clear()
        self._guard.ended = _ignore_end
        return services

    def _drained(self, summary: Summary, drain: Drain) -> None:
        if summary.began:
            log_summary("drained", summary)
        for service in self._drains.pop(drain, []):
            service.stop()
        self._watch()

    def _watch(self) -> None:
        # Set only while something waits for ends of connections.
        self._guard.ended = self._look
        self._look()

    def _look(self) -> None:
        for drain in list(self._drains):
            drain.look()
        live = self._guard.live
        for service, one in list(self.retiring.items()):
            # Stopping a service may end connections, which calls this method recursively.
            if one in live or service not in self.retiring:
                continue
            another = next((connection for connection in live if connection.gate in service.gates), None)
            if another is not None:
                self.retiring[service] = another
            else:
                del self.retiring[service]
                service.stop()
        if not (self.retiring or self._drains):
            self._guard.ended = _ignore_end
            if self._over is not None:
                over, self._over = self._over, None
                over.callback(None)


def _ignore_end() -> None:
    """Ignore the end of a connection."""


class DrainCommand:
    """Stops the process once, by `stop`, and answers every `netsvc drain` with the report after the drain."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._has_begun = False
        self._waiting: list[Deferred[Answer]] = []
        self._report: Sequence[str] | None = None

    @property
    def lines(self) -> Sequence[str]:
        """The report; empty before the drain is over."""
        return self._report or ()

    def ask(self, *, is_leaving: bool) -> Deferred[Answer]:
        """Start the drain, or join the one under way. Fires with the report when it is over; never fails."""
        is_late = is_leaving or self._has_begun
        lines = ["a drain was under way already"] if is_late else []
        if not is_late:
            self._has_begun = True
            self._stop()
        if self._report is not None:
            return succeed(Answer(0, [*lines, *self._report]))
        answer: Deferred[Answer] = Deferred()
        self._waiting.append(answer)
        return answer.addCallback(lambda final: Answer(final.status, [*lines, *final.lines]))

    def report(self, lines: Sequence[str]) -> None:
        """Answer all commands with the report."""
        self._report = tuple(lines)
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(Answer(0, self._report))
