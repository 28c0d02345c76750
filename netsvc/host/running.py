"""Everything that runs in a process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from netsvc.datagram import ECHO_LIKE_PORTS
from netsvc.embedded.guests import Guest
from netsvc.guard import Guard
from netsvc.host.departures import Departures, Leaving
from netsvc.host.instances import RunningService
from netsvc.host.listener import RunningListener
from netsvc.listeners.opening import Listening
from netsvc.listeners.paths import Paths
from netsvc.metrics import Registry
from netsvc.plan import Plan

__all__ = ["Running"]


@dataclass
class Running:
    """Everything that runs in a process: the plan, its services by key, its listeners and plugins in its order."""

    reactor: Any
    guard: Guard
    departures: Departures
    plan: Plan = field(default_factory=lambda: Plan({}, ()))
    services: dict[str, RunningService] = field(default_factory=dict)
    listeners: list[RunningListener] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    #: See `netsvc.interfaces.Context`. One object for ever, for the services have it.
    own_ports: set[int | bytes] = field(default_factory=set)
    #: What services count. It goes on, whatever instance counts.
    metrics: Registry = field(default_factory=Registry)
    paths: Paths = field(init=False)

    def __post_init__(self) -> None:
        self.paths = Paths(self.reactor, self._open_now)

    def _open_now(self) -> list[tuple[str, Listening]]:
        return [(each.listener.label, each.listening) for each in self.listeners if each.listening is not None]

    def leave(
        self,
        services: Iterable[RunningService],
        listeners: Iterable[RunningListener],
        guests: Iterable[Guest],
        seconds: float,
    ) -> None:
        """Let go what is not in the plan any more. `seconds` are for what has no deadline of its own."""
        leaving: list[RunningService | Guest] = [*services, *guests]
        for guest in guests:
            guest.drain()
            guest.note_gates(self.guard)
        # A port that a service had may serve something else now.
        deadlines = {gate: each.service.drain_seconds(seconds) for each in listeners for gate in each.gates}
        deadlines |= {gate: each.drain_seconds(seconds) for each in leaving for gate in each.gates}
        if leaving or deadlines:
            self.departures.drain(leaving, deadlines, seconds)

    def note_ports(self) -> None:
        """Bring `own_ports` up to date, and look at the files of sockets from now on."""
        self.paths.note()
        open_now = {place for listener in self.listeners if (place := listener.own_place()) is not None}
        for guest in self.guests:
            open_now |= guest.embedded.own_ports()
        self.own_ports &= open_now | ECHO_LIKE_PORTS
        self.own_ports |= open_now

    def prune(self) -> None:
        """Forget the gates, and the accounts, of those who are gone, by which nobody comes any more."""
        self.guard.book.prune()
        wanted = {connection.gate for connection in self.guard.live}
        wanted |= {gate for listener in self.listeners if (gate := listener.gate()) is not None}
        holders: list[RunningListener | Leaving] = [*self.listeners, *self.services.values(), *self.departures.retiring]
        for holder in holders:
            holder.gates &= wanted
