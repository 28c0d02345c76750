"""Reloads the plan of a running process, on SIGHUP and for `netsvc reload`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.directory import entered, removed
from netsvc.base.errors import ANYTHING, UserError, describe
from netsvc.base.text import escape
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan
from netsvc.server.instances import Load
from netsvc.server.notify import Notifier

#: Reads the plan; returns it with the function that loads its services. Raises `UserError`.
ReadPlan = Callable[[], tuple[Plan, Load]]

#: Starts another change of the process.
Change = Callable[[], Deferred[Answer]]

_log = Logger(namespace="netsvc")


class Reload:
    """Reads the plan with `read` and passes it to `run`. A reload that fails changes nothing.

    `hints` returns further lines for the answer to one that succeeds. `passed_on` passes a SIGHUP on to the process
    that has replaced this one; it returns whether there is one.

    Each line of the result is logged and returned to the command.
    """

    def __init__(
        self,
        clock: Any,
        read: ReadPlan,
        run: Callable[[Plan, Load], Deferred[str]],
        notifier: Notifier | None = None,
        *,
        hints: Callable[[], Sequence[str]] = list,
        passed_on: Callable[[], bool] = lambda: False,
    ) -> None:
        #: True when the process stops: SIGHUP is ignored from then on.
        self.closed = False
        self._clock = clock
        self._read = read
        self._run = run
        self._notifier = notifier or Notifier()
        self._hints = hints
        self._passed_on = passed_on
        self._busy = False
        self._is_pending = False
        #: The other changes of the process that are under way, and the one that waits, with its answer.
        self._others = 0
        self._waiting: tuple[Change, Deferred[Answer]] | None = None

    def on_sighup(self) -> None:
        """Reload. During a reload, reload once more after it, as it may have missed the last change of the file.

        The same applies during another change of the process; see `between`.
        """
        if self._busy or self._others:
            self._is_pending = True
        elif not self._passed_on() and not self.closed:
            self.answer()

    def between(self, change: Change) -> Deferred[Answer]:
        """Make another change of the process, an upgrade, now or after the reload under way, before any other reload.

        Reloads may follow each other all the time, so that it would never find none under way. One change can wait.
        The Deferred fires with the answer of `change`, whose Deferred must never fail.
        """
        if not self._busy:
            self._others += 1
            return change().addCallback(self._changed)
        if self._waiting is not None:
            return succeed(Answer(1, ["another one waits for the reload under way already"]))
        self._waiting = (change, Deferred())
        return self._waiting[1]

    def _changed(self, answer: Answer) -> Answer:
        self._others -= 1
        self._go_on()
        return answer

    def _go_on(self) -> None:
        if self._waiting is not None:
            (change, waiting), self._waiting = self._waiting, None
            self.between(change).chainDeferred(waiting)
        elif self._is_pending and not self._others:
            self._is_pending = False
            self._clock.callLater(0, self.on_sighup)

    def answer(self, _arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """Reload for a command. The Deferred fires with the result and never fails."""
        if self._busy:
            return succeed(Answer(1, ["a reload is under way; wait until it is over"]))
        self._busy = True
        self._notifier.reloading()
        try:
            running = self._run(*self._read())
        except ANYTHING as error:
            lines = error.errors if isinstance(error, UserError) else [f"the plan cannot be read: {describe(error)}"]
            return succeed(self._done(Answer(1, lines)))
        return running.addCallbacks(self._reloaded, _not_reloaded).addCallback(self._done)

    def _reloaded(self, summary: str) -> Answer:
        return Answer(0, [*f"reloaded: {summary}".splitlines(), *self._hints()])

    def _done(self, answer: Answer) -> Answer:
        self._busy = False
        self._notifier.reloaded()
        for line in answer.lines:
            if answer.status:
                _log.error("not reloaded: {line}", line=line)
            else:
                _log.info("{line}", line=line)
        self._go_on()
        return answer


def _not_reloaded(failure: Failure) -> Answer:
    error: Any = failure.value
    if failure.check(UserError):
        return Answer(1, error.errors)
    _log.failure("a reload failed", failure)
    return Answer(1, [describe(error)])


def in_directory(read: ReadPlan, directory: str, chroot: str | None = None) -> ReadPlan:
    """Return a function that calls `read` in `directory`, in which the process was started: relative paths begin there.

    If it was removed, files with absolute paths are still read. Raises `UserError` if it cannot be entered, as one that
    is outside `chroot`.
    """

    def read_there() -> tuple[Plan, Load]:
        hints: list[str] = []
        try:
            with entered(directory) as is_there:
                if chroot and not is_there:
                    raise UserError([_hidden(directory, f"--chroot {escape(chroot)} hides it")])
                if chroot:
                    hints = [f"netsvc runs under --chroot {escape(chroot)}; paths are relative to it"]
                elif not is_there:
                    hints = [removed(directory)]
                # Plugins may have been installed since the start.
                importlib.invalidate_caches()
                return read()
        except UserError as error:
            raise UserError([*error.errors, *hints]) from error
        except OSError as error:
            raise UserError([*hints] or [_hidden(directory, (error.strerror or str(error)).lower())]) from error

    return read_there


def _hidden(directory: str, reason: str) -> str:
    return f"{escape(directory)}, where the process was started, cannot be entered: {reason}; restart netsvc"
