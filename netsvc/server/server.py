"""Runs a plan in one process: starts it, reloads it, and drains it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger

from netsvc.base.errors import ANYTHING, UserError, describe
from netsvc.guard import Guard
from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.log.opening import OpenLog
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan, access_form
from netsvc.plan.status import ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.reactor.clock import use_monotonic_clock
from netsvc.server.difference import as_started, describe_changes
from netsvc.server.drain import CLOSE_GRACE, Drain, Drainable, DrainCommand, Drains
from netsvc.server.drain_report import Summary, count_connections, log_summary
from netsvc.server.instances import Load
from netsvc.server.listener import RunningListener
from netsvc.server.process import allow_descriptors, die, start_error, stop_reactor, take_over_signals
from netsvc.server.running import RunningPlan
from netsvc.server.status import StatusReader
from netsvc.server.transition import Transition

if TYPE_CHECKING:
    from netsvc.embedded.service import EmbeddedService

#: Seconds for the ports of a reload to open. No other reload can begin before.
OPENING_LIMIT = 30.0

_log = Logger(namespace="netsvc")


class Server(Service):
    """Runs a plan in this process, completely or not at all.

    `privilegedStartService` binds the ports, before twistd drops privileges; `startService` starts the services. All
    errors of a start are lines of one `StartError`, and nothing stays open. `reload` changes to another plan, and
    `stopService` drains: see `netsvc.server.drain`.

    In a worker, `sockets` has the sockets of each listener of the plan, and `ready` is called when all are open
    instead of logging their addresses. A `held` server accepts nothing before `serve` is called.
    """

    def __init__(
        self,
        plan: Plan,
        load: Load,
        reactor: Any,
        warnings: Sequence[str] = (),
        die: Callable[[str], None] = die,
        *,
        sockets: Sequence[Sockets | None] = (),
        ready: Callable[[], None] | None = None,
        held: bool = False,
        worker: int = 0,
    ) -> None:
        self.plan = plan
        self._load = load
        self._reactor = reactor
        self._warnings = warnings
        self._die = die
        self._sockets = sockets
        #: Called when every port is open.
        self.became_ready: Callable[[], None] = ready or log_ready
        self._announces = ready is None
        self._held = held
        self._passed: Callable[[str], Sockets | None] | None = None
        self._worker = worker
        #: The start or reload under way.
        self._transition: Transition | None = None
        self._is_open = False
        self._is_leaving = False
        self._drain: Drain | None = None
        self.drain_command = DrainCommand(lambda: stop_reactor(self._reactor))
        self._is_over = False

    @property
    def state(self) -> str:
        """The state, a value of `netsvc.plan.status.ProcessStatus.state`."""
        if self._is_leaving:
            return "stopped" if self._is_over else "draining"
        return "ready" if self._is_open else "starting"

    def not_ready(self) -> list[str]:
        """See `netsvc.server.interface.Operations`."""
        if self._is_leaving:
            return [self.state]
        if self._held:
            return ["starting: the previous process is still serving"]
        lines = [line for each in self.running_plan.listeners if (line := each.not_ready_reason)]
        return lines if self._is_open else [f"starting: {line}" for line in lines or ["nothing is open yet"]]

    def drain(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.server.interface.Operations`."""
        return self.drain_command.ask(is_leaving=self._is_leaving)

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """See `netsvc.server.interface.Operations`."""
        return self.overview.status(query).addCallback(lambda status: [status])

    def departed(self) -> list[ListenerStatus]:
        """See `netsvc.server.interface.Operations`."""
        return self.guard.book.departed

    def departed_metrics(self) -> list[dict[str, Any]]:
        """See `netsvc.server.interface.Operations`."""
        return []

    def close_connection(self, connection: str) -> Deferred[bool]:
        """See `netsvc.server.interface.Operations`."""
        return succeed(self.overview.close_connection(connection))

    @property
    def guard(self) -> Guard:
        """The limits, and the live connections."""
        return self.running_plan.guard

    def privilegedStartService(self) -> None:
        """Build the services and bind every port."""
        super().privilegedStartService()
        if type(self._reactor).__name__ != "SelectReactor":
            allow_descriptors()
        use_monotonic_clock(self._reactor)
        guard = Guard(self._reactor)
        guard.book.has_requests = bool(access_form(self.plan.access)[0])
        self.running_plan = RunningPlan(self._reactor, guard, Drains(self._reactor, guard))
        self.overview = StatusReader(
            self._reactor,
            lambda: self.running_plan,
            state=lambda: self.state,
            not_ready=self.not_ready,
            metrics=self.running_plan.metrics.samples,
            worker=self._worker,
        )
        start = self._transition = Transition(self.running_plan, self.plan, self._load, self._sockets)
        start.plugins.failed = self._not_opened
        if self._passed is not None:
            start.plugins.passed = self._passed
        # One start reports all errors.
        if errors := start.prepare(self._not_opened):
            start.undo()
            raise start_error(errors)

    def _not_opened(self, line: str) -> None:
        # An endpoint has failed after the start.
        if self.running:
            self._die(line)

    def startService(self) -> None:
        """Start the services, and log the address of each listener."""
        start, self._transition = self._transition, None
        assert start is not None
        try:
            start.finish()
        except UserError as error:
            raise start_error(error.errors) from None
        super().startService()
        for warning in self._warnings:
            _log.warn("{warning}", warning=warning)
        if self._held:
            for each in self._all_open():
                each.pause()
        self._announce(start)
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self.force)
        # After the signal handlers: the reader of the line `ready` may send a signal.
        self._reactor.callWhenRunning(self._await_opening, start)

    def _announce(self, transition: Transition) -> None:
        if self._announces:
            for opened, opening in zip(transition.begun, transition.openings, strict=True):
                opening.addCallback(lambda _, each: each.announce(), opened)
        for plugin in transition.plugins.added:
            for line in plugin.notes:
                _log.warn("{line}", line=line)
            for line in plugin.lines():
                _log.info("{line}", line=line)

    def _await_opening(self, start: Transition) -> None:
        opening = [*start.openings, *(plugin.opened() for plugin in start.plugins.added)]
        DeferredList(opening).addCallback(self._opened, start)

    def _opened(self, _results: object, start: Transition) -> None:
        # Ports that opened after the start are not noted yet.
        self.running_plan.note_ports()
        if all(opened.listening is not None for opened in start.begun) and not self._is_leaving:
            self._is_open = True
            self.became_ready()

    def log_connections(self, log: OpenLog) -> None:
        """Write the access records of connections to this log."""
        self.guard.book.record = log.recorder(self._reactor)

    def places(self) -> list[tuple[str, str, str]]:
        """Return service, protocol and address of each open port. The protocol of a plugin is empty."""
        running = self.running_plan
        listeners = [(each.listener, each.listening) for each in running.listeners]
        places = [(each.use, each.protocol, listening.place()) for each, listening in listeners if listening]
        return [*places, *((plugin.key, "", place) for plugin in running.plugins for place in plugin.places())]

    def factory_of(self, index: int) -> Any:
        """Return the factory behind the port of a listener of the plan; None if it has been closed."""
        listeners = self.running_plan.listeners
        return listeners[index].port.factory if index < len(listeners) else None

    def activity(self) -> str:
        """See `netsvc.server.interface.IServer`."""
        open_now = count_connections(len(self.guard.live))
        return open_now if self._drain is None else f"draining: {open_now}"

    def adopt(
        self, sockets: Sequence[Sockets | None], passed: Callable[[str], Sockets | None], ready: Callable[[], None]
    ) -> None:
        """See `netsvc.server.interface.IServer`."""
        for each in sockets:
            if each is not None:
                # One process does not use the sockets of further workers.
                each.close_beside()
        self._sockets = sockets
        self._passed, self.became_ready, self._held = passed, ready, True

    def ports(self) -> list[OfferedPort]:
        """See `netsvc.server.interface.Replaceable`."""
        running = self.running_plan
        return [each.offered() for each in running.listeners] + [
            port for plugin in running.plugins for port in plugin.offered()
        ]

    def occupied(self, action: str) -> str:
        """See `netsvc.server.interface.IServer`."""
        if self._is_leaving or not self.running:
            return f"it is stopping, and cannot be {action}"
        if not self._is_open or self._held:
            return f"it is still starting, and cannot be {action} before it is ready"
        if self._transition is not None:
            return "a reload is under way; wait until it is over"
        return ""

    def processes(self) -> int:
        """See `netsvc.server.interface.Replaceable`."""
        return 1

    def prepare(self, successors: int) -> float:
        """See `netsvc.server.interface.Replaceable`."""
        return 0.0

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        for port in ports:
            port.owner.pause()

    def resume(self, ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        for port in ports:
            port.owner.resume()

    def serve(self, step: int, steps: int) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        if self._held:
            self._held = False
            for each in self._all_open():
                each.resume()

    def _all_open(self) -> list[RunningListener | EmbeddedService]:
        return [*self.running_plan.listeners, *self.running_plan.plugins]

    def reload(self, plan: Plan, load: Load | None = None) -> Deferred[str]:
        """Run another plan, completely or not at all.

        Unchanged listeners keep their ports and connections; changes apply to new connections. Files of networks and
        certificates are read again in any case. The Deferred fires with a line that summarizes the changes and a line
        for each core that was replaced, or fails with `UserError`, and then nothing has changed.
        """
        if refusal := self._refusal(plan):
            return fail(UserError([refusal]))
        plan, hint = as_started(self.plan, plan)
        change = self._transition = Transition(self.running_plan, plan, load or self._load)
        try:
            if errors := change.prepare():
                raise UserError(errors)
        except ANYTHING as error:
            self._transition = None
            change.undo()
            return fail(_user_error(error))
        return change.opened(OPENING_LIMIT).addCallback(self._change, change, load or self._load, hint)

    def _refusal(self, plan: Plan) -> str:
        if refusal := self.occupied("reloaded"):
            return refusal
        if plan.workers != 1:
            return f"workers {plan.workers}: a reload cannot turn one process into several; restart netsvc"
        return ""

    def _change(self, _result: object, change: Transition, load: Load, hint: str) -> str:
        before, self._transition = self.plan, None
        try:
            change.finish()
        except ANYTHING as error:
            raise _user_error(error) from error
        self.plan, self._load = change.plan, load
        self._announce(change)
        return "\n".join([describe_changes(before, change.plan, change.difference) + hint, *change.losses])

    def retire(self, closed: Collection[int], drained: Collection[int], seconds: float) -> Deferred[None]:
        """Serve only the present connections: another process has the ports. Fires when all have ended.

        `closed` and `drained` are indices of listeners in the plan. A `closed` listener first accepts what waits in its
        socket, as no other process does. The connections of a `drained` listener have `seconds` to end.
        """
        if self._is_leaving:
            # It is draining after a signal.
            return succeed(None)
        running, self._is_leaving = self.running_plan, True
        running.files.close()
        listeners, services = running.listeners, running.services
        running.listeners, running.services = [], {}
        for index, listener in enumerate(listeners):
            listener.close(take=index in closed)
        staying = {listener.listener.use for index, listener in enumerate(listeners) if index not in drained}
        if running.guard.live:
            _log.info("retiring: {open} may go on", open=count_connections(len(running.guard.live)))
        going = [service for key, service in services.items() if key not in staying]
        running.leave(going, [listeners[index] for index in drained], (), seconds)
        for key in services.keys() & staying:
            running.drains.retire(services[key])
        return running.drains.over()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, drain, and stop the services. The Deferred fires when all have stopped; it never fails."""
        self._is_leaving = True
        if self._transition is not None:
            self._transition.interrupt("it is stopping")
        running = self.running_plan
        running.files.close()
        listening = [each.listening for each in running.listeners if each.listening is not None]
        for each in listening:
            # While it is held, another process accepts what waits there.
            if not self._held:
                each.take_waiting()
        closing = DeferredList([each.stop() for each in listening], consumeErrors=True)
        running.listeners.clear()
        leaving: list[Drainable] = [*running.services.values(), *running.plugins, *running.drains.take_over()]
        self._drain = Drain(self._reactor, running.guard, leaving, running.plan.drain)
        running.guard.ended = self._drain.look
        self._drain.begin()
        return self._drain.finished.addCallback(self._drained, leaving, closing)

    def _drained(self, summary: Summary, leaving: Sequence[Drainable], closing: Deferred[Any]) -> Any:
        log_summary("stopped", summary)
        self.drain_command.report(summary.lines)
        stopping = [result for each in reversed(leaving) if isinstance(result := each.stop(), Deferred)]
        ended = DeferredList([closing, *stopping])
        # A port whose protocol fails in stopProtocol never reports that it is closed.
        ended.addTimeout(CLOSE_GRACE, self._reactor)
        return ended.addBoth(self._ended).addCallback(lambda _: None)

    def _ended(self, _result: object) -> Any:
        self._is_over = True
        self.overview.close()
        self.guard.close()
        return super().stopService()

    def force(self) -> None:
        """Cut the drain short, if one is under way. May be called by a signal handler."""
        if self._drain is not None:
            self._reactor.callFromThread(self._drain.force)


def log_ready() -> None:
    """Log that every port is open and every process serves."""
    _log.info("ready")


def _user_error(error: BaseException) -> UserError:
    """Return a `UserError` for any error, such as one raised by a plugin."""
    if isinstance(error, UserError):
        return error
    _log.failure("a reload failed")
    return UserError([describe(error)])
