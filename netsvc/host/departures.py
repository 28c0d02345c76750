"""What goes on in a process until its last connections have ended: drains, and services that others have replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from netsvc.guard import Connection, Guard
from netsvc.guard.gate import Gate
from netsvc.host.drain import Drain
from netsvc.host.instances import RunningService
from netsvc.host.summary import Summary, log_summary

__all__ = ["Departures", "Leaving"]


class Leaving(Protocol):
    """What has served connections, a `RunningService` or a `Guest`."""

    key: str
    gates: set[Gate]

    def drain_seconds(self, default: float) -> float:
        """Return how many seconds its conversations have to end; `default` is what the plan says."""

    def drain(self) -> Deferred[None] | None:
        """End its conversations."""

    def stop(self) -> object:
        """Stop."""


class Departures:
    """Stops services when nobody is there any more whom they serve."""

    def __init__(self, clock: Any, guard: Guard) -> None:
        #: Those that serve the connections they have, and get no new ones; and one connection of each.
        self.retiring: dict[Leaving, Connection | None] = {}
        self._clock = clock
        self._guard = guard
        self._drains: dict[Drain, list[Leaving]] = {}
        self._over: Deferred[None] | None = None

    def retire(self, service: Leaving) -> None:
        """Stop a service when its last connection has ended, however long that takes."""
        self.retiring[service] = None
        self._watch()

    def drain(self, services: Iterable[Leaving], deadlines: Mapping[Gate, float], seconds: float) -> None:
        """End all connections that have come by these gates, in the seconds of each, and stop these services then.

        `seconds` are those that the plan gives to a service that has none of its own.
        """
        leaving = list(services)
        asked = [(each.key, each, each.drain_seconds(seconds)) for each in leaving]
        drain = Drain(self._clock, self._guard, asked, seconds, deadlines, alone=True)
        self._drains[drain] = leaving
        self._watch()
        drain.finished.addCallback(self._drained, drain)
        drain.begin()

    def hasten(self, keys: Collection[str]) -> list[RunningService]:
        """Wait no longer for services with one of these keys, and return them: they are to be drained."""
        leaving = [each for each in self.retiring if isinstance(each, RunningService) and each.key in keys]
        for service in leaving:
            del self.retiring[service]
        return leaving

    def over(self) -> Deferred[None]:
        """Return a Deferred that fires when nothing goes on any more. To be asked once."""
        self._over = Deferred()
        over = self._over
        self._watch()
        return over

    def take_over(self) -> list[Leaving]:
        """Wait for nothing any more, and return the services that are still there."""
        services = [*self.retiring, *(each for leaving in self._drains.values() for each in leaving)]
        for drain in self._drains:
            drain.give_up()
        self.retiring.clear()
        self._drains.clear()
        self._guard.ended = _nothing
        return services

    def _drained(self, summary: Summary, drain: Drain) -> None:
        if summary.began:
            log_summary("drained", summary)
        for service in self._drains.pop(drain, []):
            service.stop()
        self._watch()

    def _watch(self) -> None:
        # Nothing is called for the connections that end while nobody waits for that.
        self._guard.ended = self._look
        self._look()

    def _look(self) -> None:
        for drain in list(self._drains):
            drain.look()
        live = self._guard.live
        for service, one in list(self.retiring.items()):
            # One that stops may end connections, and so what goes on here goes on once more within.
            if one in live or service not in self.retiring:
                continue
            another = next((connection for connection in live if connection.gate in service.gates), None)
            if another is not None:
                self.retiring[service] = another
            else:
                del self.retiring[service]
                service.stop()
        if not (self.retiring or self._drains):
            self._guard.ended = _nothing
            if self._over is not None:
                over, self._over = self._over, None
                over.callback(None)


def _nothing() -> None:
    """Wait for nothing."""
