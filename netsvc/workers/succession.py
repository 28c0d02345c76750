"""Takes the place of another process, and gives way to one, worker by worker. See `netsvc.upgrade.passage`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from netsvc.listeners.handed import Found, HandedPort
from netsvc.plan import Plan
from netsvc.workers.briefing import Retirement
from netsvc.workers.held import HeldPort
from netsvc.workers.slot import Slot
from netsvc.workers.steering import SETTLE

__all__ = ["Serving", "Succeeding"]

#: Seconds after which the processes that had the place of these have closed their ports.
SETTLED = 5.0

_log = Logger(namespace="netsvc")


class Serving:
    """What a generation of workers serves. While they are `held`, they take nothing yet."""

    def __init__(
        self, plan: Plan, held_ports: Sequence[HeldPort], key_files: Sequence[Mapping[str, str]], *, held: bool
    ) -> None:
        self.plan = plan
        self.held_ports = held_ports
        self.key_files = key_files
        self.held = held


class Succeeding(Service):
    """A part of `netsvc.workers.workers.Workers`."""

    plan: Plan
    _held: list[HeldPort]
    _key_files: list[Mapping[str, str]]
    _slots: list[Slot]
    _leaving: list[Slot]
    _ready: int
    _failed: bool
    _stopping: Any
    _turnover: Any
    _reactor: Any
    _make_slot: Callable[..., Slot]
    #: What the generation serves that was started first.
    _serving: Serving
    #: What another process has of each listener, and what is to be called when all workers could serve.
    _found: Sequence[Found] = ()
    _tell_ready: Callable[[], None] | None = None

    def succeed(self, found: Sequence[Found], _passed: object, ready: Callable[[], None]) -> None:
        """See `netsvc.host.host.Host.succeed`. No plugins run with workers."""
        self._found, self._tell_ready = found, ready

    def occupied(self, what: str) -> str:
        """See `netsvc.host.host.Host.occupied`."""
        if self._stopping is not None or not self.running:
            return f"it is stopping, and cannot be {what}"
        if self._ready < len(self._slots) or self._failed or not self._slots or self._serving.held:
            return f"it is still starting, and cannot be {what} before it is ready"
        if self._turnover is not None:
            return "a reload is under way; wait until it is over"
        return ""

    def ports(self) -> list[HandedPort]:
        """See `netsvc.upgrade.passage.Serving`."""
        return [
            held.handed(listener.label, listener.address, key_files, partial(self._let_go, held))
            for listener, held, key_files in zip(self.plan.listeners, self._held, self._key_files, strict=True)
        ]

    def _let_go(self, held: HeldPort) -> None:
        self._held.remove(held)
        held.let_go()

    def steps(self) -> int:
        """See `netsvc.upgrade.passage.Serving`."""
        return len(self._slots)

    def prepare(self, successors: int) -> float:
        """See `netsvc.upgrade.passage.Serving`. Where there will be fewer workers, nothing new comes to the others."""
        if successors >= len(self._slots):
            return 0.0
        for held in self._held:
            held.steer(successors)
        return SETTLE

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`. A worker retires, and takes what waits where nobody comes after it."""
        taken = {id(row[0]) for port in ports for row in port.sockets}
        closed = list(range(len(self._held)))
        if step < successors:
            closed = [place for place in closed if not taken & set(map(id, self._held[place].firsts()))]
        else:
            for held in self._held:
                # Ours first: a worker takes what waits for it, and then closes the port for good.
                held.resize(step)
        order = Retirement(tuple(closed), tuple(range(len(self._held))), self.plan.drain)
        self._slots[step].retire(order.to_line())

    def go_on(self, _ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`. Workers that have retired are replaced."""
        for held in self._held:
            held.steer(len(self._slots))
            held.grow(len(self._slots))
            held.resize(len(self._slots))
        serving = Serving(self.plan, self._held, self._key_files, held=False)
        for place, slot in enumerate(self._slots):
            if slot.is_stopping:
                self._leaving.append(slot)
                self._slots[place] = self._make_slot(
                    serving, place, ready=_nothing, failed=_tell, ended=_nothing, persistent=True
                )
                self._slots[place].start()

    def serve_step(self, step: int, steps: int) -> None:
        """Have the worker serve whose counterpart, of `steps`, takes nothing any more; at the end, all others too."""
        is_last = step == steps - 1
        if step == 0:
            for held in self._held:
                held.resize(self.plan.workers)
        if is_last:
            self._serving.held = False
            if steps > len(self._slots) > 1:
                # Those that nobody has come after are closed by then.
                self._reactor.callLater(SETTLED, self._unsteer)
        for slot in self._slots if is_last else self._slots[step : step + 1]:
            if slot.child is not None:
                slot.child.order(b"serve\n")

    def _unsteer(self) -> None:
        for held in self._held:
            held.steer(len(self._slots))


def _nothing() -> None:
    """Do nothing more."""


def _tell(reason: str) -> None:
    _log.critical("{reason}", reason=reason)
