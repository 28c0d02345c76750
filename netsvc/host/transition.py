"""Makes a process that runs one plan run another: all of it, or nothing. The start is one from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.address import Address
from netsvc.discovery import ANYTHING
from netsvc.embedded.guests import Moving
from netsvc.errors import MistakeError
from netsvc.guard.level import Level
from netsvc.host.difference import compare, may_clash, same_socket
from netsvc.host.instances import Load, RunningService, build_instance
from netsvc.host.listener import RunningListener
from netsvc.host.room import Room, bind_beside, copy_of
from netsvc.host.running import Running
from netsvc.host.state import service_directory
from netsvc.listeners.inherited import Inherited
from netsvc.listeners.opening import ListenError
from netsvc.plan import Listener, Plan, ServiceUse

__all__ = ["Transition"]

_log = Logger(namespace="netsvc")


class Transition:
    """One passage from the plan that runs to another.

    `prepare` builds what is new and opens its ports; `finish` starts it and puts it in place of the old, in one turn
    of the reactor. Until then nothing has changed for anybody, and `undo` undoes all that was done.
    """

    def __init__(self, running: Running, plan: Plan, load: Load, inherited: Sequence[Inherited | None] = ()) -> None:
        self.plan = plan
        self.difference = compare(running.plan, plan)
        #: Those that are being opened, and those that are open; and what fires for each when it is known which.
        self.begun: list[RunningListener] = []
        self.openings: list[Deferred[Any]] = []
        #: Lines about what could not be opened.
        self.failures: list[str] = []
        self.guests = Moving(running.guests, plan, running.guard, running.reactor)
        self._running = running
        self._load = load
        self._inherited = inherited
        self._services: dict[str, RunningService] = {}
        #: By the places of the new plan; None for those that keep their port, and for what could not be built.
        self._listeners: list[RunningListener | None] = [None] * len(plan.listeners)
        self._undo: list[Callable[[], object]] = []
        #: Opens again what was closed to make room. Not before `_undo` is done: what is new has to be closed first.
        self._restore: list[Callable[[], object]] = []
        self._final: list[Callable[[], object]] = []
        #: New listeners whose ports cannot be opened before those of old ones are closed.
        self._blocked: list[tuple[RunningListener, list[RunningListener]]] = []
        self._opened: Deferred[None] | None = None
        self._deadline: Any = None
        #: Old listeners whose very socket a new one has.
        self._shared: list[RunningListener] = []

    def prepare(self, late: Callable[[str], None] | None = None) -> list[str]:
        """Build what is new, and open its ports. Return every mistake found.

        `late` is called with what goes wrong with a port after this has returned; without it that fails `finish`.
        """
        gives_room = bool(self.difference.closed)
        # First, so that it is known which of the old ones go.
        embedding = self.guests.prepare(self._final, self._undo, gives_room=gives_room)
        mistakes = [*self._prepare_kept(), *self._build(), *self._open(late), *embedding]
        return list(dict.fromkeys([*mistakes, *self.failures]))

    def _prepare_kept(self) -> list[str]:
        """Do all that can fail of a change of what stays. Files (networks, certificates) are read again in any case."""
        running, plan = self._running, self.plan
        changes: list[tuple[Callable[[], Callable[[], object]], str]] = []
        changes.append((partial(running.guard.process.prepare, plan.limits), plan.place))
        for key in self.difference.same | self.difference.changed:
            use = plan.uses[key]
            changes.append((partial(running.services[key].level.prepare, use.limits), use.place))
        for old, new in self.difference.kept:
            before, listener = running.listeners[old], plan.listeners[new]
            changes.append((partial(before.prepare_limits, listener), listener.place))
            changes.append((partial(before.prepare_envelope, listener), ""))
        mistakes: list[str] = []
        for prepare, place in changes:
            try:
                self._final.append(prepare())
            except MistakeError as error:
                mistakes += [f"{place}{mistake}" for mistake in error.mistakes]
        return mistakes

    def _build(self) -> list[str]:
        running, mistakes = self._running, list[str]()
        for key, use in self.plan.uses.items():
            before = running.services.get(key)
            if before is not None and key in self.difference.same:
                self._services[key] = before
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
                defaults = getattr(service, "limits", {})
                if before is not None and before.use.service == use.service:
                    # It goes on with what the one before it has counted.
                    level = before.level
                else:
                    level = Level(key, use.limits, running.reactor, defaults)
                self._services[key] = RunningService(key, use, service, instance, level)
            except MistakeError as error:
                mistakes += [f"{use.place}{mistake}" for mistake in error.mistakes]
        return mistakes

    def _open(self, late: Callable[[str], None] | None) -> list[str]:
        mistakes: list[str] = []
        for place in self.difference.opened:
            listener = self.plan.listeners[place]
            if listener.use not in self._services:
                continue
            opened = RunningListener(self._running.guard, listener, self._services[listener.use])
            self._listeners[place] = opened
            # What waits there waits for nobody: it was never to be open.
            self._undo.append(partial(opened.close, take=False))
            try:
                if self._inherited:
                    self._begin_opening(opened, self._inherited[place], late)
                elif not self._is_blocked(opened):
                    self._begin_opening(opened, self._make_room(opened), late)
            except MistakeError as error:
                mistakes += [f"{listener.place}{mistake}" for mistake in error.mistakes]
        return mistakes

    def _clashing(self, address: Address) -> list[RunningListener]:
        """List the old listeners that go, and whose ports may be in the way of a new one."""
        going = [self._running.listeners[place] for place in self.difference.closed]
        return [each for each in going if may_clash(each.listener.address, each.port_number(), address)]

    def _is_blocked(self, opened: RunningListener) -> bool:
        """Tell whether a port can be opened only when another is closed, and note it."""
        address = opened.listener.address
        clashing = self._clashing(address)
        taken = bool(address.port) and any(each.takes(address.kind, address.port) for each in self.guests.gone)
        if not taken and (not clashing or (address.port and all(each.socket() for each in clashing))):
            return False
        self._blocked.append((opened, clashing))
        return True

    def _make_room(self, opened: RunningListener) -> Room | None:
        """Bind the socket of a new listener beside those that are in its way, if any are."""
        address = opened.listener.address
        clashing = self._clashing(address)
        for old in clashing:
            if same_socket(old.listener.address, address):
                old.share()
                self._shared.append(old)
                return copy_of(old.socket())
        if not clashing:
            return None
        try:
            room = bind_beside(address, [old.socket() for old in clashing])
        except OSError:
            # It happens again when the port is opened as any other, and is explained there.
            return None
        # Who has come by the new one meanwhile would have come by the old one.
        self._undo.append(partial(opened.yield_to, clashing[0]))
        return room

    def _begin_opening(
        self, opened: RunningListener, inherited: Inherited | None, late: Callable[[str], None] | None
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
            opening = opened.open(self._running.reactor, inherited)
        except BaseException:
            _close_unused(None, inherited)
            raise
        opening.addBoth(_close_unused, inherited)
        self.begun.append(opened)
        self.openings.append(opening.addErrback(failed))
        in_time = False

    def opened(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires when all that is new is open, or has failed to; after `seconds` in any case.

        What is open by then takes nothing before `finish`.
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
        """Wait for nothing any more: `finish` will fail."""
        self.failures.append(reason)
        self._go_on()

    def finish(self) -> None:
        """Put the new in place of the old. Raises `MistakeError`, and has undone everything, if that cannot be."""
        try:
            if self.failures:
                raise MistakeError(self.failures)
            self._start_services()
            self._swap()
            self._exchange()
            self.guests.start(self._restore, self._close_all)
        except BaseException:
            self.undo()
            raise
        self._commit()

    def undo(self) -> None:
        """Leave everything as it was."""
        for steps in (self._undo, self._restore):
            while steps:
                try:
                    steps.pop()()
                except ANYTHING:  # one that fails must not keep the others from it
                    _log.failure("what was begun could not be undone")
        running = self._running
        for old, restored in self.guests.restored.items():
            place = running.guests.index(old)
            running.guests[place : place + 1] = [restored] if restored is not None else []
            old.note_gates(running.guard)
            running.departures.retire(old)
        # Those of listeners that were never to be.
        running.guard.book.prune()

    def _start_services(self) -> None:
        mistakes: list[str] = []
        # Whoever takes new options in place can take the old ones back; so they are the last to be asked.
        adaptable = self.difference.changed & {key for key, each in self._running.services.items() if each.adapts()}
        fresh = [key for key in self._services if key not in self.difference.same]
        for key in sorted(fresh, key=lambda key: key in adaptable):
            service, use = self._services[key], self.plan.uses[key]
            try:
                # Once something is wrong nobody is asked any more, and nothing started in his place.
                if key in adaptable and (mistakes or self._reconfigure(self._running.services[key], use)):
                    continue
                service.start()
                self._undo.append(service.stop)
            except MistakeError as error:
                mistakes += [f"{use.place}{mistake}" for mistake in error.mistakes]
        if mistakes:
            raise MistakeError(mistakes)

    def _reconfigure(self, service: RunningService, use: ServiceUse) -> bool:
        """Let a service that runs take other settings. Then the one that was built in its place is not wanted."""
        # One that fails may have taken some of them.
        self._undo.append(partial(service.reconfigure, service.use))
        if not service.reconfigure(use):
            self._undo.pop()
            return False
        unwanted, self._services[service.key] = self._services[service.key], service
        for opened in self._listeners:
            if opened is not None and opened.service is unwanted:
                self._change_service(opened, opened.listener, service)
        return True

    def _swap(self) -> None:
        """Put what is new behind the ports that stay open."""
        for old, new in self.difference.kept:
            running, listener = self._running.listeners[old], self.plan.listeners[new]
            service = self._services[listener.use]
            if service is running.service and listener.protocol == running.listener.protocol:
                continue
            self._change_service(running, listener, service)

    def _change_service(self, running: RunningListener, listener: Listener, service: RunningService) -> None:
        try:
            undo, finally_ = running.swap(listener, service)
        except MistakeError as error:
            raise MistakeError([f"{listener.place}{mistake}" for mistake in error.mistakes]) from error
        self._undo.append(undo)
        self._final.append(finally_)

    def _exchange(self) -> None:
        """Close the ports that are in the way of new ones, and open these."""
        for opened, clashing in self._blocked:
            for old in clashing:
                self._close(old)
            for guest in self.guests.gone:
                if guest.takes(opened.listener.address.kind, opened.listener.address.port):
                    self.guests.close(guest, self._restore)
            self._begin_opening(opened, None, None)
            if opened.listening is None and not self.failures:
                self.failures.append(opened.listener.cannot_listen("it takes its time, and another port is in its way"))
            if self.failures:
                raise MistakeError(self.failures)

    def _close(self, old: RunningListener) -> None:
        if old.listening is not None:
            old.close()
            self._restore.append(partial(self._reopen, old))

    def _close_all(self) -> None:
        for place in self.difference.closed:
            self._close(self._running.listeners[place])

    def _reopen(self, old: RunningListener) -> None:
        def failed(failure: Failure) -> None:
            _log.critical("{line}", line=old.listener.cannot_listen(failure.value))
            # Not to be taken for one that is open: the next reload shall try again.
            running = self._running
            place = running.listeners.index(old)
            del running.listeners[place]
            remaining = running.plan.listeners[:place] + running.plan.listeners[place + 1 :]
            running.plan = replace(running.plan, listeners=remaining)

        old.open(self._running.reactor).addErrback(failed)

    def _commit(self) -> None:
        running, difference = self._running, self.difference
        listeners, services = running.listeners, running.services
        for old, new in difference.kept:
            self._listeners[new] = listeners[old]
            listeners[old].listener = self.plan.listeners[new]
        running.plan = self.plan
        running.services = self._services
        running.metrics.keep(running.services)
        running.listeners = [listener for listener in self._listeners if listener is not None]
        running.guests = self.guests.guests
        for key, service in running.services.items():
            service.use = self.plan.uses[key]
        for step in self._final:
            try:
                step()
            except ANYTHING:  # what has been replaced cannot stop what replaces it
                _log.failure("a protocol failed to stop")
        for listener in running.listeners:
            listener.renew()
        for guest in running.guests:
            guest.renew()
        closed = [listeners[place] for place in difference.closed]
        for each in closed:
            each.close(take=each not in self._shared)
        gone = [services[key] for key in difference.gone] + running.departures.hasten(difference.gone)
        running.leave(gone, closed, self.guests.gone, self.plan.drain)
        for key in difference.changed:
            if running.services[key] is not services[key]:
                running.departures.retire(services[key])
        running.note_ports()
        running.prune()


def _close_unused(result: Any, inherited: Inherited | None = None) -> Any:
    if isinstance(inherited, Room):
        inherited.close()
    return result
