"""The host: makes the running process match a plan."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger, LoggingFile

from netsvc.discovery import ANYTHING, describe
from netsvc.drain import CLOSE_GRACE, Drain
from netsvc.errors import MistakeError, StartError
from netsvc.guard import Guard
from netsvc.hush import hushed
from netsvc.inherited import Inherited
from netsvc.interfaces import Context, INetworkService, IServiceInstance
from netsvc.listeners import ListenError, Listening, listen
from netsvc.plan import Listener, Plan, ServiceUse
from netsvc.process import allow_descriptors, take_over_signals
from netsvc.settings import parse_settings

__all__ = ["Host", "build_instance", "build_protocol", "die", "examine", "start_error"]

_log = Logger(namespace="netsvc")


def build_instance(
    use: ServiceUse, service: INetworkService, reactor: Any, own_ports: set[int | bytes] | None = None
) -> IServiceInstance:
    """Build one service of a plan and check it. Raises `MistakeError`; a service that raises is named in it."""
    log = Logger(namespace=f"netsvc.{service.name}")
    context = Context(reactor, log, own_ports=set() if own_ports is None else own_ports)
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


def examine(plan: Plan, load: Callable[[ServiceUse], INetworkService], reactor: Any) -> list[str]:
    """Build every service of a plan and its protocols, open no port, and list all that would stop it."""
    mistakes: list[str] = []
    for key, use in plan.uses.items():
        try:
            instance = build_instance(use, load(use), reactor)
            for name in dict.fromkeys(each.protocol for each in plan.listeners if each.use == key):
                build_protocol(instance, key, name)
        except MistakeError as error:
            mistakes += error.mistakes
    return mistakes


def start_error(mistakes: Sequence[str]) -> StartError:
    """Make the error that ends the process, and see to it that it is read.

    twistd may have turned stderr into a part of the log by now, and in a daemon nobody sees it: so the lines
    go to the log, and to the real stderr, and Python shall not print them once more.
    """
    error = StartError("\n".join(mistakes))
    if isinstance(sys.stderr, LoggingFile):
        if not _same_terminal():
            for mistake in mistakes:
                _log.critical("{mistake}", mistake=mistake)
        _print(error)
        error.code = 1
    return error


def _same_terminal() -> bool:
    """Tell whether the log and the errors go to one terminal, where a line need not stand twice."""
    try:
        return os.isatty(1) and os.isatty(2) and os.path.sameopenfile(1, 2)
    except OSError:
        return False


def _print(error: StartError) -> None:
    if sys.__stderr__ is not None:
        print(error, file=sys.__stderr__, flush=True)


def die(reason: str) -> None:
    """End the process with `reason` on stderr and exit status 1, from inside the running reactor."""
    from twisted.internet import reactor

    def leave() -> None:
        sys.stdout.flush()
        os._exit(1)

    _log.critical("{reason}", reason=reason)
    _print(StartError(reason))
    # The reactor swallows a SystemExit; twistd's clean-up shall run all the same.
    atexit.register(leave)
    reactor.stop()


class Host(MultiService):
    """Runs a plan: all of it, or nothing.

    Ports are bound in `privilegedStartService`, before twistd sheds its privileges; services start after
    it. Every mistake found on the way is a line of the one `StartError` raised, and nothing stays open.
    `stopService` drains: see `netsvc.drain`.

    In a worker, `inherited` has the sockets of each listener of the plan, and `ready` is called when all are open,
    for what listens where has been said.
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[ServiceUse], INetworkService],
        reactor: Any = None,
        warnings: Sequence[str] = (),
        die: Callable[[str], None] = die,
        *,
        inherited: Sequence[Inherited] = (),
        ready: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.guard = Guard()
        self._load = load
        self._reactor = reactor
        self._warnings = warnings
        self._die = die
        self._inherited = inherited
        self._tell_ready = ready
        self._instances: dict[str, IServiceInstance] = {}
        self._started: list[IServiceInstance] = []
        self._listening: list[tuple[Listener, Deferred[Listening]]] = []
        self._open: list[Listening] = []
        self._own_ports: set[int | bytes] = set()
        self._drain: Drain | None = None

    def privilegedStartService(self) -> None:
        """Build the services and bind every port."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        super().privilegedStartService()
        if type(self._reactor).__name__ != "SelectReactor":
            allow_descriptors()
        # Both, so that one start tells all that is wrong.
        mistakes = self._build() + self._bind()
        if mistakes:
            self._abandon()
            raise start_error(mistakes)

    def _build(self) -> list[str]:
        mistakes: list[str] = []
        for key, use in self.plan.uses.items():
            try:
                self._instances[key] = build_instance(use, self._load(use), self._reactor, self._own_ports)
            except MistakeError as error:
                mistakes += error.mistakes
        return mistakes

    def _bind(self) -> list[str]:
        failures: list[str] = []
        for listener, inherited in zip_longest(self.plan.listeners, self._inherited):
            if listener.use not in self._instances:
                continue
            label = f"{listener.use} {listener.protocol}"
            try:
                protocol = build_protocol(self._instances[listener.use], listener.use, listener.protocol)
            except MistakeError as error:
                failures += error.mistakes
                continue
            if listener.address.kind == "stream":
                protocol = self.guard.wrap(protocol, label)
            else:
                protocol.noisy = False
            # Twisted's "starting on" comes before the start is sure, and says less than our own line.
            opening = hushed(listen, self._reactor, listener.address, protocol, inherited)
            opening.addCallback(self._opened)
            opening.addErrback(self._not_opened, f"{label} cannot listen on {listener.address.text}", failures)
            self._listening.append((listener, opening))
        return failures

    def _opened(self, listening: Listening) -> Listening:
        self._open.append(listening)
        host = listening.port.getHost()
        if getattr(host, "type", "") == "UDP":
            self._own_ports.add(host.port)  # type: ignore[attr-defined]
        elif listening.datagrams:
            self._own_ports.add(host.name)  # type: ignore[attr-defined]
        return listening

    def _not_opened(self, failure: Any, where: str, failures: list[str]) -> None:
        failure.trap(ListenError)
        line = f"{where}: {failure.value}"
        if self.running:
            # An endpoint that takes its time failed after start-up.
            self._die(line)
        else:
            failures.append(line)

    def startService(self) -> None:
        """Start the services, and say what listens where."""
        if not self._listening:
            # twist starts services without a privileged start.
            self.privilegedStartService()
        mistakes: list[str] = []
        for key, instance in self._instances.items():
            try:
                instance.start()
            except MistakeError as error:
                mistakes += error.mistakes
            except ANYTHING as error:
                mistakes.append(f"service {key} cannot start: {describe(error)}")
            else:
                self._started.append(instance)
        if mistakes:
            self._abandon()
            self._stop_instances()
            raise start_error(mistakes)
        super().startService()
        for warning in self._warnings:
            _log.warn("{warning}", warning=warning)
        for listener, opening in self._listening:
            opening.addCallback(self._announce, listener)
        self._reactor.callWhenRunning(take_over_signals, self._reactor, self.force)
        # Not before the signals are taken over: whoever reads `ready` may send one.
        self._reactor.callWhenRunning(self._await_opening)

    def _announce(self, listening: Listening | None, listener: Listener) -> Listening | None:
        if listening and self._tell_ready is None:
            _log.info(
                "{service} {protocol} listens on {place}",
                service=listener.use,
                protocol=listener.protocol,
                place=listening.place(),
            )
        return listening

    def _await_opening(self) -> None:
        DeferredList([opening for _, opening in self._listening]).addCallback(self._ready)

    def _ready(self, _results: object) -> None:
        if len(self._open) == len(self._listening):
            (self._tell_ready or partial(_log.info, "ready"))()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, drain, stop the services. The Deferred fires when all is over; it never fails."""
        for listening in self._open:
            listening.take_waiting()
        closing = DeferredList([listening.stop() for listening in self._open], consumeErrors=True)
        self._open.clear()
        self._drain = Drain(self._reactor, self.guard, list(self._instances.items()), self.plan.drain)
        self._drain.begin()
        return self._drain.finished.addCallback(self._drained, closing)

    def _drained(self, summary: str, closing: Deferred[Any]) -> Any:
        _log.info("stopped: {summary}", summary=summary)
        self._stop_instances()
        # A port whose protocol fails in stopProtocol never says that it is closed.
        closing.addTimeout(CLOSE_GRACE, self._reactor)
        return closing.addBoth(lambda _: super(Host, self).stopService()).addCallback(lambda _: None)

    def force(self) -> None:
        """Wait no longer, if it drains; may be called by a signal handler."""
        if self._drain is not None:
            self._reactor.callFromThread(self._drain.force)

    def _abandon(self) -> None:
        while self._open:
            self._open.pop().abandon()

    def _stop_instances(self) -> None:
        while self._started:
            instance = self._started.pop()
            try:
                instance.stop()
            except ANYTHING:  # one service's fault must not keep the others from stopping
                _log.failure("a service failed to stop")
