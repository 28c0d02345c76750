"""Builds, starts, drains and stops the service instances of a plan."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import ANYTHING, UserError, describe
from netsvc.base.text import escape
from netsvc.guard.admission import Gate, Level
from netsvc.interfaces import Context, INetworkService, IServiceInstance
from netsvc.metrics import Metrics
from netsvc.options import declared_settings, parse_settings
from netsvc.plan.address import is_plain
from netsvc.plan.plan import Plan, ServiceUse
from netsvc.service import PlainCore

#: Loads the service that a use names. Raises `UserError`.
Load = Callable[[ServiceUse], INetworkService]

_PLAIN = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")

_log = Logger(namespace="netsvc")


def service_directory(state: str | None, key: str) -> Path | None:
    """Return the state directory of the service with this key; None without a state directory."""
    if state is None:
        return None
    if not _PLAIN.fullmatch(key):
        # A path or module of a class that is served directly. The digest makes shortened names unique.
        digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
        key = f"{re.sub(r'[^A-Za-z0-9]+', '-', key)[-60:].strip('-')}.{digest}"
    return Path(state, key)


def build_instance(
    use: ServiceUse,
    service: INetworkService,
    reactor: Any,
    own_ports: set[int | bytes] | None = None,
    metrics: Metrics | None = None,
    *,
    state_directory: Path | None = None,
) -> IServiceInstance:
    """Build one service of a plan and check it. Raises `UserError`, which names the service, for any exception."""
    log = Logger(namespace=f"netsvc.{service.name}")
    own_ports = set() if own_ports is None else own_ports
    context = Context(reactor, log, state_directory, own_ports, metrics or Metrics(service.name))
    options = parse_settings(service.options, use.settings)
    try:
        instance = service.build(options, context)
        instance.check()
    except UserError:
        raise
    except ANYTHING as error:
        raise UserError([f"service {use.service} cannot be built: {describe(error)}"]) from error
    return instance


def build_protocol(instance: IServiceInstance, use: str, name: str) -> Any:
    """Build a protocol of an instance for one listener. Raises `UserError` if the service raises anything."""
    try:
        return instance.protocol(name)
    except ANYTHING as error:
        raise UserError([f"{use} {name} cannot be built: {describe(error)}"]) from error


def plain_listeners(plan: Plan, use: str, instance: IServiceInstance) -> list[str]:
    """Return a line for each listener of a service that is at a plain address and must not be."""
    confidential = getattr(instance, "confidential", ())
    return [
        each.cannot_listen(
            "clients send passwords or tokens, which others could read there; use tls:PORT:cert=FILE:key=FILE, "
            "127.0.0.1:PORT or unix:PATH"
        )
        for each in plan.listeners
        if each.use == use and each.protocol in confidential and is_plain(each.address)
    ]


def examine(plan: Plan, load: Load, reactor: Any) -> list[str]:
    """Build every service of a plan and its protocols without opening a port; return all errors a start would have."""
    errors: list[str] = []
    for key, use in plan.uses.items():
        try:
            instance = build_instance(use, load(use), reactor, state_directory=service_directory(plan.state, key))
            for name in dict.fromkeys(each.protocol for each in plan.listeners if each.use == key):
                build_protocol(instance, key, name)
            errors += plain_listeners(plan, key, instance)
        except UserError as error:
            errors += [f"{use.origin}{line}" for line in error.errors]
    limited = [
        ("process", plan.limits, plan.origin),
        *((key, use.limits, use.origin) for key, use in plan.uses.items()),
    ]
    for name, limits, origin in (*limited, *((each.use, each.limits, each.origin) for each in plan.listeners)):
        try:
            # This reads the files that list networks.
            Level(name, limits, reactor)
        except UserError as error:
            errors += [f"{origin}{line}" for line in error.errors]
    return list(dict.fromkeys(errors))


def service_notes(plan: Plan, load: Load, reactor: Any) -> list[str]:
    """Return what is worth knowing of a valid plan, in lines.

    That is what a service says itself, and each service whose core a reload replaces when its options change.
    """
    notes: list[str] = []
    for key, use in plan.uses.items():
        service = load(use)
        names = [setting.name for setting in declared_settings(service.options)]
        instance = build_instance(use, service, reactor, state_directory=service_directory(plan.state, key))
        if (own := getattr(instance, "notes", None)) is not None:
            protocols = {each.protocol for each in plan.listeners if each.use == key}
            notes += [f"{escape(key)}: {line}" for line in own(protocols)]
        if names and _keeps_data(service, instance) and getattr(instance, "reconfigure", None) is None:
            changes = f"a reload that changes {' or '.join(names)}"
            lost = "without the data of the old one"
            notes.append(f"{escape(key)}: {changes} makes a new core, {lost}; {_cure(instance)}")
    return notes


def _keeps_data(service: INetworkService, instance: IServiceInstance) -> bool:
    """Return whether a core may hold data that its connections share, which a new core would not have."""
    return not getattr(service, "parallel", False) and type(getattr(instance, "core", None)) is not PlainCore


def _cure(instance: IServiceInstance) -> str:
    core = type(getattr(instance, "core", instance)).__name__
    return f"to keep the core, give {core} a method reconfigure(options)"


class RunningService:
    """A running service: its instance, its level of limits, and the gates of its listeners."""

    def __init__(
        self, key: str, use: ServiceUse, service: INetworkService, instance: IServiceInstance, level: Level
    ) -> None:
        self.key = key
        self.use = use
        self.instance = instance
        #: The limits shared by all its listeners.
        self.level = level
        #: The gates that admitted its live connections.
        self.gates: set[Gate] = set()
        self._service = service
        self._started = False
        self._drained: Deferred[Any] | None = None

    @property
    def verifies_peers(self) -> bool:
        """Whether its datagram protocols verify the addresses of peers; this may depend on its options."""
        return bool(getattr(self.instance, "verifies_peers", getattr(self._service, "verifies_peers", False)))

    def protocol(self, name: str) -> Any:
        """Build a protocol for one listener. Raises `UserError`."""
        return build_protocol(self.instance, self.key, name)

    def start(self) -> None:
        """Start the instance. Raises `UserError`."""
        try:
            self.instance.start()
        except UserError:
            raise
        except ANYTHING as error:
            raise UserError([f"service {self.key} cannot start: {describe(error)}"]) from error
        self._started = True

    def adapts(self) -> bool:
        """Return whether the instance supports changing its options in place."""
        return getattr(self.instance, "reconfigure", None) is not None

    def reconfigure(self, use: ServiceUse) -> bool:
        """Apply other settings in place; return whether the service did. Raises `UserError`."""
        instance: Any = self.instance
        if not self.adapts() or (self.use.service, self.use.adhoc) != (use.service, use.adhoc):
            return False
        try:
            return bool(instance.reconfigure(parse_settings(self._service.options, use.settings)))
        except ANYTHING as error:
            raise UserError([f"service {self.key} cannot take its options: {describe(error)}"]) from error

    def loss(self, use: ServiceUse) -> str:
        """Return the line for the answer of a reload that has replaced this service because its use has changed.

        Empty if nothing is lost: the service declares `parallel`, or its core holds only options.
        """
        if not _keeps_data(self._service, self.instance):
            return ""
        before = self.use
        if (before.service, before.adhoc) != (use.service, use.adhoc):
            reason, cure = f"it is now {escape(use.service)}", ""
        else:
            names = sorted(before.settings.keys() | use.settings.keys())
            changed = [name for name in names if before.settings.get(name) != use.settings.get(name)]
            reason = f"{', '.join(changed)} changed"
            cure = "; its reconfigure(options) refused the change" if self.adapts() else f"; {_cure(self.instance)}"
        lost = "new connections do not see the data of the old one"
        return f"{escape(self.key)} has a new core, because {reason}: {lost}{cure}"

    def drain_seconds(self, default: float) -> float:
        """Return the seconds for its connections to end; `default` is the plan's `drain`."""
        return self.use.drain_seconds(default)

    def drain(self) -> Deferred[None]:
        """Ask the service, once, to end its conversations. The Deferred fires when they have ended; it never fails."""
        if self._drained is None:
            drained: Deferred[Any] = maybeDeferred(self.instance.drain)
            self._drained = drained.addErrback(self._not_drained)
        # Each caller gets a Deferred of its own.
        answer: Deferred[None] = Deferred()
        self._drained.addCallback(lambda _: answer.callback(None))
        return answer

    def _not_drained(self, failure: Failure) -> None:
        _log.failure("{name} failed to drain", failure, name=self.key)

    def stop(self) -> None:
        """Stop the instance if it was started."""
        if not self._started:
            return
        self._started = False
        try:
            self.instance.stop()
        except ANYTHING:  # the other services must stop all the same
            _log.failure("{name} failed to stop", name=self.key)
