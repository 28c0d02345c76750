"""The process that replaces this one: started with its ports, and watched until it serves or has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from netsvc.base.directory import entered
from netsvc.base.errors import UserError
from netsvc.base.signals import blocked
from netsvc.base.text import plain
from netsvc.listen.handoff import Handoff, OfferedPort
from netsvc.listen.systemd import activated
from netsvc.server.interface import Replaceable
from netsvc.upgrade.program import VARIABLE, Program
from netsvc.workers.channel import (
    FIRST_SOCKET,
    LONGEST_REPORT,
    ORDERS,
    REPORTS,
    STDERR,
    STDOUT,
    ChildProcess,
)
from netsvc.workers.handover import Handover

#: Seconds for the new process to end when ordered to; then it is killed.
KILL_AFTER = 5.0
#: Printed lines that are kept, for errors before it can send reports: the last lines of a traceback matter most.
MOST_LINES = 10


class Upgrade(Handover):
    """Starts `program`, and hands it the ports of `serving`.

    When `done` fires, the ports are closed in this process. `lines` are the last printed lines of the new process.
    """

    def __init__(
        self,
        reactor: Any,
        serving: Replaceable,
        program: Program,
        *,
        proxy: int | None,
        detached: bool,
        environment: Mapping[str, str],
        pid: int,
    ) -> None:
        super().__init__(reactor)
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self.successor = ChildProcess(reactor, reported=self._reported, printed=self._printed, ended=self._ended)
        self._serving = serving
        self._program = program
        self._proxy = proxy
        self._detached = detached
        self._environment = environment
        self._pid = pid
        self._ports: list[OfferedPort] = []
        #: The ports that the new process uses, and the number of its processes.
        self._taken: list[OfferedPort] = []
        self._successors = 1

    def _start(self) -> None:
        self._ports = self._serving.ports()
        sockets: dict[int, int] = {}

        def passed(descriptor: int) -> int:
            number = FIRST_SOCKET + len(sockets)
            sockets[number] = descriptor
            return number

        self.successor.handoff = Handoff(
            self._pid,
            [port.passed(passed) for port in self._ports],
            None if self._proxy is None else passed(self._proxy),
            [(name, passed(number)) for name, number in activated()],
            self._detached,
            self._program.ignored,
        )
        program = self._program
        try:
            # Sent to the process group, they would end a process that does not handle them yet.
            with blocked(), entered(program.directory):
                self._clock.spawnProcess(
                    self.successor,
                    program.path,
                    [program.path, *program.arguments[1:]],
                    env=program.variables({**self._environment, VARIABLE: str(ORDERS)}),
                    childFDs={0: 0, 1: "r", 2: "r", ORDERS: "w", REPORTS: "r", STDOUT: 1, STDERR: 2, **sockets},
                )
        except OSError as error:
            raise UserError([f"the new process could not be started: {error.strerror}"]) from error

    def _reported(self, kind: str, *arguments: str) -> None:
        # The installed program may be of any version.
        if kind == "failed":
            self.fail(*arguments)
        elif kind == "ready" and self._step is None and len(arguments) >= 2:
            numbers = [int(number) for number in arguments[0].split(",") if number.isdigit()]
            self._taken = [self._ports[number] for number in numbers if number < len(self._ports)]
            self._successors = int(arguments[1]) if arguments[1].isdigit() else 1
            self.ready()
        elif kind == "serving" and arguments and arguments[0].isdigit():
            self.committed(int(arguments[0]))

    def _printed(self, line: bytes, _is_error: bool) -> None:
        if text := plain(line.decode("utf-8", "backslashreplace")).rstrip():
            self.lines.append(text)

    def fail(self, *lines: str) -> None:
        """Fail the upgrade for these reasons. `done` fails when the new process has ended."""
        super().fail(*(line[:LONGEST_REPORT] for line in lines))

    def _prepare(self) -> float:
        return self._serving.prepare(self._successors)

    def _steps(self) -> int:
        return self._serving.processes()

    def _pause(self, step: int) -> None:
        self._serving.pause(step, self._successors, self._taken)

    def _commit(self, step: int, steps: int) -> bool:
        self.successor.order(b"serve %d %d\n" % (step, steps))
        return False

    def _release(self) -> None:
        for owner in dict.fromkeys(port.owner for port in self._taken):
            owner.release()

    def _resume(self) -> None:
        self._serving.resume(self._taken)

    def _stop(self) -> bool:
        self.successor.end(b"end\n", KILL_AFTER)
        return False

    def _ended(self, how: str) -> None:
        if not self.is_over:
            self.fail(f"the new process {how}, and was never ready", *self.lines)
            self.stopped()
