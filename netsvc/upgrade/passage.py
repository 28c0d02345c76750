"""One passage from this process to the one that takes its place: it has, or nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import _SystemdParser

from netsvc.errors import MistakeError
from netsvc.listeners.handed import HandedPort
from netsvc.upgrade.briefing import FIRST_SOCKET, STDERR, STDOUT, VARIABLE, Briefing, PassedPort
from netsvc.upgrade.program import Program
from netsvc.upgrade.successor import Successor
from netsvc.workers.briefing import ORDERS, REPORTS
from netsvc.workers.reports import LONGEST_REPORT

__all__ = ["SERVE_LIMIT", "START_LIMIT", "Passage", "Serving"]

#: Seconds for the new process to be ready: as for workers, and those it may have.
START_LIMIT = 60.0
#: Seconds for it to serve when it is told to.
SERVE_LIMIT = 10.0


class Serving(Protocol):
    """What serves in this process: a `netsvc.host.host.Host`, or `netsvc.workers.workers.Workers`."""

    def ports(self) -> list[HandedPort]:
        """List the open ports. Raises `MistakeError` if one cannot be handed over."""

    def steps(self) -> int:
        """Tell how many processes serve here."""

    def prepare(self, successors: int) -> float:
        """Prepare for so many others to take over; return how many seconds that takes effect."""

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        """Have the process `step`, counted from 0, take nothing any more at these ports.

        So many others, `successors`, take over: those that have no counterpart here shall leave nothing behind.
        """

    def go_on(self, ports: Sequence[HandedPort]) -> None:
        """Serve again: it has come to nothing."""


class Passage:
    """Starts `program`, and hands it the ports of `serving`.

    `done` fires when the new process serves, and nobody does here any more; what this one has of the ports is closed.
    It fails with `MistakeError` if that has come to nothing, and then this process serves as before.
    """

    def __init__(
        self,
        reactor: Any,
        serving: Serving,
        program: Program,
        *,
        standin: int | None,
        detached: bool,
        environment: Mapping[str, str],
        pid: int,
    ) -> None:
        self.done: Deferred[None] = Deferred()
        self.done_with = False
        self._reactor = reactor
        self._serving = serving
        self._program = program
        self._standin = standin
        self._detached = detached
        self._environment = environment
        self._pid = pid
        self._ports: list[HandedPort] = []
        self._handed: list[HandedPort] = []
        self._successors = 0
        self._step: int | None = None
        self._deadline: Any = None
        self._failure: MistakeError | None = None
        self.successor: Successor

    def begin(self) -> None:
        """Start the new process. Raises `MistakeError` if it cannot be."""
        self._ports = self._serving.ports()
        sockets: dict[int, int] = {}

        def passed(descriptor: int) -> int:
            number = FIRST_SOCKET + len(sockets)
            sockets[number] = descriptor
            return number

        ports = [
            PassedPort(
                port.role,
                port.name,
                port.kind,
                port.address,
                [[passed(each.fileno()) for each in row] for row in port.sockets],
                port.files,
                port.key_files,
            )
            for port in self._ports
        ]
        briefing = Briefing(
            self._pid,
            ports,
            None if self._standin is None else passed(self._standin),
            [(name, passed(number)) for name, number in _passed_by_systemd()],
            self._detached,
            self._program.ignored,
        )
        program = self._program
        self.successor = Successor(self._reactor, briefing.to_line(), self._reported, self._ended)
        self._deadline = self._reactor.callLater(
            START_LIMIT, self.fail, f"the new process is not ready after {START_LIMIT:g} s"
        )
        try:
            self._reactor.spawnProcess(
                self.successor,
                program.path,
                [program.path, *program.words[1:]],
                env=program.variables({**self._environment, VARIABLE: str(ORDERS)}),
                path=program.directory,
                childFDs={0: 0, 1: "r", 2: "r", ORDERS: "w", REPORTS: "r", STDOUT: 1, STDERR: 2, **sockets},
            )
        except OSError as error:
            self._deadline.cancel()
            raise MistakeError([f"the new process could not be started: {error.strerror}"]) from error

    def _reported(self, word: str, words: tuple[str, ...]) -> None:
        if self._failure is not None:
            return
        if word == "failed":
            self.fail(*words)
        elif word == "ready" and self._step is None and len(words) >= 2:
            # Nothing is done before this: whoever reports is our own program, of whatever version.
            numbers = [int(number) for number in words[0].split(",") if number.isdigit()]
            self._handed = [self._ports[number] for number in numbers if number < len(self._ports)]
            self._successors = int(words[1]) if words[1].isdigit() else 1
            self._step = -1
            self._deadline.cancel()
            seconds = self._serving.prepare(self._successors)
            self._deadline = self._reactor.callLater(seconds, self._next, 0)
        elif word == "serving" and self._step is not None and words == (str(self._step),):
            self._next(self._step + 1)

    def _next(self, step: int) -> None:
        if self._failure is not None:
            return
        if self._deadline.active():
            self._deadline.cancel()
        steps = self._serving.steps()
        if step == steps:
            self._finish()
            return
        self._step = step
        self._deadline = self._reactor.callLater(
            SERVE_LIMIT, self.fail, f"the new process was ready, and does not serve after {SERVE_LIMIT:g} s"
        )
        self._serving.give_way(step, self._successors, self._handed)
        self.successor.order(b"serve %d %d\n" % (step, steps))

    def _finish(self) -> None:
        for port in self._handed:
            port.let_go()
        self.done_with = True
        self.done.callback(None)

    def fail(self, *lines: str) -> None:
        """Give up. `done` fails when the new process is gone."""
        if self.done_with or self._failure is not None:
            return
        self._failure = MistakeError([line[:LONGEST_REPORT] for line in lines] or ["the new process cannot start"])
        if self._deadline.active():
            self._deadline.cancel()
        self.successor.end()
        if self._step is not None:
            self._serving.go_on(self._handed)

    def _ended(self, how: str) -> None:
        if self.done_with:
            return
        if self._failure is None:
            self.fail(f"the new process ended {how}, and was never ready", *self.successor.lines)
        self.done_with = True
        self.done.errback(self._failure)


def _passed_by_systemd() -> list[tuple[str, int]]:
    passed: Any = _SystemdParser._sddaemon
    return list(zip(passed._names, passed.inheritedDescriptors(), strict=False))
