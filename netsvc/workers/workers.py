"""Runs a plan in several processes: binds the ports, and starts, replaces and ends the workers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import namedModule

from netsvc import __version__
from netsvc.base.errors import UserError
from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.listen.opening import ListenError
from netsvc.log.opening import OpenLog
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan, undivided
from netsvc.plan.status import ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.reactor.clock import use_monotonic_clock
from netsvc.server.difference import as_started
from netsvc.server.drain import ABORT_GRACE, CLOSE_GRACE, DrainCommand
from netsvc.server.drain_report import MOST_LINES
from netsvc.server.instances import Load, examine
from netsvc.server.process import allow_descriptors, die, start_error, stop_reactor, take_over_signals
from netsvc.server.server import log_ready
from netsvc.server.status import LoopDelay, read_vitals
from netsvc.workers.generation import Generation, WorkerReload
from netsvc.workers.group import SETTLE, open_group
from netsvc.workers.keyfiles import read_key_files
from netsvc.workers.slot import Slot
from netsvc.workers.status import Inquiry, Totals

#: Seconds beyond a drain after which a worker is killed. With a drain of 4 s, all processes end before a supervisor
#: that kills after 5 s.
KILL_GRACE = 0.25

#: Workers of earlier reloads that still serve connections. A reload that would leave more is refused, as each needs the
#: memory of a process.
MOST_LEAVING = 256

#: Seconds after which replaced processes have closed their ports.
SETTLED = 5.0

_FAST = "netsvc.reactor.epoll"

_log = Logger(namespace="netsvc")


class Workers(Service):
    """Runs a plan in `plan.workers` processes, as `netsvc.server.server.Server` does in one.

    The start fails if the plan has errors or a port cannot be bound, before any worker is started, and if a worker
    cannot start. Later, a worker that dies is replaced: see `netsvc.workers.slot`. `reload` replaces all workers, and
    `stopService` drains them. This process holds the ports and serves nothing.
    """

    def __init__(
        self,
        plan: Plan,
        load: Load,
        reactor: Any,
        warnings: Sequence[str] = (),
        die: Callable[[str], None] = die,
        *,
        reactor_chosen: bool = False,
        python: str = sys.executable,
    ) -> None:
        self.plan = plan
        #: Called when every worker serves.
        self.became_ready: Callable[[], None] = log_ready
        self._load = load
        self._reactor = reactor
        self._warnings = warnings
        self._die = die
        self._reactor_chosen = reactor_chosen
        self._python = python
        self.generation = Generation(plan, paused=False)
        #: Workers of earlier generations that have not ended yet.
        self._leaving: list[Slot] = []
        self._reload: WorkerReload | None = None
        #: The sockets of each listener passed by another process, and the function to call when all workers can serve.
        self._sockets: Sequence[Sockets | None] = ()
        self._on_ready: Callable[[], None] | None = None
        self._ready = 0
        self._failed = False
        self._stopping: Deferred[None] | None = None
        self._deadline: Any = None
        self._unsteering: Any = None
        self._killed = 0
        #: The lines that workers have reported about the drain.
        self._drained: list[str] = []
        self.drain_command = DrainCommand(lambda: stop_reactor(self._reactor))
        self.totals = Totals(self._inquiries)

    def privilegedStartService(self) -> None:
        """Check that the services can be built, and bind every port. Raises `StartError` with all errors."""
        super().privilegedStartService()
        self._started, self._pulse = time.time(), LoopDelay(self._reactor)
        allow_descriptors()
        use_monotonic_clock(self._reactor)
        # Both, so that one start reports all errors.
        errors = examine(self.plan, self._load, self._reactor) + self._bind()
        if errors:
            self.generation.close()
            raise start_error(errors)

    def _bind(self) -> list[str]:
        failures = []
        passed = self._sockets or [None] * len(self.plan.listeners)
        for listener, sockets in zip(self.plan.listeners, passed, strict=True):
            # Read here: the workers may not have the privileges.
            known = {} if sockets is None else sockets.key_files
            self.generation.key_files.append({**known, **read_key_files(listener.address)})
            try:
                group = open_group(self._reactor, listener.address, self.plan.workers, sockets)
                self.generation.groups.append(group)
                if self._on_ready is not None:
                    group.grow(self.plan.workers)
            except ListenError as error:
                failures.append(listener.cannot_listen(error))
            except OSError as error:
                failures.append(f"{group.opened.place()} cannot be bound for every worker: {error.strerror}")
        return failures

    def startService(self) -> None:
        """Log the address of each listener, and start the workers."""
        if not os.access(self._python, os.X_OK, effective_ids=True):
            # The process was started by root, or outside the present root directory.
            self.generation.close()
            raise start_error(
                [
                    f"--workers: user {os.geteuid()} may not run {self._python}, or it is outside the root directory "
                    "of --chroot; install Python and netsvc where this user may run them, or leave out --workers"
                ]
            )
        super().startService()
        for warning in self._warnings:
            _log.warn("{warning}", warning=warning)
        self._announce(range(len(self.plan.listeners)))
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self.force)
        generation = self.generation
        generation.slots = [
            self._make_slot(generation, index, ready=self._slot_ready, failed=self._slot_failed)
            for index in range(self.plan.workers)
        ]
        self._reactor.callWhenRunning(self._start)

    def _announce(self, places: Iterable[int]) -> None:
        for index in places:
            listener = self.plan.listeners[index]
            _log.info(
                "{service} {protocol} listens on {place}{note}",
                service=listener.use,
                protocol=listener.protocol,
                place=self.generation.groups[index].opened.place(),
                note=listener.address.note,
            )

    def _start(self) -> None:
        for slot in self.generation.slots:
            if not self._failed:
                slot.start()

    def _make_slot(
        self,
        generation: Generation,
        index: int,
        *,
        ready: Callable[[], None],
        failed: Callable[[str], None],
        ended: Callable[[], None] = lambda: None,
        persistent: bool = False,
    ) -> Slot:
        def slot_ready() -> None:
            ready()
            generation.cover()

        def slot_ended() -> None:
            ended()
            generation.cover()
            self._look()

        module = reactor_module(self._reactor, self._reactor_chosen)
        start = partial(generation.spawn, self._reactor, self._python, module, index)
        return Slot(
            index + 1,
            self._reactor,
            start,
            ready=slot_ready,
            failed=failed,
            ended=slot_ended,
            replaced=generation.cover,
            departed=self.totals.departed_from,
            drained=self._slot_drained,
            persistent=persistent,
        )

    def _slot_ready(self) -> None:
        self._ready += 1
        if self._ready == self.plan.workers and self._stopping is None:
            (self._on_ready or self.became_ready)()

    def log_connections(self, log: OpenLog) -> None:
        """Write the access records of the workers to this log."""
        log.relay()

    def places(self) -> list[tuple[str, str, str]]:
        """See `netsvc.server.interface.IServer`."""
        groups = zip(self.plan.listeners, self.generation.groups, strict=False)
        return [(each.use, each.protocol, group.opened.place()) for each, group in groups]

    def activity(self) -> str:
        """See `netsvc.server.interface.IServer`."""
        count = sum(slot.child is not None for slot in self._all_slots())
        workers = f"{count} worker{'' if count == 1 else 's'}"
        return workers if self._stopping is None else f"draining: {workers}"

    def _slot_failed(self, reason: str) -> None:
        # Only the first failure: the other workers mostly fail for the same reason.
        if not self._failed and self._stopping is None:
            self._failed = True
            self._die(reason)

    @property
    def state(self) -> str:
        """The state, a value of `netsvc.plan.status.ProcessStatus.state`."""
        if self._stopping is not None:
            return "stopped" if self._stopping.called else "draining"
        slots = self.generation.slots
        return "ready" if slots and self._ready >= len(slots) else "starting"

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """See `netsvc.server.interface.Operations`. The first is this process, which serves nothing."""
        own = ProcessStatus(__version__, os.getpid(), self._started)
        own.state, own.not_ready, own.vitals = self.state, self.not_ready(), read_vitals(self._pulse, self._reactor)
        return self.totals.status(query).addCallback(lambda others: [own, *others])

    def not_ready(self) -> list[str]:
        """See `netsvc.server.interface.Operations`."""
        if self._stopping is not None:
            return [self.state]
        slots = self.generation.slots
        return [line for slot in slots if (line := slot.not_ready())] if slots else ["starting"]

    def drain(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.server.interface.Operations`."""
        return self.drain_command.ask(is_leaving=self._stopping is not None)

    def departed(self) -> list[ListenerStatus]:
        """See `netsvc.server.interface.Operations`."""
        return self.totals.departed()

    def departed_metrics(self) -> list[dict[str, Any]]:
        """See `netsvc.server.interface.Operations`."""
        return self.totals.departed_metrics()

    def close_connection(self, connection: str) -> Deferred[bool]:
        """See `netsvc.server.interface.Operations`."""
        return self.totals.close_connection(connection)

    def reload(self, plan: Plan, load: Load | None = None) -> Deferred[str]:
        """Run another plan with new workers, or continue with the old ones. See `netsvc.server.server.Server.reload`.

        An old worker ends after its last connection. Connections of removed listeners have `plan.drain` to end.
        """
        if refusal := self._refusal(plan, load or self._load):
            return fail(UserError([refusal]))
        load = load or self._load
        plan, hint = as_started(self.plan, plan)
        change = WorkerReload(self._reactor, self.generation, plan, self._make_slot)
        try:
            if errors := examine(plan, load, self._reactor) + change.prepare():
                raise UserError(errors)
        except BaseException as error:
            change.undo()
            if isinstance(error, UserError):
                return fail(error)
            raise
        self._reload = change
        changing = change.done.addCallbacks(self._reloaded, self._not_reloaded, (change, load), errbackArgs=(change,))
        change.begin()
        return changing.addCallback(lambda summary: summary + hint)

    def _refusal(self, plan: Plan, load: Load) -> str:
        if refusal := self.occupied("reloaded"):
            return refusal
        if len(self._leaving) >= MOST_LEAVING:
            return (
                f"{len(self._leaving)} workers of earlier reloads still serve connections; "
                "wait until they have ended, or restart netsvc"
            )
        several = replace(plan, workers=2)
        # During the reload there are two workers, the old one and the new one.
        if plan.workers == 1 and undivided(several, {key: load(use) for key, use in plan.uses.items()}):
            return "workers 1: a reload cannot turn several processes into one with this configuration; restart netsvc"
        return ""

    def _reloaded(self, _result: None, change: WorkerReload, load: Load) -> str:
        self._reload = None
        before = self.processes()
        self._leaving += self.generation.slots
        self.generation, self.plan, self._load = change.new, change.new.plan, load
        self._ready = len(self.generation.slots)
        self._announce(change.difference.opened)
        if before > self.processes() > 1:
            self._unsteer_later()
        self.generation.cover()
        self._look()
        return change.summary()

    def _not_reloaded(self, failure: Failure, change: WorkerReload) -> Failure:
        self._reload = None
        self._leaving += [slot for slot in change.new.slots if slot.child is not None]
        return failure

    def stopService(self) -> Deferred[None]:
        """Drain every worker. The Deferred fires when all have ended; it never fails."""
        super().stopService()
        self._stopping = Deferred()
        if self._reload is not None:
            self._reload.fail("it is stopping")
        if self._unsteering is not None and self._unsteering.active():
            self._unsteering.cancel()
        # This process first: a worker accepts what waits in its socket, and then closes it for good.
        self.generation.close()
        seconds = self.plan.longest_drain + CLOSE_GRACE + ABORT_GRACE + KILL_GRACE
        self._deadline = self._reactor.callLater(seconds, self._kill)
        for slot in self._all_slots():
            slot.stop()
        if self._failed:
            self._cut_short()
        stopping = self._stopping
        self._look()
        return stopping

    def _all_slots(self) -> list[Slot]:
        return [*self.generation.slots, *self._leaving]

    def _inquiries(self) -> list[tuple[int, Inquiry]]:
        children = [slot.child for slot in self._all_slots() if slot.child is not None]
        return [(child.pid, child.inquiry) for child in children]

    def _look(self) -> None:
        self._leaving = [slot for slot in self._leaving if slot.child is not None]
        if self._stopping is None or self._stopping.called or any(slot.child for slot in self._all_slots()):
            return
        if self._deadline.active():
            self._deadline.cancel()
        killed = f", {self._killed} of them killed" if self._killed else ""
        line = f"{self.plan.workers} workers ended{killed}"
        _log.info("stopped: {line}", line=line)
        if len(self._drained) > MOST_LINES:
            self._drained[MOST_LINES:] = [f"and {len(self._drained) - MOST_LINES} more lines like these, in the log"]
        self.drain_command.report([line, *self._drained])
        # The status may have been read during the drain.
        self._pulse.stop()
        self._stopping.callback(None)

    def _slot_drained(self, name: str, lines: Sequence[str]) -> None:
        # Not logged here: each worker has logged them.
        if self._stopping is not None:
            self._drained += [f"{name}: {line}" for line in lines]

    def _kill(self) -> None:
        for slot in self._all_slots():
            if slot.child:
                self._killed += 1
                self._drained.append(f"{slot.name} had not ended in time, and was killed")
                slot.child.signal("KILL")

    def force(self) -> None:
        """Cut the drain short, if one is under way. May be called by a signal handler."""
        self._reactor.callFromThread(self._cut_short)

    def _cut_short(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.reset(ABORT_GRACE + CLOSE_GRACE + KILL_GRACE)
            for slot in self._all_slots():
                if slot.child:
                    slot.child.force()

    # Takeover of the ports, from or by another process; see `netsvc.server.interface.Replaceable`.

    def adopt(self, sockets: Sequence[Sockets | None], _plugins: object, ready: Callable[[], None]) -> None:
        """See `netsvc.server.interface.IServer`. No plugins run with workers."""
        self._sockets, self._on_ready = sockets, ready
        self.generation.paused = True

    def occupied(self, action: str) -> str:
        """See `netsvc.server.interface.IServer`."""
        slots = self.generation.slots
        if self._stopping is not None or not self.running:
            return f"it is stopping, and cannot be {action}"
        if self._ready < len(slots) or self._failed or not slots or self.generation.paused:
            return f"it is still starting, and cannot be {action} before it is ready"
        if self._reload is not None:
            return "a reload is under way; wait until it is over"
        return ""

    def ports(self) -> list[OfferedPort]:
        """See `netsvc.server.interface.Replaceable`."""
        generation = self.generation
        return [
            group.offered(listener.label, listener.address, key_files)
            for listener, group, key_files in zip(
                self.plan.listeners, generation.groups, generation.key_files, strict=True
            )
        ]

    def processes(self) -> int:
        """See `netsvc.server.interface.Replaceable`."""
        return len(self.generation.slots)

    def prepare(self, successors: int) -> float:
        """See `netsvc.server.interface.Replaceable`. With fewer successors, the last workers get no new connections."""
        if successors >= self.processes():
            return 0.0
        for group in self.generation.groups:
            group.steer(successors)
        return SETTLE

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`. The worker accepts what waits for it alone, and retires."""
        groups = self.generation.groups
        closed = list(range(len(groups)))
        if step < successors:
            taken = [port.owner for port in ports]
            closed = [index for index in closed if groups[index] not in taken]
        else:
            for group in groups:
                # This process first: a worker accepts what waits in the socket, and then closes it for good.
                group.resize(successors)
        self.generation.retire(step, closed, range(len(groups)))

    def resume(self, _ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`. Workers that have retired are replaced."""
        generation = self.generation
        for group in generation.groups:
            group.steer(len(generation.slots))
            group.grow(len(generation.slots))
            group.resize(len(generation.slots))
        for index, slot in enumerate(generation.slots):
            if slot.is_stopping:
                self._leaving.append(slot)
                new = self._make_slot(generation, index, ready=_nothing, failed=_log_failure, persistent=True)
                generation.slots[index] = new
                new.start()
        generation.cover()

    def serve(self, step: int, steps: int) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        if step == 0:
            for group in self.generation.groups:
                group.resize(self.plan.workers)
        if step == steps - 1 and steps > self.processes() > 1:
            self._unsteer_later()
        self.generation.serve(step, steps)
        self.generation.cover()

    def _unsteer_later(self) -> None:
        """Let the kernel distribute again, when the workers without a counterpart have closed their sockets."""
        self._unsteering = self._reactor.callLater(SETTLED, self._unsteer, self.generation)

    def _unsteer(self, generation: Generation) -> None:
        # Not during a later reload, which steers the same sockets.
        if generation is self.generation and self._reload is None:
            for group in generation.groups:
                group.steer(self.processes())


def reactor_module(reactor: Any, chosen: bool) -> str:
    """Return the name of the workers' reactor module: of `reactor` if the user has chosen it, or of the fast one."""
    if not chosen:
        try:
            namedModule(_FAST)
        except ImportError:
            # This system has no epoll.
            pass
        else:
            return _FAST
    return type(reactor).__module__


def _nothing() -> None:
    """Do nothing."""


def _log_failure(reason: str) -> None:
    _log.critical("{reason}", reason=reason)
