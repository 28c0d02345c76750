"""The twistd plugins of a plan in a running process: which stay, which come and which go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from netsvc.embedded.passed import Passed, asked_of
from netsvc.embedded.service import EmbeddedService, embedded_labels
from netsvc.errors import MistakeError
from netsvc.guard import Guard, guarded_factory
from netsvc.guard.gate import Gate
from netsvc.guard.level import Level
from netsvc.hush import hushed
from netsvc.interfaces import Kind
from netsvc.listeners.handed import HandedPort
from netsvc.plan import Plan, TwistdUse

__all__ = ["Guest", "Moving"]

_log = Logger(namespace="netsvc")


class Guest:
    """One twistd plugin that runs, in the place of a service: it drains as its ports close, and is stopped after."""

    def __init__(self, embedded: EmbeddedService) -> None:
        self.embedded = embedded
        self.key = embedded.label
        self.gates: set[Gate] = set()
        self.is_open = True
        self._stopped: Deferred[None] | None = None

    def drain_seconds(self, default: float) -> float:
        """Return how many seconds its conversations have to end: those of the plan."""
        return default

    def drain(self) -> Deferred[None]:
        """Take what waits, and close the ports."""
        return self.embedded.stop_listening()

    def renew(self) -> None:
        """Admit the next connections by the limits as they are now."""
        for listening in self.embedded.listening():
            port: Any = listening.port
            for gated in (guarded_factory(getattr(port, "factory", None)), getattr(port, "sessions", None)):
                if gated is not None:
                    # It finds out anew what holds.
                    gated.gate = gated.gate

    def pause(self) -> None:
        """Take nothing, until `resume` is called: what comes waits."""
        for listening in self.embedded.listening():
            listening.port.stopReading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Take what waits, and what comes."""
        for listening in self.embedded.listening():
            listening.port.startReading()  # type: ignore[attr-defined]

    def handed(self) -> list[HandedPort]:
        """List its ports, as another process may take them over. Raises `MistakeError` if one cannot be."""
        if any(getattr(listening.port, "socket", None) is None for listening in self.embedded.listening()):
            raise MistakeError([f"{self.key} cannot be handed over, as it has a port that is no socket"])
        return [
            HandedPort(
                "plugin",
                self.key,
                "datagram" if listening.datagrams else "stream",
                asked_of(listening.port),
                [[listening.port.socket]],  # type: ignore[attr-defined]
                listening.files(),
                let_go=partial(hushed, listening.let_go),
                own=listening.own,
                pause=listening.port.stopReading,  # type: ignore[attr-defined]
                resume=listening.port.startReading,  # type: ignore[attr-defined]
            )
            for listening in self.embedded.listening()
        ]

    def takes(self, kind: Kind, number: int) -> bool:
        """Tell whether it has a port of this number."""
        ports = [each.port.getHost() for each in self.embedded.listening() if each.datagrams == (kind == "datagram")]
        return any(getattr(host, "port", None) == number for host in ports)

    def close(self) -> bool:
        """Close its ports at once, after taking what waits there; return whether there were any."""
        ports = self.embedded.listening()
        for listening in ports:
            listening.take_waiting()
            # Twisted's own line about it says less than ours.
            hushed(listening.abandon)
        return bool(ports)

    def note_gates(self, guard: Guard) -> set[Gate]:
        """Return the gates by which its connections have come."""
        level = self.embedded.level
        self.gates = {connection.gate for connection in guard.live if level in connection.gate.levels}
        return self.gates

    def stop(self) -> Deferred[None] | None:
        """Stop it, once. The Deferred fires when it has stopped."""
        if self._stopped is None:
            self._stopped = self.embedded.stop()
        return self._stopped


