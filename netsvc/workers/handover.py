"""Replaces old processes by new ones: all of them, or nothing changes.

A reload of workers and an upgrade of the program are handovers.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from netsvc.base.errors import ANYTHING, UserError

#: Seconds for all new processes to be ready.
START_LIMIT = 60.0
#: Seconds for a new process to serve after it is ordered to.
SERVE_LIMIT = 10.0


class Handover:
    """One replacement of processes; subclasses implement its steps.

    `begin` starts the new processes, which accept nothing. When all are ready, there is a step for each old process:
    it pauses, and then new processes serve. Both have the same sockets, so new connections wait in the kernel between.
    `done` fires after the last step. If the handover fails, it fails with `UserError`, and the old processes serve.
    """

    #: Messages for processes that are not ready in time, or do not serve in time.
    _late = "the new process is not ready"
    _stuck = "the new process was ready but did not start serving"

    def __init__(self, clock: Any) -> None:
        self.done: Deferred[None] = Deferred()
        self.is_over = False
        self._clock = clock
        self._call: Any = None
        self._failure: Failure | None = None
        #: The step under way; -1 before the first.
        self._step: int | None = None

    def _start(self) -> None:
        """Start the new processes. May raise an error; no new process runs then."""
        raise NotImplementedError

    def _prepare(self) -> float:
        """Prepare the sockets when all are ready; return the seconds until that takes effect. May raise an error."""
        raise NotImplementedError

    def _steps(self) -> int:
        """Return the number of old processes."""
        raise NotImplementedError

    def _pause(self, step: int) -> None:
        """Stop the old process `step` from accepting."""
        raise NotImplementedError

    def _commit(self, step: int, steps: int) -> bool:
        """Order new processes to serve. Return whether they do; if not yet, the subclass must call `committed`."""
        raise NotImplementedError

    def _release(self) -> None:
        """Close the ports that the new processes now have."""

    def _resume(self) -> None:
        """Let the paused old processes serve again."""

    def _stop(self) -> bool:
        """End the new processes. Return whether that is complete; if not, the subclass must call `stopped`."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start the new processes. Raises the error if they cannot be started."""
        self._limit(START_LIMIT, self._late)
        try:
            self._start()
        except BaseException:
            self._cancel()
            raise

    def ready(self) -> None:
        """Continue with the first step: all new processes are ready."""
        if self._failure is not None or self._step is not None:
            return
        self._cancel()
        try:
            seconds = self._prepare()
        except ANYTHING:
            self._give_up(Failure())
            return
        self._step = -1
        if seconds:
            self._call = self._clock.callLater(seconds, self._go_on, 0)
        else:
            self._go_on(0)

    def committed(self, step: int) -> None:
        """Continue with the next step: the new processes of this step serve."""
        if self._failure is None and not self.is_over and step == self._step:
            self._go_on(step + 1)

    def _go_on(self, first: int) -> None:
        steps = self._steps()
        for step in range(first, steps):
            self._cancel()
            self._step = step
            self._limit(SERVE_LIMIT, self._stuck)
            self._pause(step)
            if not self._commit(step, steps):
                return
        self._cancel()
        self._release()
        self.is_over = True
        self.done.callback(None)

    def fail(self, *lines: str) -> None:
        """Fail the handover for these reasons."""
        self._give_up(Failure(UserError(lines or ["the new process cannot start"])))

    def _give_up(self, failure: Failure) -> None:
        if self.is_over or self._failure is not None:
            return
        self._failure = failure
        self._cancel()
        is_stopped = self._stop()
        if self._step is not None:
            self._resume()
        if is_stopped:
            self.stopped()

    def stopped(self) -> None:
        """Fire `done` with the failure: the new processes have ended."""
        if not self.is_over and self._failure is not None:
            self.is_over = True
            self.done.errback(self._failure)

    def _limit(self, seconds: float, what: str) -> None:
        self._call = self._clock.callLater(seconds, self.fail, f"{what} after {seconds:g} s")

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
