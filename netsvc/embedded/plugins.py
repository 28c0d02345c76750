"""The change from the twistd plugins of the running plan to the plugins of another plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.base.steps import Steps
from netsvc.guard import Guard
from netsvc.guard.admission import Level
from netsvc.listen.handoff import Sockets
from netsvc.plan.plan import Plan, TwistdUse

if TYPE_CHECKING:
    from netsvc.embedded.service import EmbeddedService

_log = Logger(namespace="netsvc")


class PluginChange:
    """The change from the running plugins to the plugins of another plan; see `netsvc.server.transition`.

    A plugin with unchanged arguments continues. A changed plugin is stopped, and started with its new arguments; ports
    that both need are closed for that moment.
    """

    def __init__(self, running: Sequence[EmbeddedService], plan: Plan, guard: Guard, reactor: Any) -> None:
        #: The plugins of the new plan, in its order.
        self.plugins: list[EmbeddedService] = []
        self.added: list[EmbeddedService] = []
        self.gone = list(running)
        #: Called with a line when a port cannot be opened after the start.
        self.failed: Callable[[str], None] = _warn
        #: The replacements of plugins that were closed before the change failed; None if a replacement failed, too.
        self.restored: dict[EmbeddedService, EmbeddedService | None] = {}
        #: Returns the sockets that another process has passed for a plugin with this label.
        self.passed: Callable[[str], Sockets | None] = lambda label: None
        #: New plugins whose addresses were occupied; they are built again when these are free.
        self._blocked: list[EmbeddedService] = []
        self._plan = plan
        self._guard = guard
        self._reactor = reactor

    def prepare(self, steps: Steps, *, gives_room: bool) -> list[str]:
        """Build the new plugins, and open their ports unless another port occupies an address. Return all errors.

        `gives_room` means that ports of listeners will be closed, so that an occupied address is not an error yet.
        """
        if not self._plan.twistd:
            return []
        # Imports much of Twisted, which a plan without plugins does not need.
        from netsvc.embedded.service import embedded_labels

        errors: list[str] = []
        found: dict[int, EmbeddedService] = {}
        for index, use in enumerate(self._plan.twistd):
            same = next((plugin for plugin in self.gone if plugin.use.arguments == use.arguments), None)
            if same is None:
                continue
            found[index] = same
            self.gone.remove(same)
            try:
                steps.on_commit(same.level.prepare(use.limits))
                steps.on_commit(partial(setattr, same, "use", use))
            except UserError as error:
                errors += [f"{use.origin}{line}" for line in error.errors]
        added = [(index, use) for index, use in enumerate(self._plan.twistd) if index not in found]
        taken = [*self._plan.uses, *(plugin.key for plugin in found.values())]
        for (index, use), label in zip(added, embedded_labels([use for _, use in added], taken), strict=True):
            try:
                plugin = self._build(use, label)
            except UserError as error:
                errors += error.errors
                continue
            found[index] = plugin
            self.added.append(plugin)
            try:
                plugin.privileged_start()
                steps.on_undo(plugin.abandon)
            except UserError as error:
                plugin.abandon()
                self._blocked.append(plugin)
                # The port at its address may be one that is going to be closed.
                errors += [] if self.gone or gives_room else error.errors
        self.plugins = [found[index] for index in sorted(found)]
        return errors

    def _build(self, use: TwistdUse, label: str) -> EmbeddedService:
        from netsvc.embedded.service import EmbeddedService

        try:
            level = Level(label, use.limits, self._guard.clock)
        except UserError as error:
            raise UserError([f"{use.origin}{line}" for line in error.errors]) from error
        passed = self.passed(label)
        return EmbeddedService(
            use, self._guard, self._reactor, label=label, level=level, failed=self.failed, passed=passed
        )

    def close(self, old: EmbeddedService, steps: Steps) -> None:
        """Close the ports of a removed plugin, which occupy addresses of new ports."""
        if old.close():
            # Last: after the new ports are closed.
            steps.on_undo(partial(self._restore, old), last=True)

    def start(self, steps: Steps, make_room: Callable[[], None]) -> None:
        """Start the new plugins. Raises `UserError`. `make_room` closes the ports of removed listeners."""
        for plugin in self._blocked:
            make_room()
            for old in self.gone:
                self.close(old, steps)
            again = self._build(plugin.use, plugin.key)
            steps.on_undo(again.abandon)
            for plugins in (self.added, self.plugins):
                plugins[plugins.index(plugin)] = again
            again.privileged_start()
        for plugin in self.added:
            plugin.start()

    def _restore(self, old: EmbeddedService) -> None:
        self.restored[old] = None
        try:
            embedded = self._build(old.use, old.key)
            try:
                embedded.privileged_start()
                embedded.start()
            except UserError:
                embedded.abandon()
                raise
        except UserError as error:
            for line in error.errors:
                _log.critical("{plugin} does not run any more: {line}", plugin=old.key, line=line)
            return
        self.restored[old] = embedded


def _warn(line: str) -> None:
    _log.critical("{line}", line=line)
