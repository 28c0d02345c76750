"""Makes a process that runs one plan run another: all of it, or nothing. The start is one from nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.address import Address
from netsvc.discovery import ANYTHING
from netsvc.embedded.guests import Moving
from netsvc.errors import MistakeError
from netsvc.guard.gate import Gate
from netsvc.guard.level import Level
from netsvc.host.difference import compare, may_clash, same_socket
from netsvc.host.instances import Load, RunningService, build_instance
from netsvc.host.running import Running, RunningListener, label
from netsvc.listeners.inherited import Inherited
from netsvc.listeners.opening import ListenError
from netsvc.listeners.sockets import bound_socket
from netsvc.plan import Plan, ServiceUse

__all__ = ["Transition"]

_log = Logger(namespace="netsvc")


class Transition:
    """One passage from the plan that runs to another.

    `prepare` builds what is new and opens its ports; `finish` starts it and puts it in place of the old, in one turn
    of the reactor. Until then nothing has changed for anybody, and `undo` undoes all that was done.
    """

    def __init__(self, running: Running, plan: Plan, load: Load, inherited: Sequence[Inherited] = ()) -> None:
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
        mistakes = [*self._limit(), *self._build(), *self._open(late), *embedding]
        return list(dict.fromkeys([*mistakes, *self.failures]))

    def _limit(self) -> list[str]:
        """Do all of a change of limits that can fail. Files of networks are read again, whatever has changed."""
        running, plan = self._running, self.plan
        levels: list[tuple[Callable[[], Callable[[], object]], str]] = []
        levels.append((partial(running.guard.process.prepare, plan.limits), ""))
        for key in self.difference.same | self.difference.changed:
            use = plan.uses[key]
            levels.append((partial(running.services[key].level.prepare, use.limits), use.place))
        for old, new in self.difference.kept:
            listener = plan.listeners[new]
            levels.append((partial(running.listeners[old].prepare_limits, listener), listener.place))
        mistakes: list[str] = []
        for prepare, place in levels:
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
                instance = build_instance(use, service, running.reactor, running.own_ports)
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
            self._undo.append(opened.close)
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

    def _make_room(self, opened: RunningListener) -> Inherited | None:
        """Bind the socket of a new listener beside those that are in its way, if any are."""
        address = opened.listener.address
        clashing = self._clashing(address)
        for old in clashing:
            if same_socket(old.listener.address, address):
                # Both have the one socket, so that whoever waits there is served by the one or the other.
                old.share()
                self._shared.append(old)
                return Inherited([os.dup(old.socket().fileno())])
        if not clashing:
            return None
        sockets = [old.socket() for old in clashing]
        try:
            _let_in(sockets, True)
            with bound_socket(address, beside=True) as bound:
                # For this moment only: nobody else may have the port.
                _let_in([bound], False)
                return Inherited([bound.detach()])
        except OSError:
            # It happens again when the port is opened as any other, and is explained there.
            return None
        finally:
            _let_in(sockets, False)

    def _begin_opening(
        self, opened: RunningListener, inherited: Inherited | None, late: Callable[[str], None] | None
    ) -> None:
        in_time = True

        def failed(failure: Failure) -> None:
            failure.trap(ListenError)
            line = _cannot_listen(opened, failure.value)
            if in_time or late is None:
                self.failures.append(line)
            else:
                late(line)

        opening = opened.open(self._running.reactor, inherited)
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
            self.failures += [_cannot_listen(opened, reason) for opened in waiting if opened.listening is None]
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
            self.guests.start(self._undo, self._close_all)
        except BaseException:
            self.undo()
            raise
        self._commit()

    def undo(self) -> None:
        """Leave everything as it was."""
        while self._undo:
            try:
                self._undo.pop()()
            except ANYTHING:  # one that fails must not keep the others from it
                _log.failure("what was begun could not be undone")
        running = self._running
        for old, restored in self.guests.restored.items():
            place = running.guests.index(old)
            running.guests[place : place + 1] = [restored] if restored is not None else []
            old.note_gates(running.guard)
            running.departures.retire(old)

    def _start_services(self) -> None:
        mistakes: list[str] = []
        # Whoever takes new options in place can take the old ones back; so they are the last to be asked.
        adaptable = self.difference.changed & {key for key, each in self._running.services.items() if each.adapts()}
        fresh = [key for key in self._services if key not in self.difference.same]
        for key in sorted(fresh, key=lambda key: key in adaptable):
            service, use = self._services[key], self.plan.uses[key]
            try:
                if key in adaptable and not mistakes and self._reconfigure(self._running.services[key], use):
                    continue
                service.start()
                self._undo.append(service.stop)
            except MistakeError as error:
                mistakes += [f"{use.place}{mistake}" for mistake in error.mistakes]
        if mistakes:
            raise MistakeError(mistakes)

    def _reconfigure(self, service: RunningService, use: ServiceUse) -> bool:
        """Let a service that runs take other settings. Then the one that was built in its place is not wanted."""
        before = service.use
        if not service.reconfigure(use):
            return False
        self._undo.append(partial(service.reconfigure, before))
        unwanted, self._services[service.key] = self._services[service.key], service
        for opened in self._listeners:
            if opened is not None and opened.service is unwanted:
                _, finally_ = opened.swap(opened.listener, service)
                self._final.append(finally_)
        return True

    def _swap(self) -> None:
        """Put what is new behind the ports that stay open."""
        for old, new in self.difference.kept:
            running, listener = self._running.listeners[old], self.plan.listeners[new]
            service = self._services[listener.use]
            if service is running.service and listener.protocol == running.listener.protocol:
                continue
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
                    self.guests.close(guest, self._undo)
            # Before what it stands in the way of is opened again, it has to be closed.
            self._undo.append(opened.close)
            self._begin_opening(opened, None, None)
            if opened.listening is None and not self.failures:
                self.failures.append(_cannot_listen(opened, "it takes its time, and another port is in its way"))
            if self.failures:
                raise MistakeError(self.failures)

    def _close(self, old: RunningListener) -> None:
        if old.listening is not None:
            old.close()
            self._undo.append(partial(self._reopen, old))

    def _close_all(self) -> None:
        for place in self.difference.closed:
            self._close(self._running.listeners[place])

    def _reopen(self, old: RunningListener) -> None:
        old.open(self._running.reactor).addErrback(
            lambda failure: _log.critical("{line}", line=_cannot_listen(old, failure.value))
        )

    def _commit(self) -> None:
        running, difference = self._running, self.difference
        listeners, services = running.listeners, running.services
        for old, new in difference.kept:
            self._listeners[new] = listeners[old]
            listeners[old].listener = self.plan.listeners[new]
        running.plan = self.plan
        running.services = self._services
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
        gates: set[Gate] = set()
        for place in difference.closed:
            closed = listeners[place]
            closed.close(take=closed not in self._shared)
            gates |= closed.gates
        gone = [services[key] for key in difference.gone]
        # A port that it had may serve something else now.
        gates = gates.union(*(service.gates for service in gone))
        running.leave(gone, gates, self.guests.gone, self.plan.drain)
        for key in difference.changed:
            if running.services[key] is not services[key]:
                running.departures.retire(services[key])
        running.note_ports()
        running.prune()


def _let_in(sockets: Sequence[Any], others: bool) -> None:
    """Let others bind beside these sockets, or no more (socket(7), SO_REUSEPORT)."""
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, others)


def _cannot_listen(opened: RunningListener, reason: object) -> str:
    listener = opened.listener
    return f"{listener.place}{label(listener)} cannot listen on {listener.address.text}: {reason}"
