"""Runs a plan in several processes: holds the ports, starts the workers, and ends them all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc import __version__
from netsvc.errors import MistakeError
from netsvc.host.control import Answer
from netsvc.host.difference import as_started
from netsvc.host.drain import ABORT_GRACE, CLOSE_GRACE
from netsvc.host.farewell import Farewell, stop_reactor
from netsvc.host.fatal import die, start_error
from netsvc.host.instances import Load, examine
from netsvc.host.process import allow_descriptors, take_over_signals
from netsvc.host.summary import MOST_LINES
from netsvc.host.vitals import Pulse, look
from netsvc.listeners.handed import Found
from netsvc.listeners.opening import ListenError
from netsvc.plan import Plan, undivided
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.steady import keep_steady
from netsvc.workers.census import Census
from netsvc.workers.held import HeldPort, hold
from netsvc.workers.keyfiles import read_key_files
from netsvc.workers.slot import Slot
from netsvc.workers.spawning import reactor_module, spawn
from netsvc.workers.succession import Serving, Succeeding
from netsvc.workers.turnover import Turnover

__all__ = ["Workers"]

#: Seconds beyond a drain after which a worker is killed. A supervisor that kills after 5 s finds us gone after a
#: drain of 4 s.
KILL_GRACE = 0.25

#: Processes that have been replaced, and serve the connections they have, for as long as these last: a reload that
#: would make more of them waits. Each has the memory of a process.
MOST_LEAVING = 256

_log = Logger(namespace="netsvc")


class Workers(Succeeding):
    """Runs a plan in `plan.workers` processes, as `netsvc.host.host.Host` does in one.

    What the plan gets wrong, and ports that cannot be bound, stop the start before any worker is started, and so
    does a worker that cannot start. Later, one that dies is replaced: see `netsvc.workers.slot`. `reload` replaces
    them all, and `stopService` has all of them drain. This process serves nothing, and holds the ports.
    """

    def __init__(
        self,
        plan: Plan,
        load: Load,
        reactor: Any = None,
        warnings: Sequence[str] = (),
        die: Callable[[str], None] = die,
        *,
        reactor_chosen: bool = False,
        python: str = sys.executable,
    ) -> None:
        self.plan = plan
        self._load = load
        self._reactor = reactor
        self._warnings = warnings
        self._die = die
        self._reactor_chosen = reactor_chosen
        self._python = python
        self._held: list[HeldPort] = []
        self._key_files: list[Mapping[str, str]] = []
        self._slots: list[Slot] = []
        #: Those of plans before, whose processes have not ended yet.
        self._leaving: list[Slot] = []
        self._turnover: Turnover | None = None
        self._ready = 0
        self._failed = False
        self._stopping: Deferred[None] | None = None
        self._deadline: Any = None
        self._killed = 0
        #: What has been reported of a drain, beside that of the whole.
        self._drained: list[str] = []
        self.farewell = Farewell(lambda: stop_reactor(self._reactor))
        self.census = Census(self._all_slots)

    def privilegedStartService(self) -> None:
        """See that the services can be built, and bind every port."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        super().privilegedStartService()
        self._started, self._pulse = time.time(), Pulse(self._reactor)
        allow_descriptors()
        keep_steady(self._reactor)
        # Both, so that one start tells all that is wrong.
        mistakes = examine(self.plan, self._load, self._reactor) + self._hold()
        if mistakes:
            self._release()
            raise start_error(mistakes)

    def _hold(self) -> list[str]:
        failures = []
        found_all = self._found or [Found()] * len(self.plan.listeners)
        for listener, found in zip(self.plan.listeners, found_all, strict=True):
            # The workers may not have the privileges to read them.
            self._key_files.append({**found.key_files, **read_key_files(listener.address)})
            try:
                held = hold(self._reactor, listener.address, self.plan.workers, found.first, found.beside)
                self._held.append(held)
                if self._tell_ready is not None:
                    held.grow(self.plan.workers)
            except ListenError as error:
                failures.append(listener.cannot_listen(error))
            except OSError as error:
                failures.append(f"{held.listening.place()} cannot be bound for every worker: {error.strerror}")
        return failures

    def startService(self) -> None:
        """Say what listens where, and start the workers."""
        if not self._held:
            # twist starts services without a privileged start.
            self.privilegedStartService()
        if not os.access(self._python, os.X_OK, effective_ids=True):
            # It was started by root, or before the root directory was changed.
            self._release()
            raise start_error(
                [
                    f"--workers: user {os.geteuid()} may not run {self._python}, or it is not below a changed root; "
                    "install Python and netsvc where it may, or leave out --workers"
                ]
            )
        super().startService()
        for warning in self._warnings:
            _log.warn("{warning}", warning=warning)
        self._announce(range(len(self.plan.listeners)))
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self.force)
        self._serving = Serving(self.plan, self._held, self._key_files, held=self._tell_ready is not None)
        for place in range(self.plan.workers):
            self._slots.append(
                self._make_slot(self._serving, place, ready=self._slot_ready, failed=self._slot_failed, ended=_nothing)
            )
        self._reactor.callWhenRunning(self._start)

    def _announce(self, places: Iterable[int]) -> None:
        for place in places:
            listener = self.plan.listeners[place]
            _log.info(
                "{service} {protocol} listens on {place}{note}",
                service=listener.use,
                protocol=listener.protocol,
                place=self._held[place].listening.place(),
                note=listener.address.note,
            )

    def _start(self) -> None:
        for slot in self._slots:
            if not self._failed:
                slot.start()

    def _make_slot(
        self,
        serving: Serving,
        place: int,
        *,
        ready: Callable[[], None],
        failed: Callable[[str], None],
        ended: Callable[[], None],
        persistent: bool = False,
    ) -> Slot:
        def slot_ended() -> None:
            ended()
            self._look()

        module = reactor_module(self._reactor, self._reactor_chosen)
        start = partial(spawn, self._reactor, (self._python, module), serving, place)
        return Slot(
            place + 1,
            self._reactor,
            start,
            ready=ready,
            failed=failed,
            ended=slot_ended,
            departed=self.census.departed_from,
            drained=self._slot_drained,
            persistent=persistent,
        )

    def _slot_ready(self) -> None:
        self._ready += 1
        if self._ready == self.plan.workers and self._stopping is None:
            (self._tell_ready or self.became_ready)()

    def became_ready(self) -> None:
        """Say that every worker serves."""
        _log.info("ready")

    def places(self) -> list[tuple[str, str, str]]:
        """List what is open: service, protocol and place."""
        held = zip(self.plan.listeners, self._held, strict=False)
        return [(each.use, each.protocol, port.listening.place()) for each, port in held]

    def activity(self) -> str:
        """Say in a few words what goes on."""
        count = sum(slot.child is not None for slot in self._all_slots())
        workers = f"{count} worker{'' if count == 1 else 's'}"
        return workers if self._stopping is None else f"draining: {workers}"

    def _slot_failed(self, reason: str) -> None:
        # What the others say after it is not told: mostly it would be the same.
        if not self._failed and self._stopping is None:
            self._failed = True
            self._die(reason)

    @property
    def state(self) -> str:
        """What is going on; see `netsvc.status.ProcessStatus`."""
        if self._stopping is not None:
            return "stopped" if self._stopping.called else "draining"
        return "ready" if self._slots and self._ready >= len(self._slots) else "starting"

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """See `netsvc.host.operations.Operations`. The first is this process, which serves nothing."""
        own = ProcessStatus(__version__, os.getpid(), self._started)
        own.state, own.not_ready, own.vitals = self.state, self.not_ready(), look(self._pulse, self._reactor)
        return self.census.status(query).addCallback(lambda others: [own, *others])

    def not_ready(self) -> list[str]:
        """See `netsvc.host.operations.Operations`."""
        if self._stopping is not None:
            return [self.state]
        lines = [line for slot in self._slots if (line := slot.not_ready())]
        return lines if self._slots else ["starting"]

    def drain(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.host.operations.Operations`."""
        return self.farewell.ask(is_leaving=self._stopping is not None)

    def departed(self) -> list[ListenerStatus]:
        """See `netsvc.host.operations.Operations`."""
        return self.census.departed()

    def departed_metrics(self) -> list[dict[str, Any]]:
        """See `netsvc.host.operations.Operations`."""
        return self.census.departed_metrics()

    def close_connection(self, connection: str) -> Deferred[bool]:
        """See `netsvc.host.operations.Operations`."""
        return self.census.close_connection(connection)

    def reload(self, plan: Plan, load: Load | None = None) -> Deferred[str]:
        """Run another plan, with new workers; or go on with the old ones. See `netsvc.host.host.Host.reload`.

        An old worker goes on until its last connection has ended; those of listeners that are gone have `plan.drain`.
        """
        if refusal := self._refusal(plan, load or self._load):
            return fail(MistakeError([refusal]))
        load = load or self._load
        plan, hint = as_started(self.plan, plan)
        turnover = Turnover(self.plan, self._held, self._key_files, plan, self._reactor)
        try:
            if mistakes := examine(plan, load, self._reactor) + turnover.prepare():
                raise MistakeError(mistakes)
        except BaseException as error:
            turnover.undo()
            if isinstance(error, MistakeError):
                return fail(error)
            raise
        self._turnover = turnover
        serving = Serving(plan, turnover.held, turnover.key_files, held=True)
        starting = turnover.begin(partial(self._make_slot, serving))
        turning = starting.addCallbacks(self._turned_over, self._not_turned_over, (turnover, serving, load))
        return turning.addCallback(lambda summary: summary + hint)

    def _refusal(self, plan: Plan, load: Load) -> str:
        if refusal := self.occupied("reloaded"):
            return refusal
        if len(self._leaving) >= MOST_LEAVING:
            return (
                f"{len(self._leaving)} workers of earlier reloads still serve connections; "
                "wait until they have ended, or start it anew"
            )
        several = replace(plan, workers=2)
        # While the old worker and the new one serve, there are two.
        if plan.workers == 1 and undivided(several, {key: load(use) for key, use in plan.uses.items()}):
            return "workers 1: several processes do not become one with all of this by a reload; start it anew"
        return ""

    def _turned_over(self, _result: None, turnover: Turnover, serving: Serving, load: Load) -> str:
        self._turnover = None
        try:
            summary = turnover.finish(self._slots)
        except BaseException:
            self._leaving += turnover.undo()
            raise
        serving.held = False
        self._serving = serving
        self._leaving += self._slots
        self.plan, self._load = turnover.plan, load
        self._held, self._key_files, self._slots = turnover.held, turnover.key_files, turnover.slots
        self._ready = len(self._slots)
        self._announce(turnover.difference.opened)
        self._look()
        return summary

    def _not_turned_over(self, failure: Failure) -> Failure:
        turnover, self._turnover = self._turnover, None
        assert turnover is not None
        self._leaving += turnover.undo()
        return failure

    def stopService(self) -> Deferred[None]:
        """Have every worker drain, and wait for them. The Deferred fires when all are gone; it never fails."""
        super().stopService()
        self._stopping = Deferred()
        if self._turnover is not None:
            self._turnover.fail("it is stopping")
        # Ours first: a worker takes what waits for it, and then closes the port for good.
        self._release()
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
        return [*self._slots, *self._leaving]

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
        self.farewell.report([line, *self._drained])
        # It was looked at while it drained.
        self._pulse.stop()
        self._stopping.callback(None)

    def _slot_drained(self, name: str, lines: Sequence[str]) -> None:
        # Each worker has logged them.
        if self._stopping is not None:
            self._drained += [f"{name}: {line}" for line in lines]

    def _kill(self) -> None:
        for slot in self._all_slots():
            if slot.child:
                self._killed += 1
                self._drained.append(f"{slot.name} had not ended in time, and was killed")
                slot.child.signal("KILL")

    def force(self) -> None:
        """Have all conversations cut short, if it drains; may be called by a signal handler."""
        self._reactor.callFromThread(self._cut_short)

    def _cut_short(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.reset(ABORT_GRACE + CLOSE_GRACE + KILL_GRACE)
            for slot in self._all_slots():
                if slot.child:
                    slot.child.force()

    def _release(self) -> None:
        while self._held:
            self._held.pop().close()


def _nothing() -> None:
    """Do nothing more."""
