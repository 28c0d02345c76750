"""A root service that can be upgraded, and that can be what another one is upgraded to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.discovery import ANYTHING, describe
from netsvc.errors import MistakeError, StartError
from netsvc.host.control import Answer
from netsvc.host.notify import Notifier
from netsvc.host.pidfile import PidFile
from netsvc.host.process import take_over_upgrade
from netsvc.listeners.handed import HandedPort
from netsvc.plan import Plan
from netsvc.upgrade.passage import Passage
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import Program
from netsvc.upgrade.standing import StandIn, Ward

__all__ = ["Upgrading", "reporting"]

_UNDER_WAY = "an upgrade is under way; wait until it is over"

_log = Logger(namespace="netsvc")


@contextmanager
def reporting(predecessor: Predecessor | None) -> Iterator[None]:
    """Tell the process whose place is to be taken what goes wrong meanwhile, if there is one."""
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


class Upgrading(Service):
    """To be mixed into a root service that has what `netsvc.upgrade.passage.Serving` has, and `succeed`, `serve_step`,
    `became_ready`, `occupied` and `reload`, as `netsvc.host.host.Host` and `netsvc.workers.workers.Workers` have.

    `program` is what it was started as; without it, it is not upgraded. `predecessor` is the process whose place it
    takes, if it does. `detached` says that nobody waits for it: it is a daemon.
    """

    plan: Plan
    notifier: Notifier
    program: Program | None = None
    predecessor: Predecessor | None = None
    pid_file: PidFile | None = None
    detached = False
    has_successor = False
    _reactor: Any
    _passage: Passage | None = None
    _taken: dict[int, HandedPort] | None = None
    _serves = True
    _ward: Ward | None = None
    _standin: StandIn | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, and open the log."""
        with reporting(self.predecessor):
            super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open what the predecessor does not have open, and take the pid file, if there is no predecessor."""
        with reporting(self.predecessor):
            root: Any = self
            if self.predecessor is not None:
                self._serves = False
                inheritance = self.predecessor.inheritance
                root.succeed(inheritance.find(self.plan), inheritance.plugin, self._could_serve)
            self._own_pid_file()
            with self._without_pid_file_on_failure():
                super().privilegedStartService()

    def _own_pid_file(self) -> None:
        if self.pid_file is not None and self.predecessor is None:
            try:
                self.pid_file.write()
            except MistakeError as error:
                raise StartError("\n".join(error.mistakes)) from None

    @contextmanager
    def _without_pid_file_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self.pid_file is not None:
                self.pid_file.remove()
            raise

    def startService(self) -> None:
        """Start, and wait for what there is to do: to take over, and to be taken over from."""
        if self._reactor is None:
            # twist starts services without a privileged start.
            from twisted.internet import reactor

            self._reactor = reactor
        if self.program is not None:
            # Before it says `ready`: whoever reads that may send a signal.
            self._reactor.callWhenRunning(take_over_upgrade, self._reactor, self.upgrade)
        with reporting(self.predecessor), self._without_pid_file_on_failure():
            super().startService()
        if self.pid_file is not None:
            self._reactor.addSystemEventTrigger("after", "shutdown", self.pid_file.remove)
        if self.predecessor is not None:
            self.predecessor.listen(self._reactor, self._serve, self._lost_predecessor)

    def _could_serve(self) -> None:
        root: Any = self
        predecessor = self.predecessor
        assert predecessor is not None
        inheritance = predecessor.inheritance
        try:
            self._taken = inheritance.taken(root.ports())
        except MistakeError as error:
            predecessor.failed(*error.mistakes)
            return
        inheritance.close()
        predecessor.ready(sorted(self._taken), self.plan.workers)

    def _serve(self, step: int, steps: int) -> None:
        root: Any = self
        if self._serves or self._taken is None:
            return
        assert self.predecessor is not None
        root.serve_step(step, steps)
        if step == steps - 1:
            self._take_over()
        self.predecessor.serving(step)

    def _take_over(self, *, alone: bool = False) -> None:
        """Be what serves. The stand-in of one that was killed is nobody's any more (`alone`)."""
        root: Any = self
        assert self.predecessor is not None
        assert self._taken is not None
        self._serves = True
        for place, port in self._taken.items():
            files = self.predecessor.inheritance.files(place)
            port.own(files)
            for lock in files[1:]:
                _take_lock(lock)
        if self.pid_file is not None:
            try:
                self.pid_file.write()
            except MistakeError as error:
                for mistake in error.mistakes:
                    _log.error("{mistake}", mistake=mistake)
        link = self.predecessor.briefing.standin
        if link is not None:
            self._ward = Ward(self._reactor, link, self._orphaned)
            if alone:
                self._ward.hand_over()
                self._ward = None
            else:
                self._ward.take_charge()
        root.became_ready()

    def _orphaned(self) -> None:
        # A reactor that stops closes everything.
        if self.running:
            _log.warn(
                "the process that stood in for this one is gone: it stops, as whoever watched that one thinks it has"
            )
            self._stop()

    def _stop(self) -> None:
        # In its turn behind a signal that has come before it: the signal's own call must not find it stopped.
        self._reactor.callFromThread(self._stop_once)

    def _stop_once(self) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _lost_predecessor(self) -> None:
        root: Any = self
        if self._serves or not self.running:
            return
        assert self.predecessor is not None
        if self.predecessor.has_given_up:
            self._stop()
        elif self._taken is None:
            root._die("the process that was to be upgraded is gone, and this one was not ready")
        else:
            _log.warn("the process that was upgraded is gone; this one serves in its place")
            root.serve_step(0, 1)
            self._take_over(alone=True)

    def reload(self, *words: Any) -> Deferred[str]:
        """Run another plan; not while another process is about to take over."""
        if self._passage is not None or not self._serves:
            return fail(MistakeError([self._occupation()]))
        root: Any = super()
        reloading: Deferred[str] = root.reload(*words)
        return reloading

    def upgrade(self, _words: Sequence[str] = ()) -> Deferred[Answer]:
        """Have the program that is installed now take over; see `netsvc.host.operations.Operations`."""
        if refusal := self._why_not():
            return succeed(self._refused([refusal]))
        assert self.program is not None
        link: int | None = None
        if self._ward is not None:
            link = self._ward.fileno()
        elif not self.detached and "NOTIFY_SOCKET" not in self.notifier.environment():
            self._standin = StandIn()
            link = self._standin.theirs.fileno()
        root: Any = self
        self._passage = passage = Passage(
            self._reactor,
            root,
            self.program,
            standin=link,
            detached=self.detached,
            environment=self.notifier.environment(),
            pid=os.getpid(),
        )
        try:
            passage.begin()
        except ANYTHING as error:
            return succeed(self._not_upgraded(Failure(error)))
        _log.info("upgrading: process {pid} starts", pid=passage.successor.pid)
        return passage.done.addCallbacks(self._upgraded, self._not_upgraded)

    def _why_not(self) -> str:
        root: Any = self
        if sys.platform != "linux" or self.program is None:
            return "it cannot be upgraded here: this needs Linux, and a process that twistd or netsvc run has started"
        if self._passage is not None or not self._serves:
            return self._occupation()
        return root.occupied("upgraded") or self.program.refusal() or (self.pid_file.refusal() if self.pid_file else "")

    def _occupation(self) -> str:
        if self._passage is None or not self.has_successor:
            return _UNDER_WAY
        pid = self._passage.successor.pid
        return f"process {pid} serves in the place of this one, which ends when its conversations have; use --pid {pid}"

    def _upgraded(self, _result: None) -> Answer:
        root: Any = self
        assert self._passage is not None
        successor = self._passage.successor
        self.has_successor = True
        self.notifier.main_pid(successor.pid)
        if self._ward is not None:
            self._ward.hand_over()
        elif self._standin is not None:
            self._standin.begin(successor, root.force)
        _log.info("upgraded: process {pid} serves; this one ends when its conversations have", pid=successor.pid)
        # Whoever asked gets the answer first.
        self._reactor.callLater(0, self._stop_once)
        return Answer(0, [f"upgraded: process {successor.pid} serves now in the place of {os.getpid()}"])

    def _not_upgraded(self, failure: Failure) -> Answer:
        error: Any = failure.value
        self._passage = None
        if self._standin is not None:
            self._standin.close()
            self._standin = None
        if not failure.check(MistakeError):
            _log.failure("an upgrade failed", failure)
            return self._refused([describe(error)])
        return self._refused(error.mistakes)

    @staticmethod
    def _refused(lines: Sequence[str]) -> Answer:
        for line in lines:
            _log.error("not upgraded: {line}", line=line)
        return Answer(1, list(lines))

    def stopService(self) -> Any:
        """Stop, and so the process that was about to take over."""
        passage = self._passage
        if passage is not None and not passage.done_with:
            passage.fail("it is stopping")
            self._reactor.addSystemEventTrigger("after", "shutdown", passage.successor.signal, "KILL")
        return super().stopService()


def _take_lock(path: str) -> None:
    """Make the lock of a UNIX socket, a link to a pid, this process's (`twisted.python.lockfile`)."""
    mine = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.symlink(str(os.getpid()), mine)
        os.replace(mine, path)
