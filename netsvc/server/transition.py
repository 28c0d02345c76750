"""Changes the running plan to another plan, completely or not at all. A start is a change from an empty plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.base.steps import Steps
from netsvc.embedded.plugins import PluginChange
from netsvc.guard.admission import Level
from netsvc.listen.handoff import Sockets
from netsvc.listen.opening import ListenError
from netsvc.listen.sockets import bind_beside
from netsvc.plan.address import Address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.server.difference import compare, may_clash, same_socket
from netsvc.server.instances import Load, RunningService, build_instance, plain_listeners, service_directory
from netsvc.server.listener import RunningListener
from netsvc.server.running import RunningPlan

_log = Logger(namespace="netsvc")


class Transition:
    """The change from the running plan to another.

    `prepare` builds the new services and opens the new ports. `finish` starts the services and replaces the old plan,
    in one turn of the reactor; if that fails, everything is undone. `undo` undoes `prepare`. Before `finish`, clients
    notice no change.
    """

    def __init__(self, running: RunningPlan, plan: Plan, load: Load, sockets: Sequence[Sockets | None] = ()) -> None:
        self.plan = plan
        self.difference = compare(running.plan, plan)
        #: New listeners whose ports are open or opening, and for each a Deferred that fires when it is open or failed.
        self.begun: list[RunningListener] = []
        self.openings: list[Deferred[Any]] = []
        #: Errors of opening, a line each.
        self.failures: list[str] = []
        #: A line for each service whose core was replaced, with the data that it held.
        self.losses: list[str] = []
        self.plugins = PluginChange(running.plugins, plan, running.guard, running.reactor)
        self._running = running
        self._load = load
        self._sockets = sockets
        self._services: dict[str, RunningService] = {}
        #: By index in the new plan; None for a listener that keeps its port, or could not be built.
        self._listeners: list[RunningListener | None] = [None] * len(plan.listeners)
        self._steps = Steps()
        #: New listeners whose ports can be opened only after old ones are closed.
        self._blocked: list[tuple[RunningListener, list[RunningListener]]] = []
        self._opened: Deferred[None] | None = None
        self._deadline: Any = None

    def prepare(self, late: Callable[[str], None] | None = None) -> list[str]:
        """Build the new services, plugins and listeners, and open their ports. Return all errors.

        `late` is called with the error of a port that fails after this has returned; without it, `finish` fails.
        """
        gives_room = bool(self.difference.closed)
        # First: this decides which of the old plugins are removed.
        embedding = self.plugins.prepare(self._steps, gives_room=gives_room)
        errors = [*self._prepare_kept(), *self._build(), *self._open(late), *embedding]
        return list(dict.fromkeys([*errors, *self.failures]))

    def _prepare_kept(self) -> list[str]:
        """Prepare the changes of kept services and listeners. Network and certificate files are always read again."""
        running, plan = self._running, self.plan
        changes: list[tuple[Callable[[], Callable[[], object]], str]] = []
        changes.append((partial(running.guard.process.prepare, plan.limits), plan.origin))
        for key in self.difference.same | self.difference.changed:
            use = plan.uses[key]
            changes.append((partial(running.services[key].level.prepare, use.limits), use.origin))
        for old, new in self.difference.kept:
            before, listener = running.listeners[old], plan.listeners[new]
            changes.append((partial(before.prepare_limits, listener), listener.origin))
            changes.append((partial(before.prepare_envelope, listener), ""))
        errors: list[str] = []
        for prepare, origin in changes:
            try:
                self._steps.on_commit(prepare())
            except UserError as error:
                errors += [f"{origin}{line}" for line in error.errors]
        return errors

    def _build(self) -> list[str]:
        running, errors = self._running, list[str]()
        for key, use in self.plan.uses.items():
            before = running.services.get(key)
            if before is not None and key in self.difference.same:
                self._services[key] = before
                errors += plain_listeners(self.plan, key, before.instance)
                continue
            try:
                service = self._load(use)
                metrics = running.metrics.of(key, service.name)
                instance = build_instance(
                    use,
                    service,
                    running.reactor,
                    running.own_ports,
                    metrics,
                    state_directory=service_directory(self.plan.state, key),
                )
                errors += plain_listeners(self.plan, key, instance)
                defaults = getattr(service, "limits", {})
                if before is not None and before.use.service == use.service:
                    # The new instance keeps the counts of the old one.
                    level = before.level
                else:
                    level = Level(key, use.limits, running.reactor, defaults)
                self._services[key] = RunningService(key, use, service, instance, level)
            except UserError as error:
                errors += [f"{use.origin}{line}" for line in error.errors]
        return errors

    def _open(self, late: Callable[[str], None] | None) -> list[str]:
        errors: list[str] = []
        for index in self.difference.opened:
            listener = self.plan.listeners[index]
            if listener.use not in self._services:
                continue
            opened = RunningListener(self._running.guard, listener, self._services[listener.use])
            self._listeners[index] = opened
            # After a failed change nothing that waits there is served.
            self._steps.on_undo(partial(opened.close, take=False))
            try:
                if self._sockets:
                    self._begin_opening(opened, self._sockets[index], late)
                elif not self._is_blocked(opened):
                    self._begin_opening(opened, self._make_room(opened), late)
            except UserError as error:
                errors += [f"{listener.origin}{line}" for line in error.errors]
        return errors

    def _clashing(self, address: Address) -> list[RunningListener]:
        """Return the listeners to be closed whose ports may prevent binding `address`."""
        going = [self._running.listeners[index] for index in self.difference.closed]
        return [each for each in going if may_clash(each.listener.address, each.port_number(), address)]

    def _is_blocked(self, opened: RunningListener) -> bool:
        """Return whether a port can be opened only after another is closed; if so, add it to `_blocked`."""
        address = opened.listener.address
        clashing = self._clashing(address)
        taken = bool(address.port) and any(each.takes(address.kind, address.port) for each in self.plugins.gone)
        if not taken and (not clashing or (address.port and all(each.socket() for each in clashing))):
            return False
        self._blocked.append((opened, clashing))
        return True

    def _make_room(self, opened: RunningListener) -> Sockets | None:
        """Bind the socket of a new listener beside old sockets at its address; return None if there are none."""
        address = opened.listener.address
        clashing = self._clashing(address)
        for old in clashing:
            if same_socket(old.listener.address, address):
                old.share()
                # The new listener accepts what waits there.
                self._steps.on_commit(partial(old.close, take=False))
                return Sockets.of(old.socket())
        if not clashing:
            return None
        try:
            bound = bind_beside(address, [old.socket() for old in clashing])
        except OSError:
            # Opening the port without a socket fails in the same way, and explains the error.
            return None
        # If the change fails, connections that reached the new socket go to the old listener.
        self._steps.on_undo(partial(opened.yield_to, clashing[0]))
        return Sockets([bound.detach()])

    def _begin_opening(
        self, opened: RunningListener, sockets: Sockets | None, late: Callable[[str], None] | None
    ) -> None:
        in_time = True

        def failed(failure: Failure) -> None:
            failure.trap(ListenError)
            line = opened.listener.cannot_listen(failure.value)
            if in_time or late is None:
                self.failures.append(line)
            else:
                late(line)

        try:
            opening = opened.open(self._running.reactor, sockets)
        except BaseException:
            _close_unused(None, sockets)
            raise
        opening.addBoth(_close_unused, sockets)
        self.begun.append(opened)
        self.openings.append(opening.addErrback(failed))
        in_time = False

    def opened(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires when all new ports are open or have failed, or after `seconds`.

        Open ports accept nothing before `finish`.
        """
        waiting = [opened for opened in self.begun if opened.listening is None]
        if self.failures or not waiting:
            return succeed(None)
        for opened in self.begun:
            opened.pause()

        def give_up() -> None:
            reason = f"it is not open after {seconds:g} s"
            self.failures += [opened.listener.cannot_listen(reason) for opened in waiting if opened.listening is None]
            self._go_on()

        self._deadline = self._running.reactor.callLater(seconds, give_up)
        self._opened = Deferred()
        opened_all = self._opened
        DeferredList(self.openings).addCallback(self._go_on)
        return opened_all

    def _go_on(self, _results: object = None) -> None:
        if self._opened is not None:
            if self._deadline.active():
                self._deadline.cancel()
            opened, self._opened = self._opened, None
            opened.callback(None)

    def interrupt(self, reason: str) -> None:
        """Stop waiting; `finish` will fail."""
        self.failures.append(reason)
        self._go_on()

    def finish(self) -> None:
        """Replace the old plan by the new one. Raises `UserError` after undoing everything."""
        try:
            if self.failures:
                raise UserError(self.failures)
            self._start_services()
            self._swap()
            self._exchange()
            self.plugins.start(self._steps, self._close_all)
        except BaseException:
            self.undo()
            raise
        self._commit()

    def undo(self) -> None:
        """Undo all changes made so far."""
        self._steps.undo()
        running = self._running
        for old, restored in self.plugins.restored.items():
            index = running.plugins.index(old)
            running.plugins[index : index + 1] = [restored] if restored is not None else []
            old.note_gates(running.guard)
            running.drains.retire(old)
        # Drops the counters of listeners that were never opened.
        running.guard.book.prune()

    def _start_services(self) -> None:
        errors: list[str] = []
        # Last: services that take new options in place, as they can take the old ones back.
        adaptable = self.difference.changed & {key for key, each in self._running.services.items() if each.adapts()}
        fresh = [key for key in self._services if key not in self.difference.same]
        for key in sorted(fresh, key=lambda key: key in adaptable):
            service, use = self._services[key], self.plan.uses[key]
            try:
                # After an error, no service is reconfigured, and none is started in its place.
                if key in adaptable and (errors or self._reconfigure(self._running.services[key], use)):
                    continue
                service.start()
                self._steps.on_undo(service.stop)
            except UserError as error:
                errors += [f"{use.origin}{line}" for line in error.errors]
        if errors:
            raise UserError(errors)

    def _reconfigure(self, service: RunningService, use: ServiceUse) -> bool:
        """Reconfigure a running service instead of using the new instance; return whether the service did so."""
        undo = partial(service.reconfigure, service.use)
        try:
            has_taken = service.reconfigure(use)
        except UserError:
            # It may have taken some of them.
            self._steps.on_undo(undo)
            raise
        if not has_taken:
            return False
        self._steps.on_undo(undo)
        unwanted, self._services[service.key] = self._services[service.key], service
        for opened in self._listeners:
            if opened is not None and opened.service is unwanted:
                self._change_service(opened, opened.listener, service)
        return True

    def _swap(self) -> None:
        """Put new protocols behind the kept ports."""
        for old, new in self.difference.kept:
            running, listener = self._running.listeners[old], self.plan.listeners[new]
            service = self._services[listener.use]
            if service is running.service and listener.protocol == running.listener.protocol:
                continue
            self._change_service(running, listener, service)

    def _change_service(self, running: RunningListener, listener: Listener, service: RunningService) -> None:
        try:
            running.swap(listener, service, self._steps)
        except UserError as error:
            raise UserError([f"{listener.origin}{line}" for line in error.errors]) from error

    def _exchange(self) -> None:
        """Close the old ports that prevent opening new ones, and open those."""
        for opened, clashing in self._blocked:
            for old in clashing:
                self._close(old)
            for plugin in self.plugins.gone:
                if plugin.takes(opened.listener.address.kind, opened.listener.address.port):
                    self.plugins.close(plugin, self._steps)
            self._begin_opening(opened, None, None)
            if opened.listening is None and not self.failures:
                self.failures.append(
                    opened.listener.cannot_listen("it did not open immediately, and another port occupies its address")
                )
            if self.failures:
                raise UserError(self.failures)

    def _close(self, old: RunningListener) -> None:
        if old.listening is not None:
            old.close()
            # Last: after the new port at its address is closed.
            self._steps.on_undo(partial(self._reopen, old), last=True)

    def _close_all(self) -> None:
        for index in self.difference.closed:
            self._close(self._running.listeners[index])

    def _reopen(self, old: RunningListener) -> None:
        def failed(failure: Failure) -> None:
            _log.critical("{line}", line=old.listener.cannot_listen(failure.value))
            # It is not open: the next reload tries again.
            running = self._running
            index = running.listeners.index(old)
            del running.listeners[index]
            remaining = running.plan.listeners[:index] + running.plan.listeners[index + 1 :]
            running.plan = replace(running.plan, listeners=remaining)

        old.open(self._running.reactor).addErrback(failed)

    def _commit(self) -> None:
        running, difference = self._running, self.difference
        listeners, services = running.listeners, running.services
        for old, new in difference.kept:
            self._listeners[new] = listeners[old]
            listeners[old].listener = self.plan.listeners[new]
        running.plan = self.plan
        running.guard.faults.debug = self.plan.debug
        running.services = self._services
        running.metrics.keep(running.services)
        running.listeners = [listener for listener in self._listeners if listener is not None]
        running.plugins = self.plugins.plugins
        replaced = [services[key] for key in sorted(difference.changed) if running.services[key] is not services[key]]
        self.losses = list(filter(None, (each.loss(self.plan.uses[each.key]) for each in replaced)))
        for key, service in running.services.items():
            service.use = self.plan.uses[key]
        self._steps.commit()
        for listener in running.listeners:
            listener.activate()
        for plugin in running.plugins:
            plugin.apply_limits()
        closed = [listeners[index] for index in difference.closed]
        for opened in closed:
            opened.close()
        gone = [services[key] for key in difference.gone] + running.drains.hasten(difference.gone)
        running.leave(gone, closed, self.plugins.gone, self.plan.drain)
        for each in replaced:
            running.drains.retire(each)
        running.note_ports()
        running.prune()


def _close_unused(result: Any, sockets: Sockets | None = None) -> Any:
    if sockets is not None:
        sockets.close()
    return result
