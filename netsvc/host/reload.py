"""Has a running process read its plan again: on SIGHUP, and when `netsvc reload` asks; and answers other commands."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.discovery import ANYTHING, describe
from netsvc.errors import MistakeError
from netsvc.host.commands import commands_of
from netsvc.host.control import Answer, Control
from netsvc.host.instances import Load
from netsvc.host.notify import Notifier
from netsvc.host.process import take_over_hangup
from netsvc.plan import Plan
from netsvc.text import escape

__all__ = ["Read", "Reload", "Reloading", "from_directory"]

#: Seconds beyond a drain in which a process has ended, whatever its services do, on a loaded machine.
STOP_GRACE = 10.0

#: Reads a plan, and what loads its services. Raises `MistakeError`.
Read = Callable[[], tuple[Plan, Load]]

_log = Logger(namespace="netsvc")


class Reload:
    """Reads a plan with `read`, and has `run` run it. A reload that fails changes nothing.

    Each line of what came of it is logged, and told to whoever asked.
    """

    def __init__(
        self,
        clock: Any,
        read: Read,
        run: Callable[[Plan, Load], Deferred[str]],
        notifier: Notifier | None = None,
    ) -> None:
        #: Whether nothing is to be reloaded any more.
        self.closed = False
        self._clock = clock
        self._read = read
        self._run = run
        self._notifier = notifier or Notifier()
        self._busy = False
        self._asked_again = False

    def hang_up(self) -> None:
        """Read it, after what is being read now, which may be what was there before the last change."""
        if self._busy:
            self._asked_again = True
        elif not self.closed:
            self.answer()

    def answer(self, _words: Sequence[str] = ()) -> Deferred[Answer]:
        """Read it, and run it. The Deferred fires with what came of that, and never fails."""
        if self._busy:
            return succeed(Answer(1, ["a reload is under way; wait until it is over"]))
        self._busy = True
        self._notifier.reloading()
        try:
            running = self._run(*self._read())
        except ANYTHING as error:
            lines = error.mistakes if isinstance(error, MistakeError) else [f"it cannot be read: {describe(error)}"]
            return succeed(self._done(Answer(1, lines)))
        return running.addCallbacks(_reloaded, _not_reloaded).addCallback(self._done)

    def _done(self, answer: Answer) -> Answer:
        self._busy = False
        self._notifier.reloaded()
        for line in answer.lines:
            if answer.status:
                _log.error("not reloaded: {line}", line=line)
            else:
                _log.info("{line}", line=line)
        if self._asked_again:
            self._asked_again = False
            self._clock.callLater(0, self.hang_up)
        return answer


def _reloaded(summary: str) -> Answer:
    return Answer(0, [f"reloaded: {summary}"])


def _not_reloaded(failure: Failure) -> Answer:
    error: Any = failure.value
    if failure.check(MistakeError):
        return Answer(1, error.mistakes)
    _log.failure("a reload failed", failure)
    return Answer(1, [describe(error)])


class Reloading(Service):
    """A root service that reads its plan again with `read`, once that is set, and runs what it returns.

    To be mixed into one that has `plan`, `reload` and a `_reactor`, as `netsvc.host.host.Host` has.
    """

    plan: Plan
    read: Read | None = None
    #: Who hears how it is.
    notifier = Notifier()
    #: Whether another process has taken its place.
    has_successor = False
    _reactor: Any
    _requests: Reload | None = None
    _control: Control | None = None

    def startService(self) -> None:
        """Start, and then listen for what tells it to reload."""
        if self.read is None:
            super().startService()
            return
        if self._reactor is None:
            # twist starts services without a privileged start.
            from twisted.internet import reactor

            self._reactor = reactor
        root: Any = self
        self._requests = Reload(self._reactor, self.read, root.reload, self.notifier)
        self.notifier.start(self._reactor, root.activity)
        # Before it says `ready`: whoever reads that may send a signal.
        self._reactor.callWhenRunning(take_over_hangup, self._reactor, self._requests.hang_up)
        super().startService()
        if sys.platform == "linux":
            commands = commands_of(getattr(self, "operations", self), self._requests.answer)
            self._control = Control(self._reactor, self.plan.config, commands, os.getpid())
            self._control.listen()

    def reread(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.host.operations.Operations`."""
        if self._requests is None:
            return succeed(Answer(1, ["there is nothing to be read again: it was not started by a command line"]))
        return self._requests.answer(words)

    def became_ready(self) -> None:
        """Say it to whoever started the process as well."""
        cast(Any, super()).became_ready()
        self.notifier.ready()

    def stopService(self) -> Any:
        """Listen no more, and stop."""
        self.notifier.stopping(self.plan.longest_drain + STOP_GRACE)
        stopping = maybeDeferred(super().stopService)
        stopping.addBoth(self._stop_notifying)
        if self._requests is not None:
            self._requests.closed = True
        if self._control is not None:
            if self.has_successor:
                # The other process may have them now; what this one still does can be asked by its pid.
                self._control.give_up_config()
            stopping.addBoth(self._stop_answering, self._control)
        return stopping

    def _stop_notifying(self, result: Any) -> Any:
        self.notifier.close()
        return result

    @staticmethod
    def _stop_answering(result: Any, control: Control) -> Deferred[Any]:
        return control.close().addCallback(lambda _: result)


def from_directory(read: Read, directory: str, chroot: str | None = None) -> Read:
    """Make `read` see relative paths as they were seen at the start, in `directory`; a daemon may have left it.

    Raises `MistakeError` if it is not there any more, which is so in a changed root.
    """

    def read_there() -> tuple[Plan, Load]:
        try:
            here = os.getcwd()
        except OSError:
            # Somebody has removed it.
            here = directory
        try:
            os.chdir(directory)
        except OSError as error:
            where = f"--chroot {escape(chroot)} hides it" if chroot else (error.strerror or str(error)).lower()
            raise MistakeError(
                [f"{escape(directory)}, where the process was started, cannot be entered: {where}; start it anew"]
            ) from error
        try:
            # A plugin may have been installed meanwhile.
            importlib.invalidate_caches()
            return read()
        except MistakeError as error:
            hint = f"the process runs in a changed root, --chroot {escape(chroot or '')}: files are looked for below it"
            raise MistakeError([*error.mistakes, *([hint] if chroot else [])]) from error
        finally:
            with suppress(OSError):
                os.chdir(here)

    return read_there
