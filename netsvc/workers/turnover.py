"""Replaces the workers of one plan by those of another: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from netsvc.address import Address
from netsvc.errors import MistakeError
from netsvc.host.difference import compare, describe_changes, may_clash, same_socket
from netsvc.host.room import Room
from netsvc.listeners.certificates import CertificateError
from netsvc.listeners.faults import explain
from netsvc.listeners.opening import ListenError
from netsvc.listeners.sockets import bound_socket
from netsvc.listeners.tls import Certificates
from netsvc.plan import Listener, Plan
from netsvc.workers.briefing import Retirement
from netsvc.workers.held import HeldPort, hold
from netsvc.workers.keyfiles import read_key_files
from netsvc.workers.slot import Slot

__all__ = ["Turnover"]

#: Seconds for all new workers to be ready.
START_LIMIT = 60.0
_LATE = f"the new workers are not ready after {START_LIMIT:g} s"


class Turnover:
    """One passage from the workers of a plan to those of another.

    `prepare` binds what is new, `begin` starts the new workers, which take nothing yet. When all are ready, `finish`
    has them serve, and the old ones retire: the sockets are the same, so that nobody who waits is lost between them.
    `undo` leaves everything as it was.
    """

    def __init__(
        self, old: Plan, held: Sequence[HeldPort], key_files: Sequence[Mapping[str, str]], plan: Plan, reactor: Any
    ) -> None:
        self.plan = plan
        self.difference = compare(old, plan)
        #: For each listener of the plan.
        self.held: list[HeldPort] = []
        self.key_files: list[Mapping[str, str]] = []
        self.slots: list[Slot] = []
        self._old = old
        self._old_held = held
        self._old_key_files = key_files
        self._reactor = reactor
        self._undo: list[Callable[[], object]] = []
        self._ready = 0
        self._started: Deferred[None] | None = None
        self._deadline: Any = None

    def prepare(self) -> list[str]:
        """Bind what is new. Return every mistake."""
        kept = {new: old for old, new in self.difference.kept}
        found: dict[int, HeldPort] = {}
        failures: list[str] = []
        for place, listener in enumerate(self.plan.listeners):
            key_files = read_key_files(listener.address)
            if place in kept:
                found[place] = self._old_held[kept[place]]
                if listener.address.tls is not None:
                    # It warns of one that is not valid; a worker, which gets what was read here, does not.
                    with suppress(CertificateError):
                        Certificates(listener.address.tls, self._reactor)
                if self._old.listeners[kept[place]].address.tls == listener.address.tls:
                    # What root could read at the start, this user may not be able to.
                    key_files = {**self._old_key_files[kept[place]], **key_files}
            self.key_files.append(key_files)
        free = {place: self._old_held[place] for place in self.difference.closed}
        for place in self.difference.opened:
            listener = self.plan.listeners[place]
            same = [old for old in free if same_socket(self._old.listeners[old].address, listener.address)]
            try:
                found[place] = free.pop(same[0]) if same else self._hold(listener)
            except ListenError as error:
                failures.append(listener.cannot_listen(error))
        self.held = [found[place] for place in sorted(found)]
        for held in self.held:
            try:
                held.grow(self.plan.workers)
            except OSError as error:
                failures.append(f"{held.listening.place()} cannot be bound for every worker: {error.strerror}")
        self._undo.append(self._shrink)
        return failures

    def _hold(self, listener: Listener) -> HeldPort:
        address = listener.address
        room = None
        for place in self.difference.closed:
            port = self._old_held[place].listening.port
            number = getattr(port.getHost(), "port", 0)
            if may_clash(self._old.listeners[place].address, number if isinstance(number, int) else 0, address):
                if not address.port:
                    raise ListenError(
                        "its place is still that of another listener; remove that one first, by a reload of its own"
                    )
                room = self._bind_beside(address)
                break
        try:
            held = hold(self._reactor, address, self.plan.workers, room)
        finally:
            if room is not None:
                room.close()
        self._undo.append(held.close)
        return held

    @staticmethod
    def _bind_beside(address: Address) -> Room:
        # The old ones let others in, as there is one for each worker.
        try:
            return Room([bound_socket(address, beside=True).detach()])
        except OSError as error:
            raise ListenError(explain(error, address)) from error

    def _shrink(self) -> None:
        for held in self.held:
            if held in self._old_held:
                held.resize(self._old.workers)

    def begin(self, make_slot: Callable[..., Slot]) -> Deferred[None]:
        """Start the new workers. The Deferred fires when all are ready, or fails with `MistakeError`."""
        self._started = started = Deferred[None]()
        self._deadline = self._reactor.callLater(START_LIMIT, self.fail, _LATE)
        for place in range(self.plan.workers):
            slot = make_slot(place, ready=self._slot_ready, failed=self.fail, ended=partial(self._slot_ended, place))
            self.slots.append(slot)
        for slot in self.slots:
            if self._started is not None:
                slot.start()
        return started

    def _slot_ready(self) -> None:
        self._ready += 1
        if self._ready == self.plan.workers:
            self._settle().callback(None)

    def _slot_ended(self, place: int) -> None:
        self.fail(f"worker {place + 1} ended before all were ready")

    def fail(self, reason: str) -> None:
        """Give up."""
        if self._started is not None:
            self._settle().errback(MistakeError(reason.splitlines()))

    def _settle(self) -> Deferred[None]:
        started, self._started = self._started, None
        if self._deadline.active():
            self._deadline.cancel()
        assert started is not None
        return started

    def undo(self) -> list[Slot]:
        """Close what was bound, and end what was started. Returns the slots that are still to end."""
        while self._undo:
            self._undo.pop()()
        for slot in self.slots:
            slot.stop()
        return [slot for slot in self.slots if slot.child is not None]

    def finish(self, old_slots: Sequence[Slot]) -> str:
        """Have the new workers serve, and the old ones retire. Returns what changed, in one line.

        Raises `OSError` if the system has no room for their sockets; then `undo` is to be called.
        """
        difference, count = self.difference, len(self._old.listeners)
        gone = [place for place in difference.closed if self._old_held[place] not in self.held]
        # As long as this may fail, `undo` leaves everything as it was.
        for held in self.held:
            held.resize(self.plan.workers)
        # Ours first: a worker takes what waits for it, and then closes the port for good.
        for place in gone:
            self._old_held[place].close()
        for number, slot in enumerate(old_slots):
            closed = gone if number < self.plan.workers else range(count)
            slot.retire(Retirement(tuple(closed), difference.closed, self.plan.drain).to_line())
        for slot in self.slots:
            if slot.child is not None:
                slot.child.order(b"serve\n")
        return describe_changes(self._old, self.plan, difference)
