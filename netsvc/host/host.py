"""The host: makes the running process match a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger

from netsvc.discovery import ANYTHING, describe
from netsvc.embedded.guests import Guest
from netsvc.embedded.passed import Passed
from netsvc.embedded.tree import place_of
from netsvc.errors import MistakeError
from netsvc.guard import Guard
from netsvc.host.control import Answer
from netsvc.host.departures import Departures, Leaving
from netsvc.host.difference import as_started, describe_changes
from netsvc.host.drain import CLOSE_GRACE, Drain
from netsvc.host.farewell import Farewell, stop_reactor
from netsvc.host.fatal import die, start_error
from netsvc.host.instances import Load, build_instance, build_protocol, examine
from netsvc.host.listener import RunningListener
from netsvc.host.overview import Overview
from netsvc.host.process import allow_descriptors, take_over_signals
from netsvc.host.running import Running
from netsvc.host.summary import Summary, count_connections, log_summary
from netsvc.host.transition import Transition
from netsvc.listeners.handed import Found, HandedPort
from netsvc.listeners.inherited import Inherited
from netsvc.plan import Plan
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.steady import keep_steady

__all__ = ["Host", "build_instance", "build_protocol", "die", "examine", "start_error"]

#: Seconds that a port may take to open in a reload, during which no other reload can begin.
OPENING_LIMIT = 30.0

_log = Logger(namespace="netsvc")


class Host(MultiService):
    """Runs a plan: all of it, or nothing.

    Ports are bound in `privilegedStartService`, before twistd sheds its privileges; services start after
    it. Every mistake found on the way is a line of the one `StartError` raised, and nothing stays open.
    `reload` makes it run another plan, and `stopService` drains: see `netsvc.host.drain`.

    In a worker, `inherited` has the sockets of each listener of the plan, and `ready` is called when all are open,
    for what listens where has been said. If it is `held`, it takes nothing before `serve` is called.
    """

    def __init__(
        self,
        plan: Plan,
        load: Load,
        reactor: Any = None,
        warnings: Sequence[str] = (),
        die: Callable[[str], None] = die,
        *,
        inherited: Sequence[Inherited | None] = (),
        ready: Callable[[], None] | None = None,
        held: bool = False,
        worker: int = 0,
    ) -> None:
        super().__init__()
        self.plan = plan
        self._load = load
        self._reactor = reactor
        self._warnings = warnings
        self._die = die
        self._inherited = inherited
        self._tell_ready = ready
        self._announces = ready is None
        self._held = held
        self._passed: Callable[[str], Passed | None] | None = None
        self._worker = worker
        #: The start, then each reload until it is over.
        self._transition: Transition | None = None
        self._is_open = False
        self._is_leaving = False
        self._drain: Drain | None = None
        self.farewell = Farewell(lambda: stop_reactor(self._reactor))
        self._is_over = False

    @property
    def state(self) -> str:
        """What is going on; see `netsvc.status.ProcessStatus`."""
        if self._is_leaving:
            return "stopped" if self._is_over else "draining"
        return "ready" if self._is_open else "starting"

    def not_ready(self) -> list[str]:
        """See `netsvc.host.operations.Operations`."""
        if self._is_leaving:
            return [self.state]
        if self._held:
            return ["starting: another process serves still"]
        lines = [line for each in self.running_plan.listeners if (line := each.trouble)]
        return lines if self._is_open else [f"starting: {line}" for line in lines or ["nothing is open yet"]]

    def drain(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.host.operations.Operations`."""
        return self.farewell.ask(is_leaving=self._is_leaving)

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """See `netsvc.host.operations.Operations`."""
        return self.overview.status(query).addCallback(lambda status: [status])

    def departed(self) -> list[ListenerStatus]:
        """See `netsvc.host.operations.Operations`."""
        return self.guard.book.departed

    def departed_metrics(self) -> list[dict[str, Any]]:
        """See `netsvc.host.operations.Operations`."""
        return []

    def close_connection(self, connection: str) -> Deferred[bool]:
        """See `netsvc.host.operations.Operations`."""
        return succeed(self.overview.close_connection(connection))

    @property
    def guard(self) -> Guard:
        """The limits, and the live connections."""
        return self.running_plan.guard

    def privilegedStartService(self) -> None:
        """Build the services and bind every port."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        super().privilegedStartService()
        if type(self._reactor).__name__ != "SelectReactor":
            allow_descriptors()
        keep_steady(self._reactor)
        mistakes: list[str] = []
        try:
            guard = Guard(self._reactor, self.plan.limits)
        except MistakeError as error:
            mistakes += [f"{self.plan.place}{mistake}" for mistake in error.mistakes]
            guard = Guard(self._reactor)
        self.running_plan = Running(self._reactor, guard, Departures(self._reactor, guard))
        self.overview = Overview(
            self._reactor,
            lambda: self.running_plan,
            state=lambda: self.state,
            not_ready=self.not_ready,
            metrics=self.running_plan.metrics.samples,
            worker=self._worker,
        )
        start = self._transition = Transition(self.running_plan, self.plan, self._load, self._inherited)
        start.guests.failed = self._not_opened
        if self._passed is not None:
            start.guests.passed = self._passed
        # All of it, so that one start tells all that is wrong.
        mistakes += start.prepare(self._not_opened)
        if mistakes:
            start.undo()
            raise start_error(list(dict.fromkeys(mistakes)))

    def _not_opened(self, line: str) -> None:
        # An endpoint that takes its time.
        if self.running:
            self._die(line)

    def startService(self) -> None:
        """Start the services, and say what listens where."""
        if self._transition is None:
            # twist starts services without a privileged start.
            self.privilegedStartService()
        start, self._transition = self._transition, None
        assert start is not None
        try:
            start.finish()
        except MistakeError as error:
            raise start_error(error.mistakes) from None
        super().startService()
        for warning in self._warnings:
            _log.warn("{warning}", warning=warning)
        if self._held:
            for each in self._all_open():
                each.pause()
        self._announce(start)
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self.force)
        # Not before the signals are taken over: whoever reads `ready` may send one.
        self._reactor.callWhenRunning(self._await_opening, start)

    def _announce(self, transition: Transition) -> None:
        if self._announces:
            for opened, opening in zip(transition.begun, transition.openings, strict=True):
                opening.addCallback(lambda _, each: each.announce(), opened)
        for guest in transition.guests.added:
            for line in guest.embedded.notes:
                _log.warn("{line}", line=line)
            for line in guest.embedded.lines():
                _log.info("{line}", line=line)

    def _await_opening(self, start: Transition) -> None:
        opening = [*start.openings, *(guest.embedded.opened() for guest in start.guests.added)]
        DeferredList(opening).addCallback(self._opened, start)

    def _opened(self, _results: object, start: Transition) -> None:
        # What has opened late was not there to be noted.
        self.running_plan.note_ports()
        if all(opened.listening is not None for opened in start.begun) and not self._is_leaving:
            self._is_open = True
            (self._tell_ready or self.became_ready)()

    def became_ready(self) -> None:
        """Say that every port is open."""
        _log.info("ready")

    def places(self) -> list[tuple[str, str, str]]:
        """List what is open: service, protocol and place. A plugin has no protocols."""
        running = self.running_plan
        listeners = [(each.listener, each.listening) for each in running.listeners]
        places = [(each.use, each.protocol, listening.place()) for each, listening in listeners if listening]
        guests = [(guest.key, each) for guest in running.guests for each in guest.embedded.listening()]
        return [*places, *((key, "", place_of(each)) for key, each in guests)]

    def activity(self) -> str:
        """Say in a few words what goes on."""
        open_now = count_connections(len(self.guard.live))
        return open_now if self._drain is None else f"draining: {open_now}"

    def succeed(
        self, found: Sequence[Found], passed: Callable[[str], Passed | None], ready: Callable[[], None]
    ) -> None:
        """Start in the place of another process that serves, with sockets of its: those `found` for the plan's
        listeners, those `passed` for plugins by their labels. Then `ready` is called, and it takes nothing before
        `serve_step` is called.
        """
        for each in found:
            each.close_beside()
        self._inherited = [each.first for each in found]
        self._passed, self._tell_ready, self._held = passed, ready, True

    def ports(self) -> list[HandedPort]:
        """List the open ports, as another process may take them over. Raises `MistakeError` if one cannot be."""
        running = self.running_plan
        return [each.handed() for each in running.listeners] + [
            port for guest in running.guests for port in guest.handed()
        ]

    def occupied(self, what: str) -> str:
        """Say why it cannot be `reloaded` or `upgraded` just now, if it cannot."""
        if self._is_leaving or not self.running:
            return f"it is stopping, and cannot be {what}"
        if not self._is_open or self._held:
            return f"it is still starting, and cannot be {what} before it is ready"
        if self._transition is not None:
            return "a reload is under way; wait until it is over"
        return ""

    def steps(self) -> int:
        """See `netsvc.upgrade.passage.Serving`."""
        return 1

    def prepare(self, successors: int) -> float:
        """See `netsvc.upgrade.passage.Serving`."""
        return 0.0

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`."""
        for port in ports:
            port.pause()

    def go_on(self, ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`."""
        for port in ports:
            port.resume()

    def serve_step(self, step: int, steps: int) -> None:
        """Take what comes, as the process `step` of `steps` others takes nothing any more."""
        if self._held:
            self.serve()

    def serve(self) -> None:
        """Take what comes, if it was held."""
        self._held = False
        for each in self._all_open():
            each.resume()

    def _all_open(self) -> list[RunningListener | Guest]:
        return [*self.running_plan.listeners, *self.running_plan.guests]

    def reload(self, plan: Plan, load: Load | None = None) -> Deferred[str]:
        """Run another plan; all of it, or go on with the one that runs.

        What is unchanged keeps its port and its connections, and what changes holds for new connections. Files of
        networks and certificates are read again in any case. The Deferred fires with a line that says what changed, or
        fails with `MistakeError`, and then nothing has.
        """
        if refusal := self._refusal(plan):
            return fail(MistakeError([refusal]))
        plan, hint = as_started(self.plan, plan)
        change = self._transition = Transition(self.running_plan, plan, load or self._load)
        try:
            if mistakes := change.prepare():
                raise MistakeError(mistakes)
        except ANYTHING as error:
            self._transition = None
            change.undo()
            return fail(_mistake(error))
        changing = change.opened(OPENING_LIMIT).addCallback(self._change, change, load or self._load)
        return changing.addCallback(lambda summary: summary + hint)

    def _refusal(self, plan: Plan) -> str:
        if refusal := self.occupied("reloaded"):
            return refusal
        if plan.workers != 1:
            return f"workers {plan.workers}: one process does not become several by a reload; start it anew"
        return ""

    def _change(self, _result: object, change: Transition, load: Load) -> str:
        before, self._transition = self.plan, None
        try:
            change.finish()
        except ANYTHING as error:
            raise _mistake(error) from error
        self.plan, self._load = change.plan, load
        self._announce(change)
        return describe_changes(before, change.plan, change.difference)

    def retire(self, closed: Collection[int], drained: Collection[int], seconds: float) -> Deferred[None]:
        """Serve the connections that are there, and no others: another process has the ports. Fires when all ended.

        Of listeners by their places in the plan, those that are `closed` take what waits for them, as nobody else
        does, and the connections of those that are `drained` have `seconds` to end.
        """
        running, self._is_leaving = self.running_plan, True
        running.paths.close()
        listeners, services = running.listeners, running.services
        running.listeners, running.services = [], {}
        for place, listener in enumerate(listeners):
            listener.close(take=place in closed)
        staying = {listener.listener.use for place, listener in enumerate(listeners) if place not in drained}
        if running.guard.live:
            _log.info("retiring: {open} may go on", open=count_connections(len(running.guard.live)))
        going = [service for key, service in services.items() if key not in staying]
        running.leave(going, [listeners[place] for place in drained], (), seconds)
        for key in services.keys() & staying:
            running.departures.retire(services[key])
        return running.departures.over()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, drain, stop the services. The Deferred fires when all is over; it never fails."""
        self._is_leaving = True
        if self._transition is not None:
            self._transition.interrupt("it is stopping")
        running = self.running_plan
        running.paths.close()
        listening = [each.listening for each in running.listeners if each.listening is not None]
        for each in listening:
            # Another process serves who waits there for one that is held.
            if not self._held:
                each.take_waiting()
        closing = DeferredList([each.stop() for each in listening], consumeErrors=True)
        running.listeners.clear()
        leaving: list[Leaving] = [*running.services.values(), *running.guests, *running.departures.take_over()]
        seconds = running.plan.drain
        asked = [(each.key, each, each.drain_seconds(seconds)) for each in leaving]
        deadlines = {gate: each.drain_seconds(seconds) for each in leaving for gate in each.gates}
        self._drain = Drain(self._reactor, running.guard, asked, seconds, deadlines)
        running.guard.ended = self._drain.look
        self._drain.begin()
        return self._drain.finished.addCallback(self._drained, leaving, closing)

    def _drained(self, summary: Summary, leaving: Sequence[Leaving], closing: Deferred[Any]) -> Any:
        log_summary("stopped", summary)
        self.farewell.report(summary.lines)
        stopping = [result for each in reversed(leaving) if isinstance(result := each.stop(), Deferred)]
        ended = DeferredList([closing, *stopping])
        # A port whose protocol fails in stopProtocol never says that it is closed.
        ended.addTimeout(CLOSE_GRACE, self._reactor)
        return ended.addBoth(self._ended).addCallback(lambda _: None)

    def _ended(self, _result: object) -> Any:
        self._is_over = True
        self.overview.close()
        self.guard.close()
        return super().stopService()

    def force(self) -> None:
        """Wait no longer, if it drains; may be called by a signal handler."""
        if self._drain is not None:
            self._reactor.callFromThread(self._drain.force)


def _mistake(error: BaseException) -> MistakeError:
    """Make a mistake of what went wrong, which may be the fault of a plugin's author."""
    if isinstance(error, MistakeError):
        return error
    _log.failure("a reload failed")
    return MistakeError([describe(error)])