class Moving:
    """The passage from the plugins that run to those of another plan. See `netsvc.host.transition`.

    One whose words are the same goes on. One that changes is stopped, and started anew with its new words: where its
    ports are the same they are closed for that moment.
    """

    def __init__(self, running: Sequence[Guest], plan: Plan, guard: Guard, reactor: Any) -> None:
        #: Those of the new plan, in its order.
        self.guests: list[Guest] = []
        self.added: list[Guest] = []
        self.gone = list(running)
        #: Called with a line when a port cannot be opened after the start.
        self.failed: Callable[[str], None] = _warn
        #: In place of those that were closed for nothing, as the passage has failed; None if that failed as well.
        self.restored: dict[Guest, Guest | None] = {}
        #: Sockets that another process has opened for plugins of the same names.
        self.passed: Callable[[str], Passed | None] = lambda label: None
        self._plan = plan
        self._guard = guard
        self._reactor = reactor

    def prepare(
        self, final: list[Callable[[], object]], undo: list[Callable[[], object]], *, gives_room: bool
    ) -> list[str]:
        """Build what is new, and open its ports where nothing is in their way. Return every mistake.

        `gives_room` says that ports of listeners will be closed.
        """
        mistakes: list[str] = []
        found: dict[int, Guest] = {}
        for place, use in enumerate(self._plan.twistd):
            same = next((guest for guest in self.gone if guest.embedded.use.words == use.words), None)
            if same is None:
                continue
            found[place] = same
            self.gone.remove(same)
            try:
                final.append(same.embedded.level.prepare(use.limits))
                final.append(partial(setattr, same.embedded, "use", use))
            except MistakeError as error:
                mistakes += [f"{use.place}{mistake}" for mistake in error.mistakes]
        added = [(place, use) for place, use in enumerate(self._plan.twistd) if place not in found]
        taken = [*self._plan.uses, *(guest.key for guest in found.values())]
        for (place, use), label in zip(added, embedded_labels([use for _, use in added], taken), strict=True):
            try:
                guest = Guest(self._build(use, label))
            except MistakeError as error:
                mistakes += error.mistakes
                continue
            found[place] = guest
            self.added.append(guest)
            undo.append(partial(_abandon, guest))
            try:
                guest.embedded.privileged_start()
            except MistakeError as error:
                guest.embedded.abandon()
                guest.is_open = False
                # What is in its way may be what it shall replace.
                mistakes += [] if self.gone or gives_room else error.mistakes
        self.guests = [found[place] for place in sorted(found)]
        return mistakes

    def _build(self, use: TwistdUse, label: str) -> EmbeddedService:
        try:
            level = Level(label, use.limits, self._guard.clock)
        except MistakeError as error:
            raise MistakeError([f"{use.place}{mistake}" for mistake in error.mistakes]) from error
        passed = self.passed(label)
        return EmbeddedService(
            use, self._guard, self._reactor, label=label, level=level, failed=self.failed, passed=passed
        )

    def close(self, old: Guest, restore: list[Callable[[], object]]) -> None:
        """Close the ports of one that goes, as they are in the way of something new."""
        if old.close():
            restore.append(partial(self._restore, old))

    def start(self, restore: list[Callable[[], object]], make_room: Callable[[], None]) -> None:
        """Start what is new. Raises `MistakeError`. `make_room` closes the ports of listeners that go.

        `restore` gets what starts again that which was closed for it, to be called after all that `prepare` undoes.
        """
        for guest in self.added:
            if not guest.is_open:
                make_room()
                for old in self.gone:
                    self.close(old, restore)
                guest.embedded = self._build(guest.embedded.use, guest.key)
                guest.is_open = True
                guest.embedded.privileged_start()
            guest.embedded.start()

    def _restore(self, old: Guest) -> None:
        self.restored[old] = None
        try:
            embedded = self._build(old.embedded.use, old.key)
            try:
                embedded.privileged_start()
                embedded.start()
            except MistakeError:
                embedded.abandon()
                raise
        except MistakeError as error:
            for mistake in error.mistakes:
                _log.critical("{guest} does not run any more: {mistake}", guest=old.key, mistake=mistake)
            return
        self.restored[old] = Guest(embedded)


def _abandon(guest: Guest) -> None:
    if guest.is_open:
        guest.is_open = False
        guest.embedded.abandon()


def _warn(line: str) -> None:
    _log.critical("{line}", line=line)
