"""The workers of one plan, and a reload: their replacement by the workers of another plan."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from netsvc.base.signals import blocked
from netsvc.listen.certificates import CertificateError
from netsvc.listen.handoff import Handoff, PassedPort, Sockets, WorkerStart
from netsvc.listen.opening import ListenError
from netsvc.listen.sockets import bind, explain
from netsvc.listen.tls import Certificates
from netsvc.plan.address import Address
from netsvc.plan.plan import Listener, Plan
from netsvc.server.difference import compare, describe_changes, may_clash, same_socket
from netsvc.workers.channel import COVER, FIRST_SOCKET, IGNORED, ORDERS, REPORTS, Retirement
from netsvc.workers.cover import CoverLink
from netsvc.workers.group import SETTLE, PortGroup, open_group
from netsvc.workers.handover import Handover
from netsvc.workers.keyfiles import read_key_files
from netsvc.workers.slot import Child, Slot


class Generation:
    """The workers of a plan: a slot for each worker, and the sockets and key files of each listener.

    While it is `paused`, a worker that starts accepts nothing before it is ordered to.
    """

    def __init__(self, plan: Plan, *, paused: bool) -> None:
        self.plan = plan
        self.paused = paused
        self.groups: list[PortGroup] = []
        self.key_files: list[Mapping[str, str]] = []
        self.slots: list[Slot] = []

    def spawn(self, reactor: Any, python: str, module: str, index: int, child: Child) -> None:
        """Start the process of worker `index` with the interpreter `python` and a reactor module. Raises `OSError`."""
        sockets: dict[int, int] = {}
        ports: list[PassedPort] = []
        for listener, group, key_files in zip(self.plan.listeners, self.groups, self.key_files, strict=True):
            number = FIRST_SOCKET + len(sockets)
            sockets[number] = group.socket_of(index).fileno()
            address = listener.address
            ports.append(
                PassedPort("listener", listener.label, address.kind, address.endpoint, [number], (), key_files)
            )
        search_path = [*map(str, sys.path)]
        start = WorkerStart(self.plan, module, search_path, os.environ.get("PYTHONPATH"), self.paused, index + 1, COVER)
        child.handoff = Handoff(os.getpid(), ports, worker=start)
        # The worker imports netsvc from where this process did.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))}
        # Sent to the process group, they would end a process that does not ignore them yet.
        link = CoverLink()
        with ExitStack() as undo, link.remote, open(os.devnull, "rb") as nothing, blocked(IGNORED):
            undo.callback(link.close)
            child.link = link
            reactor.spawnProcess(
                child,
                python,
                [python, "-P", "-m", "netsvc.workers.worker"],
                env=environment,
                childFDs={
                    **{0: nothing.fileno(), 1: "r", 2: "r", ORDERS: "w", REPORTS: "r"},
                    **{COVER: link.remote.fileno(), **sockets},
                },
            )
            undo.pop_all()

    def cover(self) -> None:
        """Let the workers that serve accept at the sockets of workers that are being replaced, and at no others."""
        if self.paused:
            return
        gone = {index: self._listening(index) for index, slot in enumerate(self.slots) if slot.is_being_replaced}
        for slot in self.slots:
            if slot.is_ready and not slot.is_stopping and slot.child is not None and slot.child.link is not None:
                slot.child.link.cover(gone)

    def _listening(self, worker: int) -> Mapping[int, int]:
        """Return the descriptors of the TCP sockets of a worker, by listener."""
        sockets = {index: group.socket_of(worker) for index, group in enumerate(self.groups) if not group.common}
        return {
            index: bound.fileno()
            for index, bound in sockets.items()
            if bound.type == socket.SOCK_STREAM and bound.fileno() >= 0
        }

    def serve(self, step: int, steps: int) -> None:
        """Order worker `step` to serve, as its counterpart has paused; at the last of `steps`, all workers."""
        is_last = step == steps - 1
        if is_last:
            self.paused = False
        for slot in self.slots if is_last else self.slots[step : step + 1]:
            if slot.child is not None:
                slot.child.serve()

    def retire(self, step: int, closed: Collection[int], drained: Collection[int]) -> None:
        """Order worker `step` to retire; see `Retirement`."""
        self.slots[step].retire(Retirement(tuple(closed), tuple(drained), self.plan.drain).to_line())

    def close(self) -> None:
        """Close the sockets in this process."""
        while self.groups:
            self.groups.pop().close()


class WorkerReload(Handover):
    """A reload: replaces the workers of a plan by the workers of another plan.

    `prepare` binds the new sockets. If the reload fails, `undo` is called, and nothing has changed for clients.
    `make_slot` returns the slot of one worker of `new`.
    """

    _late = "the new workers are not ready"
    _stuck = "the new workers were ready but did not start serving"

    def __init__(self, reactor: Any, old: Generation, plan: Plan, make_slot: Callable[..., Slot]) -> None:
        super().__init__(reactor)
        self.old = old
        self.new = Generation(plan, paused=True)
        self.difference = compare(old.plan, plan)
        self._make_slot = make_slot
        self._opened: list[PortGroup] = []
        self._ready = 0

    def prepare(self) -> list[str]:
        """Bind the new sockets and read the key files. Return all errors."""
        old, plan = self.old, self.new.plan
        kept = {new: before for before, new in self.difference.kept}
        found: dict[int, PortGroup] = {}
        failures: list[str] = []
        for index, listener in enumerate(plan.listeners):
            key_files = read_key_files(listener.address)
            if index in kept:
                found[index] = old.groups[kept[index]]
                if listener.address.tls is not None:
                    # This warns of invalid certificates; workers, which get the content read here, do not.
                    with suppress(CertificateError):
                        Certificates(listener.address.tls, self._clock)
                if old.plan.listeners[kept[index]].address.tls == listener.address.tls:
                    # Root may have read files at the start that this user cannot read.
                    key_files = {**old.key_files[kept[index]], **key_files}
            self.new.key_files.append(key_files)
        free = {index: old.groups[index] for index in self.difference.closed}
        for index in self.difference.opened:
            listener = plan.listeners[index]
            same = [before for before in free if same_socket(old.plan.listeners[before].address, listener.address)]
            try:
                found[index] = free.pop(same[0]) if same else self._open(listener)
            except ListenError as error:
                failures.append(listener.cannot_listen(error))
        self.new.groups = [found[index] for index in sorted(found)]
        for group in self.new.groups:
            try:
                group.grow(plan.workers)
            except OSError as error:
                failures.append(f"{group.opened.place()} cannot be bound for every worker: {error.strerror}")
        return failures

    def _open(self, listener: Listener) -> PortGroup:
        address = listener.address
        sockets = None
        for index in self.difference.closed:
            port = self.old.groups[index].opened.port
            number = getattr(port.getHost(), "port", 0)
            if may_clash(self.old.plan.listeners[index].address, number if isinstance(number, int) else 0, address):
                if not address.port:
                    raise ListenError(
                        "another listener still has this address; remove it in one reload, add this one in the next"
                    )
                sockets = _bind_beside(address)
                break
        try:
            group = open_group(self._clock, address, self.new.plan.workers, sockets)
        finally:
            if sockets is not None:
                sockets.close()
        self._opened.append(group)
        return group

    def undo(self) -> None:
        """Close the sockets that were bound, and end the workers that were started."""
        for group in self.new.groups:
            if group in self.old.groups:
                group.steer(self.old.plan.workers)
                group.resize(self.old.plan.workers)
                # Now to all that are left, as before.
                group.steer(self.old.plan.workers)
        while self._opened:
            self._opened.pop().close()
        for slot in self.new.slots:
            slot.stop()

    def _start(self) -> None:
        for index in range(self.new.plan.workers):
            ended = partial(self._slot_ended, index)
            slot = self._make_slot(self.new, index, ready=self._slot_ready, failed=self._slot_failed, ended=ended)
            self.new.slots.append(slot)
        for slot in self.new.slots:
            if self._failure is None:
                slot.start()

    def _slot_ready(self) -> None:
        self._ready += 1
        if self._ready == self.new.plan.workers:
            self.ready()

    def _slot_failed(self, reason: str) -> None:
        self.fail(*reason.splitlines())

    def _slot_ended(self, index: int) -> None:
        self.fail(f"worker {index + 1} ended before all were ready")

    def _prepare(self) -> float:
        workers = self.new.plan.workers
        if workers < len(self.old.slots):
            # A connection on its way to a closed socket would be reset.
            for group in self.new.groups:
                group.steer(workers)
            return SETTLE
        for group in self.new.groups:
            group.resize(workers)
        return 0.0

    def _steps(self) -> int:
        return len(self.old.slots)

    def _pause(self, step: int) -> None:
        gone = [index for index in self.difference.closed if self.old.groups[index] not in self.new.groups]
        if step == 0:
            # This process first: a worker accepts what waits in the socket, and then closes it for good.
            for index in gone:
                self.old.groups[index].close()
        closed: Sequence[int] = gone
        if step >= self.new.plan.workers:
            closed = range(len(self.old.groups))
            for group in self.new.groups:
                group.resize(self.new.plan.workers)
        seconds = self.new.plan.drain
        self.old.slots[step].retire(Retirement(tuple(closed), self.difference.closed, seconds).to_line())

    def _commit(self, step: int, steps: int) -> bool:
        self.new.serve(step, steps)
        return True

    def _stop(self) -> bool:
        self.undo()
        return True

    def summary(self) -> str:
        """Return a one-line summary of the changes."""
        return describe_changes(self.old.plan, self.new.plan, self.difference)


def _bind_beside(address: Address) -> Sockets:
    # Possible as the old sockets, one for each worker, have SO_REUSEPORT.
    try:
        return Sockets([bind(address, beside=True).detach()])
    except OSError as error:
        raise ListenError(explain(error, address)) from error
