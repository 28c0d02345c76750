"""Runs a plan in several processes: holds the ports, starts the workers, and ends them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.reflect import namedModule

from netsvc.briefing import FIRST_SOCKET, ORDERS, REPORTS, Briefing
from netsvc.child import Child
from netsvc.drain import ABORT_GRACE, CLOSE_GRACE
from netsvc.host import die, examine, start_error
from netsvc.interfaces import INetworkService
from netsvc.keyfiles import read_key_files
from netsvc.listeners import ListenError
from netsvc.plan import Plan, ServiceUse
from netsvc.ports import HeldPort, hold
from netsvc.process import allow_descriptors, take_over_signals
from netsvc.slot import Slot

__all__ = ["Workers"]

#: Seconds beyond a drain after which a worker is killed. A supervisor that kills after 5 s finds us gone after a
#: drain of 4 s.
KILL_GRACE = 0.25

_FAST = "netsvc.reactor"

_log = Logger(namespace="netsvc")


def _reactor_module(reactor: Any, chosen: bool) -> str:
    """Name the module of the workers' reactor: the fast one, or that of `reactor` if the user has chosen it."""
    if not chosen:
        try:
            namedModule(_FAST)
        except ImportError:
            # There is no epoll.
            pass
        else:
            return _FAST
    return type(reactor).__module__


class Workers(Service):
    """Runs a plan in `plan.workers` processes, as `netsvc.host.Host` does in one.

    What the plan gets wrong, and ports that cannot be bound, stop the start before any worker is started, and so
    does a worker that cannot start. Later, one that dies is replaced: see `netsvc.slot`. `stopService` has all of
    them drain. This process serves nothing, and holds the ports.
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[ServiceUse], INetworkService],
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
        self._key_files: list[dict[str, str]] = []
        self._slots: list[Slot] = []
        self._ready = 0
        self._failed = False
        self._stopping: Deferred[None] | None = None
        self._deadline: Any = None
        self._killed = 0

    def privilegedStartService(self) -> None:
        """See that the services can be built, and bind every port."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        super().privilegedStartService()
        allow_descriptors()
        # Both, so that one start tells all that is wrong.
        mistakes = examine(self.plan, self._load, self._reactor) + self._hold()
        if mistakes:
            self._release()
            raise start_error(mistakes)

    def _hold(self) -> list[str]:
        failures = []
        for listener in self.plan.listeners:
            # The workers may not have the privileges to read them.
            self._key_files.append(read_key_files(listener.address))
            try:
                self._held.append(hold(self._reactor, listener.address, self.plan.workers))
            except ListenError as error:
                failures.append(f"{listener.use} {listener.protocol} cannot listen on {listener.address.text}: {error}")
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
        for listener, held in zip(self.plan.listeners, self._held, strict=True):
            _log.info(
                "{service} {protocol} listens on {place}",
                service=listener.use,
                protocol=listener.protocol,
                place=held.listening.place(),
            )
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self._force)
        for place in range(self.plan.workers):
            slot = Slot(
                place + 1,
                self._reactor,
                partial(self._spawn, place),
                ready=self._slot_ready,
                failed=self._slot_failed,
                ended=self._look,
            )
            self._slots.append(slot)
        self._reactor.callWhenRunning(self._start)

    def _start(self) -> None:
        for slot in self._slots:
            if not self._failed:
                slot.start()

    def _spawn(self, place: int, child: Child) -> None:
        numbers: list[tuple[int, ...]] = []
        sockets: dict[int, int] = {}
        for held in self._held:
            given = dict(enumerate(held.descriptors(place), FIRST_SOCKET + len(sockets)))
            numbers.append(tuple(given))
            sockets |= given
        child.briefing = Briefing(
            self.plan,
            _reactor_module(self._reactor, self._reactor_chosen),
            tuple(map(str, sys.path)),
            os.environ.get("PYTHONPATH"),
            tuple(numbers),
            tuple(self._key_files),
        )
        # The worker finds netsvc where we did.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))}
        with open(os.devnull, "rb") as nothing:
            self._reactor.spawnProcess(
                child,
                self._python,
                [self._python, "-P", "-m", "netsvc.worker"],
                env=environment,
                childFDs={0: nothing.fileno(), 1: "r", 2: "r", ORDERS: "w", REPORTS: "r", **sockets},
            )

    def _slot_ready(self) -> None:
        self._ready += 1
        if self._ready == self.plan.workers and self._stopping is None:
            _log.info("ready")

    def _slot_failed(self, reason: str) -> None:
        # What the others say after it is not told: mostly it would be the same.
        if not self._failed and self._stopping is None:
            self._failed = True
            self._die(reason)

    def stopService(self) -> Deferred[None]:
        """Have every worker drain, and wait for them. The Deferred fires when all are gone; it never fails."""
        super().stopService()
        self._stopping = Deferred()
        # Ours first: a worker takes what waits for it, and then closes the port for good.
        self._release()
        self._deadline = self._reactor.callLater(self.plan.drain + CLOSE_GRACE + ABORT_GRACE + KILL_GRACE, self._kill)
        for slot in self._slots:
            slot.stop()
        if self._failed:
            self._cut_short()
        stopping = self._stopping
        self._look()
        return stopping

    def _look(self) -> None:
        if self._stopping is None or self._stopping.called or any(slot.child for slot in self._slots):
            return
        if self._deadline.active():
            self._deadline.cancel()
        killed = f", {self._killed} of them killed" if self._killed else ""
        _log.info("stopped: {count} workers ended{killed}", count=self.plan.workers, killed=killed)
        self._stopping.callback(None)

    def _kill(self) -> None:
        for slot in self._slots:
            if slot.child:
                self._killed += 1
                slot.child.signal("KILL")

    def _force(self) -> None:
        self._reactor.callFromThread(self._cut_short)

    def _cut_short(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.reset(ABORT_GRACE + CLOSE_GRACE + KILL_GRACE)
            for slot in self._slots:
                if slot.child:
                    slot.child.force()

    def _release(self) -> None:
        while self._held:
            self._held.pop().close()
