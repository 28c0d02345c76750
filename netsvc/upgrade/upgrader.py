"""Upgrades: hands the ports to the installed program, and takes over the ports of the process that started this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import ANYTHING, StartError, UserError, describe
from netsvc.listen.handoff import OfferedPort
from netsvc.plan.answer import Answer
from netsvc.server.interface import IServer, Replaceable
from netsvc.server.notify import Notifier
from netsvc.server.pidfile import PidFile
from netsvc.server.process import die, stop_reactor, upgrade_on_signal

if TYPE_CHECKING:
    from netsvc.upgrade.predecessor import Predecessor
    from netsvc.upgrade.program import Program
    from netsvc.upgrade.proxy import ProxyLink, ProxyProcess
    from netsvc.upgrade.successor import Upgrade

_UNDER_WAY = "an upgrade is under way; wait until it is over"

_log = Logger(namespace="netsvc")


@contextmanager
def reporting(predecessor: Predecessor | None) -> Iterator[None]:
    """Report errors of the block to the predecessor, if there is one."""
    try:
        yield
    except StartError as error:
        if predecessor is not None:
            predecessor.failed(*error.reason.splitlines())
        raise
    except BaseException as error:
        if predecessor is not None:
            predecessor.failed(describe(error))
        raise


class Upgrader:
    """Hands the ports of `serving` to the installed program; takes over the ports of `predecessor`, if there is one.

    `program` is the program of this process; without it, upgrades are refused. `detached` means that this process is a
    daemon, so that no parent waits for its pid. `took_over` is called when this process has replaced the predecessor.
    """

    def __init__(
        self,
        reactor: Any,
        server: IServer,
        serving: Replaceable,
        *,
        program: Program | None,
        predecessor: Predecessor | None,
        detached: bool,
        notifier: Notifier,
        pid_file: PidFile | None,
        took_over: Callable[[], None],
        die: Callable[[str], None] = die,
    ) -> None:
        self.predecessor = predecessor
        self.has_successor = False
        self._reactor = reactor
        self._server = server
        self._serving = serving
        self._program = program
        self._detached = detached
        self._notifier = notifier
        self._pid_file = pid_file
        self._on_took_over = took_over
        self._die = die
        self._upgrade: Upgrade | None = None
        self._taken: dict[int, OfferedPort] | None = None
        self._serves = predecessor is None
        self._is_stopping = False
        self._proxy_link: ProxyLink | None = None
        self._proxy: ProxyProcess | None = None

    def inherit(self) -> None:
        """Pass the ports of the predecessor to the server, before it opens its own."""
        if self.predecessor is not None:
            inheritance = self.predecessor.inheritance
            self._server.adopt(inheritance.find(self._server.plan), inheritance.plugin, self._could_serve)

    def start(self) -> None:
        """Follow the orders of the predecessor."""
        if self.predecessor is not None:
            self.predecessor.listen(self._reactor, self._serve, self._lost_predecessor)

    def accept_signal(self, upgrade: Callable[[], object]) -> None:
        """Call `upgrade` on SIGUSR2, if this process can be upgraded."""
        if self._program is not None:
            upgrade_on_signal(self._reactor, upgrade)

    def stop(self) -> None:
        """Cancel an upgrade under way, as this process stops."""
        self._is_stopping = True
        upgrade = self._upgrade
        if upgrade is not None and not upgrade.is_over:
            upgrade.fail("it is stopping")
            self._reactor.addSystemEventTrigger("after", "shutdown", upgrade.successor.signal, "KILL")

    def refusal(self) -> str:
        """Return the reason why an upgrade prevents a change of the plan now; an empty string if none does."""
        return self._occupation() if self._upgrade is not None or not self._serves else ""

    def serving_pid(self) -> int:
        """Return the pid of the process that serves in the place of this one; 0 if there is none."""
        if self._upgrade is None or not self.has_successor:
            return 0
        return self._upgrade.successor.pid if self._proxy is None else self._proxy.serving_pid()

    def _could_serve(self) -> None:
        predecessor = self.predecessor
        assert predecessor is not None
        inheritance = predecessor.inheritance
        try:
            self._taken = inheritance.taken(self._serving.ports())
        except UserError as error:
            predecessor.failed(*error.errors)
            return
        inheritance.close()
        predecessor.ready(sorted(self._taken), self._server.plan.workers)

    def _serve(self, step: int, steps: int) -> None:
        if self._serves or self._taken is None:
            return
        assert self.predecessor is not None
        self._serving.serve(step, steps)
        if step == steps - 1:
            self._take_over()
        self.predecessor.serving(step)

    def _take_over(self, *, alone: bool = False) -> None:
        """Replace the predecessor. `alone`: it was killed, and its proxy with it."""
        assert self.predecessor is not None
        assert self._taken is not None
        self._serves = True
        for index, port in self._taken.items():
            files = self.predecessor.inheritance.files(index)
            port.owner.own(files)
            for lock in files[1:]:
                _take_lock(lock)
        if self._pid_file is not None:
            try:
                self._pid_file.write()
            except UserError as error:
                for line in error.errors:
                    _log.error("{line}", line=line)
        link = self.predecessor.handoff.proxy
        if link is not None:
            from netsvc.upgrade.proxy import ProxyLink

            self._proxy_link = ProxyLink(self._reactor, link, self._orphaned)
            if alone:
                self._proxy_link.hand_over()
                self._proxy_link = None
            else:
                self._proxy_link.take_charge()
        self._on_took_over()

    def _orphaned(self) -> None:
        # A stopping reactor closes the link itself.
        if not self._is_stopping:
            _log.warn("the proxy process has ended: stopping, as its supervisor takes the service for stopped")
            stop_reactor(self._reactor)

    def _lost_predecessor(self) -> None:
        if self._serves or self._is_stopping:
            return
        assert self.predecessor is not None
        if self.predecessor.has_given_up:
            stop_reactor(self._reactor)
        elif self._taken is None:
            self._die("the process to upgrade has ended before this one was ready")
        else:
            _log.warn("the process to upgrade has ended; this one serves in its place")
            self._serving.serve(0, 1)
            self._take_over(alone=True)

    def upgrade(self) -> Deferred[Answer]:
        """Start the installed program. The Deferred fires when it serves, or has failed; it never fails."""
        # Most processes are never upgraded and do not need these modules.
        from netsvc.upgrade.proxy import ProxyProcess
        from netsvc.upgrade.successor import Upgrade

        if refusal := self._why_not():
            return succeed(self._refused([refusal]))
        assert self._program is not None
        link: int | None = None
        if self._proxy_link is not None:
            link = self._proxy_link.fileno()
        elif not self._detached and "NOTIFY_SOCKET" not in self._notifier.environment():
            self._proxy = ProxyProcess()
            link = self._proxy.remote.fileno()
        self._upgrade = upgrade = Upgrade(
            self._reactor,
            self._serving,
            self._program,
            proxy=link,
            detached=self._detached,
            environment=self._notifier.environment(),
            pid=os.getpid(),
        )
        try:
            upgrade.begin()
        except ANYTHING as error:
            return succeed(self._not_upgraded(Failure(error)))
        _log.info("upgrading: process {pid} starts", pid=upgrade.successor.pid)
        return upgrade.done.addCallbacks(self._upgraded, self._not_upgraded)

    def cure(self) -> str:
        """Return what loads changed code: an upgrade, if it is possible."""
        return "restart netsvc to load it" if self._why_not() else "netsvc upgrade loads it"

    def _why_not(self) -> str:
        if sys.platform != "linux" or self._program is None:
            return "it cannot be upgraded here: an upgrade needs Linux and a process started by twistd or netsvc run"
        if self._upgrade is not None or not self._serves:
            return self._occupation()
        return (
            self._server.occupied("upgraded")
            or self._program.refusal()
            or (self._pid_file.refusal() if self._pid_file else "")
        )

    def _occupation(self) -> str:
        if self._upgrade is None or not self.has_successor:
            return _UNDER_WAY
        pid = self._upgrade.successor.pid
        return f"process {pid} serves in the place of this one, which ends when its conversations have; use --pid {pid}"

    def _upgraded(self, _result: None) -> Answer:
        assert self._upgrade is not None
        successor = self._upgrade.successor
        self.has_successor = True
        self._notifier.main_pid(successor.pid)
        if self._proxy_link is not None:
            self._proxy_link.hand_over()
        elif self._proxy is not None:
            self._proxy.begin(successor, self._server.force)
        _log.info("upgraded: process {pid} serves; this one ends when its conversations have", pid=successor.pid)
        # After the command has got its answer.
        self._reactor.callLater(0, stop_reactor, self._reactor)
        return Answer(0, [f"upgraded: process {successor.pid} serves now in the place of {os.getpid()}"])

    def _not_upgraded(self, failure: Failure) -> Answer:
        error: Any = failure.value
        self._upgrade = None
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        if not failure.check(UserError):
            _log.failure("an upgrade failed", failure)
            return self._refused([describe(error)])
        return self._refused(error.errors)

    @staticmethod
    def _refused(lines: Sequence[str]) -> Answer:
        for line in lines:
            _log.error("not upgraded: {line}", line=line)
        return Answer(1, list(lines))


def _take_lock(path: str) -> None:
    """Take over the lock of a UNIX socket, a symbolic link to a pid (`twisted.python.lockfile`)."""
    new = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.symlink(str(os.getpid()), new)
        os.replace(new, path)
