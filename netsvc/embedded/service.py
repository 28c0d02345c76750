"""Runs another twistd plugin in this process: `--with "web --listen tcp:8080 --path public"`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from twisted.application.service import Application, IService, IServiceMaker
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.python.failure import Failure

from netsvc.base.errors import ANYTHING, UserError, describe
from netsvc.base.text import escape
from netsvc.config.conflicts import Claim
from netsvc.config.discovery import discover, nearest
from netsvc.embedded.tree import Ports, addresses, has_datagrams, place_of, stop_services, surround, unreachable
from netsvc.guard import Guard, guarded_factory
from netsvc.guard.admission import Gate, Level
from netsvc.interfaces import Kind
from netsvc.listen.handoff import OfferedPort, Sockets, asked_of
from netsvc.listen.port import OpenPort
from netsvc.listen.quiet import quietly
from netsvc.listen.sockets import explain
from netsvc.plan.address import Address
from netsvc.plan.limits import Limits, in_force
from netsvc.plan.plan import TwistdUse

_log = Logger(namespace="netsvc")


class EmbeddedService:
    """Builds, guards, starts, drains and stops one twistd plugin with its options.

    Its ports are behind `guard`, with the limits of `level`, or of a new level named `label`. `notes` has a line for
    each part that has no limits or will not work. `failed` is called with a line if a port cannot be opened after the
    start. `passed` sockets are used instead of new ones. Raises `UserError` if the plugin cannot be built.

    The plugin has its own Twisted application: a log, a user or a process name that it sets there has no effect, and
    the application is not saved.
    """

    def __init__(
        self,
        use: TwistdUse,
        guard: Guard,
        reactor: Any,
        *,
        label: str | None = None,
        level: Any = None,
        failed: Callable[[str], None] = lambda line: None,
        passed: Sockets | None = None,
    ) -> None:
        self.use = use
        self.key = label or use.arguments[0]
        self.level = level or Level(self.key, use.limits, guard.clock)
        #: The gates that admitted its live connections; see `note_gates`.
        self.gates: set[Gate] = set()
        self._origin = _origin(use)
        self._failed = failed
        self._is_announced = False
        self._starting = False
        self._errors: list[str] = []
        self._opening: Deferred[None] | None = None
        self._closing: Deferred[Any] | None = None
        self._stopped: Deferred[None] | None = None
        self._ports = Ports(guard, self.key, self.level, reactor, passed)
        self._ports.opened = self._opened
        self._ports.failed = self._not_opened
        application: Any = Application(self.key)
        self._tree: Any = IService(application)
        try:
            with self._ports.watched():
                _join(use, _make(use), application)
        except UserError:
            self.abandon()
            raise
        surround(self._tree, self._ports)
        self.notes = list(_notes(self.key, self._tree, application, [guard.process.limits, self.level.limits]))

    def privileged_start(self) -> None:
        """Open its ports, before privileges are dropped. Raises `UserError`; `abandon` closes what is open."""
        self._start("privilegedStartService")

    def start(self) -> None:
        """Start its services. Raises `UserError`; `abandon` undoes a failed start."""
        self._start("startService")

    def _start(self, method: str) -> None:
        self._starting = True
        # A start may be repeated after `abandon`.
        self._errors.clear()
        try:
            with self._ports.watched():
                getattr(self._tree, method)()
        except CannotListenError:
            self._not_opened(Failure())
        except ANYTHING as error:
            # The error of an endpoint, which the service raises again, already has a line.
            if not self._errors:
                raise _cannot(self.use, "start", error) from error
        finally:
            self._starting = False
        if self._errors:
            raise UserError(self._errors)

    def _not_opened(self, failure: Failure) -> None:
        error: Any = failure.value
        if isinstance(error, CannotListenError):
            address = Address("", "datagram" if error is self._ports.datagrams_refused else "stream", "inet")
            line = f"{self._origin}cannot listen: {explain(error, address)}"
        else:
            line = f"{self._origin}cannot listen: {describe(error)}"
        if self._starting:
            self._errors.append(line)
        else:
            self._failed(line)
            self._look()

    def _opened(self, label: str, listening: OpenPort) -> None:
        if self._is_announced:
            _log.info("{label} listens on {place}", label=label, place=place_of(listening))
        self._look()

    def lines(self) -> list[str]:
        """Return a line for each open port, with the real port numbers. Ports that open later are logged when open."""
        self._is_announced = True
        lines = [f"{label} listens on {place_of(listening)}" for label, listening in self._ports.open()]
        return lines or ([] if self._ports.pending else [f"{self.key} runs, and listens nowhere"])

    def claims(self) -> list[Claim]:
        """Return the addresses that it will bind, as far as they can be known."""
        return [Claim(self.key, address, self._origin) for address in addresses(self._tree)]

    def listening(self) -> list[OpenPort]:
        """Return its open ports."""
        return [each for _, each in self._ports.open()]

    def places(self) -> list[str]:
        """Return the addresses of its open ports."""
        return [place_of(each) for each in self.listening()]

    def takes(self, kind: Kind, number: int) -> bool:
        """Return whether it has an open port with this number."""
        ports = [each.port.getHost() for each in self.listening() if each.datagrams == (kind == "datagram")]
        return any(getattr(host, "port", None) == number for host in ports)

    def offered(self) -> list[OfferedPort]:
        """Describe its open ports to another process. Raises `UserError` if one cannot be handed over."""
        ports = self.listening()
        if any(opened.socket is None for opened in ports):
            raise UserError([f"{self.key} cannot be handed over: it has a port that is not a socket"])
        kinds: list[Kind] = ["datagram" if opened.datagrams else "stream" for opened in ports]
        return [
            OfferedPort("plugin", self.key, kind, asked_of(opened.port), [opened.socket], opened, opened.files())
            for kind, opened in zip(kinds, ports, strict=True)
        ]

    def pause(self) -> None:
        """Stop accepting until `resume` is called; new connections and datagrams wait in the kernel."""
        for opened in self.listening():
            opened.pause()

    def resume(self) -> None:
        """Accept again, first what waits in the kernel."""
        for opened in self.listening():
            opened.resume()

    def apply_limits(self) -> None:
        """Apply the current limits to new connections and sessions."""
        for listening in self.listening():
            port: Any = listening.port
            for gated in (guarded_factory(getattr(port, "factory", None)), getattr(port, "sessions", None)):
                if gated is not None:
                    # Setting the gate reads the limits again.
                    gated.gate = gated.gate

    def note_gates(self, guard: Guard) -> None:
        """Update `gates`."""
        self.gates = {connection.gate for connection in guard.live if self.level in connection.gate.levels}

    def own_ports(self) -> set[int | bytes]:
        """Return its UDP ports and datagram socket paths, for `netsvc.interfaces.Context`."""
        hosts: list[Any] = [each.port.getHost() for _, each in self._ports.open() if each.datagrams]
        return {host.port if hasattr(host, "port") else host.name for host in hosts}

    def opened(self) -> Deferred[None]:
        """Return a Deferred that fires when every endpoint is open or has failed."""
        waiting: Deferred[None] = Deferred()
        self._opening = waiting
        self._look()
        return waiting

    def _look(self) -> None:
        if self._opening is not None and not self._ports.pending:
            opening, self._opening = self._opening, None
            opening.callback(None)

    def drain_seconds(self, default: float) -> float:
        """Return the seconds for its connections to end: the plan's."""
        return default

    def drain(self) -> Deferred[None]:
        """Accept what waits at its ports, and close them. Fires when they are closed; never fails."""
        if self._closing is None:
            ports = self.listening()
            for listening in ports:
                listening.take_waiting()
            self._closing = DeferredList([listening.stop() for listening in ports])
        # Each caller gets a Deferred of its own.
        answer: Deferred[None] = Deferred()
        self._closing.addCallback(lambda _: answer.callback(None))
        return answer

    def close(self) -> bool:
        """Close its ports at once, after accepting what waits there; return whether there were any."""
        ports = self.listening()
        for listening in ports:
            listening.take_waiting()
            # Our own line has more than Twisted's.
            quietly(listening.abandon)
        return bool(ports)

    def stop(self) -> Deferred[None]:
        """Stop its services, once, after its connections have ended. Fires when all have stopped; never fails."""
        if self._stopped is None:
            stopping: Deferred[Any] = self.drain()
            stopping.addCallback(lambda _: DeferredList(stop_services(self._tree), consumeErrors=True))
            stopping.addCallback(self._services_stopped)
            self._stopped = stopping.addErrback(self._not_stopped)
        return self._stopped

    def _services_stopped(self, results: list[tuple[bool, Any]]) -> None:
        for succeeded, failure in results:
            if not succeeded:
                self._not_stopped(failure)
        self._ports.release()

    def _not_stopped(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            _log.warn("{label} has not stopped in time", label=self.key)
            return
        _log.failure("{label} failed to stop", failure, label=self.key)

    def abandon(self) -> None:
        """Undo a failed or canceled start, at once. The plugin may be started again."""
        for listening in self.listening():
            listening.abandon()
        # A service that was not started may fail to stop.
        DeferredList(stop_services(self._tree), consumeErrors=True)
        self._ports.release()


def embedded_labels(uses: Sequence[TwistdUse], taken: Collection[str] = ()) -> list[str]:
    """Return a label for each use: the plugin's name, `web`, or with a number, `web-2`, if that is taken."""
    labels: list[str] = []
    for use in uses:
        label, number = use.arguments[0], 2
        while label in taken or label in labels:
            label, number = f"{use.arguments[0]}-{number}", number + 1
        labels.append(label)
    return labels


def examine_twistd(use: TwistdUse, process: Limits | None = None) -> tuple[list[str], list[str], list[Claim]]:
    """Build a plugin without opening ports.

    Returns its errors, notes about parts without limits or effect, and the addresses that it will bind.

    The side effects of building remain: some plugins write a key or open a log, and most import the reactor.
    """
    clock = Clock()
    try:
        embedded = EmbeddedService(use, Guard(clock, process), clock)
    except UserError as error:
        return list(error.errors), [], []
    return [], embedded.notes, embedded.claims()


def _origin(use: TwistdUse) -> str:
    """Return the beginning of an error line about a use."""
    return use.origin or f"--with {use.arguments[0]}: "


def _cannot(use: TwistdUse, what: str, error: BaseException) -> UserError:
    if isinstance(error, UserError):
        return UserError([f"{_origin(use)}{line}" for line in error.errors])
    return UserError([f"{_origin(use)}{use.arguments[0]} cannot {what}: {describe(error)}"])


def _notes(label: str, tree: Any, application: Any, limits: Sequence[Limits]) -> Iterator[str]:
    for line in unreachable(tree):
        yield f"{label}: {line}"
    amplify, reported = in_force(limits, "amplify")
    if has_datagrams(tree) and amplify is not None and not reported:
        yield (
            f"{label}: what it answers over UDP beyond {amplify:g} times the bytes received is held back, headers "
            "included, as the addresses of peers can be forged; its limit amplify sets another bound"
        )
    if application.getComponent(ILogObserver) is not None:
        yield f"{label}: it brings a log of its own, which is not used"


def _make(use: TwistdUse) -> Any:
    """Find the plugin, read its options, and build its service. Raises `UserError`."""
    place = _origin(use)
    name, *words = use.arguments
    maker = _find(name, place)
    try:
        options = maker.options()
    except ANYTHING as error:
        raise UserError([f"{place}{name} does not load: {describe(error)}; fix it, or install what it needs"]) from (
            error
        )
    _read(options, words, name, place)
    try:
        service = maker.makeService(options)
    except ANYTHING as error:
        raise _cannot(use, "be built", error) from error
    if not IService.providedBy(service):
        raise UserError([f"{place}{name} returns a {type(service).__name__}, not a service; fix the plugin"])
    return service


def _join(use: TwistdUse, service: Any, application: Any) -> None:
    try:
        service.setServiceParent(application)
    except ANYTHING as error:
        raise _cannot(use, "be built", error) from error


def _find(name: str, place: str) -> Any:
    if name == "netsvc":
        raise UserError([f"{place}netsvc itself runs already; give its options without --with"])
    if name.startswith("netsvc-"):
        service = escape(name.removeprefix("netsvc-"))
        raise UserError([f"{place}this is a netsvc service; use --{service} ADDRESS instead"])
    # Twisted logs the traceback of a plugin file that cannot be imported, and skips it.
    found = [plugin for plugin in quietly(lambda: list(getPlugins(IServiceMaker))) if isinstance(_tapname(plugin), str)]
    makers: dict[tuple[str, str], Any] = {
        (_tapname(plugin), getattr(plugin, "module", "") or type(plugin).__module__): plugin for plugin in found
    }
    claims = sorted(module for tapname, module in makers if tapname == name)
    if not claims:
        names = {tapname for tapname, _ in makers if not tapname.startswith("netsvc")}
        hint = nearest(name, names) or "; twistd --help lists them"
        # Its file may be among the files that cannot be imported.
        raise UserError([f"{place}no twistd plugin is called {escape(name) or 'that'}{hint}", *discover().problems])
    if len(claims) > 1:
        raise UserError([f"{place}{name} is declared twice: by {' and by '.join(claims)}; uninstall one of them"])
    return makers[name, claims[0]]


def _tapname(plugin: Any) -> Any:
    return getattr(plugin, "tapname", None)


def _read(options: usage.Options, words: Sequence[str], name: str, place: str) -> None:
    """Parse the options of a plugin. If they are wrong, its output (a help page, a traceback) is dropped."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            options.parseOptions(list(words))
    except SystemExit:
        command = escape(" ".join(["twistd", name, *words]))
        raise UserError(
            [f"{place}these options of {name} show something, and start nothing; run {command} to see it"]
        ) from None
    except usage.UsageError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["wrong options"]
        raise UserError([f"{place}{line}; twistd {name} --help lists its options" for line in lines]) from None
    except Exception as error:
        raise UserError([f"{place}{name} cannot read its options: {describe(error)}"]) from error
    sys.stdout.write(out.getvalue())
    sys.stderr.write(err.getvalue())
