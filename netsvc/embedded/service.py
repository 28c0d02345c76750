"""Runs another twistd plugin in the process: `--with "web --listen tcp:8080 --path public"`."""

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

from netsvc.address import Address
from netsvc.discovery import ANYTHING, describe, discover, nearest
from netsvc.embedded.passed import Passed
from netsvc.embedded.tree import Ports, has_datagrams, place_of, stop_services, surround, unreachable
from netsvc.errors import MistakeError
from netsvc.guard import Guard
from netsvc.hush import hushed
from netsvc.limits import Limits, in_force
from netsvc.listeners.faults import explain
from netsvc.listeners.opening import Listening
from netsvc.plan import TwistdUse
from netsvc.text import escape

__all__ = ["EmbeddedService", "embedded_labels", "examine_twistd"]

_log = Logger(namespace="netsvc")


class EmbeddedService:
    """One twistd plugin with its options: built, guarded, started, and stopped.

    What it opens is behind `guard`, with the limits of `level`, or of a level of its own named `label`; `notes` has a
    line for all that is not, or will not work. `failed` is called with a line if a port cannot be opened after the
    start. What is `passed` is opened in place of what it asks for. Raises `MistakeError` if it cannot be built.

    It runs below an application of its own, which nobody else sees: a log, a user or a process name that it sets
    there has no effect, and nothing is saved.
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
        passed: Passed | None = None,
    ) -> None:
        self.use = use
        self.label = label or use.words[0]
        self.level = level or guard.service(self.label, use.limits)
        self._place = _place(use)
        self._failed = failed
        self._told = False
        self._starting = False
        self._mistakes: list[str] = []
        self._opening: Deferred[None] | None = None
        self._closing: Deferred[Any] | None = None
        self._ports = Ports(guard, self.label, self.level, reactor, passed)
        self._ports.opened = self._opened
        self._ports.failed = self._not_opened
        application: Any = Application(self.label)
        self._tree: Any = IService(application)
        try:
            with self._ports.watched():
                _join(use, _make(use), application)
        except MistakeError:
            self.abandon()
            raise
        surround(self._tree, self._ports)
        self.notes = list(_notes(self.label, self._tree, application, [guard.process.limits, self.level.limits]))

    def privileged_start(self) -> None:
        """Open its ports, before privileges are dropped. Raises `MistakeError`; `abandon` closes what is open."""
        self._start("privilegedStartService")

    def start(self) -> None:
        """Start it. Raises `MistakeError`; `abandon` undoes what it did."""
        self._start("startService")

    def _start(self, method: str) -> None:
        self._starting = True
        # It may be tried again, once it was abandoned.
        self._mistakes.clear()
        try:
            with self._ports.watched():
                getattr(self._tree, method)()
        except CannotListenError:
            self._not_opened(Failure())
        except ANYTHING as error:
            # A service passes on what its endpoint said, of which there is a line already.
            if not self._mistakes:
                raise _cannot(self.use, "start", error) from error
        finally:
            self._starting = False
        if self._mistakes:
            raise MistakeError(self._mistakes)

    def _not_opened(self, failure: Failure) -> None:
        error: Any = failure.value
        if isinstance(error, CannotListenError):
            address = Address("", "datagram" if error is self._ports.datagrams_refused else "stream", "inet")
            line = f"{self._place}cannot listen: {explain(error, address)}"
        else:
            line = f"{self._place}cannot listen: {describe(error)}"
        if self._starting:
            self._mistakes.append(line)
        else:
            self._failed(line)
            self._look()

    def _opened(self, label: str, listening: Listening) -> None:
        if self._told:
            _log.info("{label} listens on {place}", label=label, place=place_of(listening))
        self._look()

    def lines(self) -> list[str]:
        """Say what listens where, with the real ports. What opens later is logged when it does."""
        self._told = True
        lines = [f"{label} listens on {place_of(listening)}" for label, listening in self._ports.open()]
        return lines or ([] if self._ports.pending else [f"{self.label} runs, and listens nowhere"])

    def listening(self) -> list[Listening]:
        """List its open ports."""
        return [each for _, each in self._ports.open()]

    def own_ports(self) -> set[int | bytes]:
        """List its open UDP ports, for `netsvc.interfaces.Context`."""
        hosts: list[Any] = [each.port.getHost() for _, each in self._ports.open() if each.datagrams]
        return {host.port if hasattr(host, "port") else host.name for host in hosts}

    def opened(self) -> Deferred[None]:
        """Return what fires when no endpoint is any more about to open, or could not."""
        waiting: Deferred[None] = Deferred()
        self._opening = waiting
        self._look()
        return waiting

    def _look(self) -> None:
        if self._opening is not None and not self._ports.pending:
            opening, self._opening = self._opening, None
            opening.callback(None)

    def stop_listening(self) -> Deferred[None]:
        """Take what waits at its ports, and close them. Fires when they are closed, and never fails."""
        if self._closing is None:
            ports = [listening for _, listening in self._ports.open()]
            for listening in ports:
                listening.take_waiting()
            self._closing = DeferredList([listening.stop() for listening in ports])
        # Whoever asks gets a Deferred of his own.
        answer: Deferred[None] = Deferred()
        self._closing.addCallback(lambda _: answer.callback(None))
        return answer

    def stop(self) -> Deferred[None]:
        """Stop it, after its connections have ended. Fires when it has stopped, and never fails."""
        stopping: Deferred[Any] = self.stop_listening()
        stopping.addCallback(lambda _: DeferredList(stop_services(self._tree), consumeErrors=True))
        stopping.addCallback(self._stopped)
        return stopping.addErrback(self._not_stopped)

    def _stopped(self, results: list[tuple[bool, Any]]) -> None:
        for succeeded, failure in results:
            if not succeeded:
                self._not_stopped(failure)
        self._ports.release()

    def _not_stopped(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            _log.warn("{label} has not stopped in time", label=self.label)
            return
        _log.failure("{label} failed to stop", failure, label=self.label)

    def abandon(self) -> None:
        """Undo a start that failed, or that is not wanted any more, at once. It may be started again."""
        for _, listening in self._ports.open():
            listening.abandon()
        # What was not started need not know how to stop.
        DeferredList(stop_services(self._tree), consumeErrors=True)
        self._ports.release()


def embedded_labels(uses: Sequence[TwistdUse], taken: Collection[str] = ()) -> list[str]:
    """Name each use: as its plugin, `web`, or with a number, `web-2`, where that name is taken."""
    labels: list[str] = []
    for use in uses:
        label, number = use.words[0], 2
        while label in taken or label in labels:
            label, number = f"{use.words[0]}-{number}", number + 1
        labels.append(label)
    return labels


def examine_twistd(use: TwistdUse, process: Limits | None = None) -> tuple[list[str], list[str]]:
    """Build a plugin, and open no port. Returns its mistakes, and its notes: what would not be limited, or not work.

    What it does when it is built, it does: some write a key, or open a log. Most of them import the reactor.
    """
    clock = Clock()
    try:
        return [], EmbeddedService(use, Guard(clock, process), clock).notes
    except MistakeError as error:
        return list(error.mistakes), []


def _place(use: TwistdUse) -> str:
    """Return what begins a line about a use."""
    return use.place or f"--with {use.words[0]}: "


def _cannot(use: TwistdUse, what: str, error: BaseException) -> MistakeError:
    if isinstance(error, MistakeError):
        return MistakeError([f"{_place(use)}{line}" for line in error.mistakes])
    return MistakeError([f"{_place(use)}{use.words[0]} cannot {what}: {describe(error)}"])


def _notes(label: str, tree: Any, application: Any, limits: Sequence[Limits]) -> Iterator[str]:
    for line in unreachable(tree):
        yield f"{label}: {line}"
    amplify, reported = in_force(limits, "amplify")
    if has_datagrams(tree) and amplify is not None and not reported:
        yield (
            f"{label}: what it answers over UDP beyond {amplify:g} times the bytes received is held back, as the "
            "addresses of peers can be forged; its limit amplify sets another bound"
        )
    if application.getComponent(ILogObserver) is not None:
        yield f"{label}: it brings a log of its own, which is not used"


def _make(use: TwistdUse) -> Any:
    """Find the plugin, read its options, and build its service. Raises `MistakeError`."""
    place = _place(use)
    name, *words = use.words
    maker = _find(name, place)
    try:
        options = maker.options()
    except ANYTHING as error:
        raise MistakeError(
            [f"{place}{name} does not load: {describe(error)}; mend it, or install what it needs"]
        ) from (error)
    _read(options, words, name, place)
    try:
        service = maker.makeService(options)
    except ANYTHING as error:
        raise _cannot(use, "be built", error) from error
    if not IService.providedBy(service):
        raise MistakeError([f"{place}{name} makes a {type(service).__name__}, which is no service; mend the plugin"])
    return service


def _join(use: TwistdUse, service: Any, application: Any) -> None:
    try:
        service.setServiceParent(application)
    except ANYTHING as error:
        raise _cannot(use, "be built", error) from error


def _find(name: str, place: str) -> Any:
    if name == "netsvc":
        raise MistakeError([f"{place}that is what runs already; write its options without --with"])
    if name.startswith("netsvc-"):
        service = escape(name.removeprefix("netsvc-"))
        raise MistakeError([f"{place}that is a service of netsvc; write --{service} ADDRESS instead"])
    # Of a plugin file that does not import, Twisted logs the traceback, and leaves it out.
    found = [plugin for plugin in hushed(lambda: list(getPlugins(IServiceMaker))) if isinstance(_tapname(plugin), str)]
    makers: dict[tuple[str, str], Any] = {
        (_tapname(plugin), getattr(plugin, "module", "") or type(plugin).__module__): plugin for plugin in found
    }
    claims = sorted(module for tapname, module in makers if tapname == name)
    if not claims:
        names = {tapname for tapname, _ in makers if not tapname.startswith("netsvc")}
        hint = nearest(name, names) or "; twistd --help lists them"
        # Its file may be one of those that do not load.
        raise MistakeError([f"{place}no twistd plugin is called {escape(name) or 'that'}{hint}", *discover().problems])
    if len(claims) > 1:
        raise MistakeError([f"{place}{name} is declared twice: by {' and by '.join(claims)}; uninstall one of them"])
    return makers[name, claims[0]]


def _tapname(plugin: Any) -> Any:
    return getattr(plugin, "tapname", None)


def _read(options: usage.Options, words: Sequence[str], name: str, place: str) -> None:
    """Have a plugin read its options. What it prints is lost if they are wrong: a page, or a traceback."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            options.parseOptions(list(words))
    except SystemExit:
        command = escape(" ".join(["twistd", name, *words]))
        raise MistakeError(
            [f"{place}these options of {name} show something, and start nothing; run {command} to see it"]
        ) from None
    except usage.UsageError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["wrong options"]
        raise MistakeError([f"{place}{line}; twistd {name} --help lists its options" for line in lines]) from None
    except Exception as error:
        raise MistakeError([f"{place}{name} cannot read its options: {describe(error)}"]) from error
    sys.stdout.write(out.getvalue())
    sys.stderr.write(err.getvalue())
