"""The services of a plan: built, started, asked to end their conversations, and stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.discovery import ANYTHING, describe
from netsvc.errors import MistakeError
from netsvc.guard.gate import Gate
from netsvc.guard.level import Level
from netsvc.host.state import service_directory
from netsvc.interfaces import Context, INetworkService, IServiceInstance
from netsvc.metrics import Metrics
from netsvc.plan import Plan, ServiceUse
from netsvc.settings import parse_settings

__all__ = ["Load", "RunningService", "build_instance", "build_protocol", "examine"]

#: Loads the service that a use names. Raises `MistakeError`.
Load = Callable[[ServiceUse], INetworkService]

_log = Logger(namespace="netsvc")


def build_instance(
    use: ServiceUse,
    service: INetworkService,
    reactor: Any,
    own_ports: set[int | bytes] | None = None,
    metrics: Metrics | None = None,
    *,
    state_directory: Path | None = None,
) -> IServiceInstance:
    """Build one service of a plan and check it. Raises `MistakeError`; a service that raises is named in it."""
    log = Logger(namespace=f"netsvc.{service.name}")
    own_ports = set() if own_ports is None else own_ports
    context = Context(reactor, log, state_directory, own_ports, metrics or Metrics(service.name))
    options = parse_settings(service.options, use.settings)
    try:
        instance = service.build(options, context)
        instance.check()
    except MistakeError:
        raise
    except ANYTHING as error:
        raise MistakeError([f"service {use.service} cannot be built: {describe(error)}"]) from error
    return instance


def build_protocol(instance: IServiceInstance, use: str, name: str) -> Any:
    """Build a protocol of an instance for one listener. Raises `MistakeError` if its author's code does not."""
    try:
        return instance.protocol(name)
    except ANYTHING as error:
        raise MistakeError([f"{use} {name} cannot be built: {describe(error)}"]) from error


def examine(plan: Plan, load: Load, reactor: Any) -> list[str]:
    """Build every service of a plan and its protocols, open no port, and list all that would stop it."""
    mistakes: list[str] = []
    for key, use in plan.uses.items():
        try:
            instance = build_instance(use, load(use), reactor, state_directory=service_directory(plan.state, key))
            for name in dict.fromkeys(each.protocol for each in plan.listeners if each.use == key):
                build_protocol(instance, key, name)
        except MistakeError as error:
            mistakes += [f"{use.place}{mistake}" for mistake in error.mistakes]
    limited = [("process", plan.limits, plan.place), *((key, use.limits, use.place) for key, use in plan.uses.items())]
    for name, limits, place in (*limited, *((each.use, each.limits, each.place) for each in plan.listeners)):
        try:
            # It reads the files of networks.
            Level(name, limits, reactor)
        except MistakeError as error:
            mistakes += [f"{place}{mistake}" for mistake in error.mistakes]
    return list(dict.fromkeys(mistakes))


class RunningService:
    """One use of a service in the process: its instance, its level of limits, and the gates to it."""

    def __init__(
        self, key: str, use: ServiceUse, service: INetworkService, instance: IServiceInstance, level: Level
    ) -> None:
        self.key = key
        self.use = use
        self.instance = instance
        #: The limits of all its listeners together.
        self.level = level
        #: By which its connections have come, for as long as there are any.
        self.gates: set[Gate] = set()
        self._service = service
        self._started = False
        self._drained: Deferred[Any] | None = None

    @property
    def verifies_peers(self) -> bool:
        """Whether its datagram protocols know that a peer is where it says it is; this may depend on its options."""
        return bool(getattr(self.instance, "verifies_peers", getattr(self._service, "verifies_peers", False)))

    def protocol(self, name: str) -> Any:
        """Build a protocol for one listener. Raises `MistakeError`."""
        return build_protocol(self.instance, self.key, name)

    def start(self) -> None:
        """Start it. Raises `MistakeError`."""
        try:
            self.instance.start()
        except MistakeError:
            raise
        except ANYTHING as error:
            raise MistakeError([f"service {self.key} cannot start: {describe(error)}"]) from error
        self._started = True

    def adapts(self) -> bool:
        """Tell whether it may take new options in place."""
        return getattr(self.instance, "reconfigure", None) is not None

    def reconfigure(self, use: ServiceUse) -> bool:
        """Have it take the settings of another use of the same service in place; return whether it did.

        Raises `MistakeError`.
        """
        instance: Any = self.instance
        if not self.adapts() or (self.use.service, self.use.adhoc) != (use.service, use.adhoc):
            return False
        try:
            return bool(instance.reconfigure(parse_settings(self._service.options, use.settings)))
        except ANYTHING as error:
            raise MistakeError([f"service {self.key} cannot take its options: {describe(error)}"]) from error

    def drain_seconds(self, default: float) -> float:
        """Return how many seconds its conversations have to end; `default` is what the plan says."""
        return self.use.drain_seconds(default)

    def drain(self) -> Deferred[None]:
        """Ask it to end its conversations, once; the Deferred fires when it is done, and never fails."""
        if self._drained is None:
            drained: Deferred[Any] = maybeDeferred(self.instance.drain)
            self._drained = drained.addErrback(self._not_drained)
        # Whoever asks gets a Deferred of his own.
        answer: Deferred[None] = Deferred()
        self._drained.addCallback(lambda _: answer.callback(None))
        return answer

    def _not_drained(self, failure: Failure) -> None:
        _log.failure("{name} failed to drain", failure, name=self.key)

    def stop(self) -> None:
        """Stop it, if it was started."""
        if not self._started:
            return
        self._started = False
        try:
            self.instance.stop()
        except ANYTHING:  # one service's fault must not keep the others from stopping
            _log.failure("{name} failed to stop", name=self.key)
