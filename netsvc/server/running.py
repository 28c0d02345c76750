"""The running plan of a process, with its services, listeners and plugins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netsvc.datagram import ECHO_LIKE_PORTS
from netsvc.guard import Guard
from netsvc.listen.port import OpenPort
from netsvc.listen.socket_file import SocketFiles
from netsvc.metrics import Registry
from netsvc.plan.plan import Plan
from netsvc.server.drain import Drainable, Drains
from netsvc.server.instances import RunningService
from netsvc.server.listener import RunningListener

if TYPE_CHECKING:
    from netsvc.embedded.service import EmbeddedService


@dataclass
class RunningPlan:
    """The running plan: its services by key, its listeners and plugins in the order of the plan, and their drains."""

    reactor: Any
    guard: Guard
    drains: Drains
    plan: Plan = field(default_factory=lambda: Plan({}, ()))
    services: dict[str, RunningService] = field(default_factory=dict)
    listeners: list[RunningListener] = field(default_factory=list)
    plugins: list[EmbeddedService] = field(default_factory=list)
    #: See `netsvc.interfaces.Context`. Always the same object: the services hold it.
    own_ports: set[int | bytes] = field(default_factory=set)
    #: The metrics of services, which outlive their instances.
    metrics: Registry = field(default_factory=Registry)
    files: SocketFiles = field(init=False)

    def __post_init__(self) -> None:
        self.files = SocketFiles(self.reactor, self._open_now)

    def _open_now(self) -> list[tuple[str, OpenPort]]:
        return [(each.listener.label, each.listening) for each in self.listeners if each.listening is not None]

    def leave(
        self,
        services: Iterable[RunningService],
        listeners: Iterable[RunningListener],
        plugins: Iterable[EmbeddedService],
        seconds: float,
    ) -> None:
        """Drain what is no longer in the plan. `seconds` applies to services and gates without their own deadline."""
        for plugin in plugins:
            plugin.drain()
            plugin.note_gates(self.guard)
        leaving: list[Drainable] = [*services, *plugins]
        gates = {gate: each.service.drain_seconds(seconds) for each in listeners for gate in each.gates}
        if leaving or gates:
            self.drains.drain(leaving, gates, seconds)

    def note_ports(self) -> None:
        """Update `own_ports`, and the socket files to watch."""
        self.files.note()
        open_now = {place for listener in self.listeners if (place := listener.own_datagram_address()) is not None}
        for plugin in self.plugins:
            open_now |= plugin.own_ports()
        self.own_ports &= open_now | ECHO_LIKE_PORTS
        self.own_ports |= open_now

    def prune(self) -> None:
        """Drop the gates and counters that no connection and no listener uses."""
        self.guard.book.prune()
        wanted = {connection.gate for connection in self.guard.live}
        wanted |= {gate for listener in self.listeners if (gate := listener.gate()) is not None}
        holders: list[RunningListener | Drainable] = [*self.listeners, *self.services.values(), *self.drains.retiring]
        for holder in holders:
            holder.gates &= wanted
