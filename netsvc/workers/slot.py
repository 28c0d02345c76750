"""The place of one worker: a process, and when that dies, after a pause, the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger

from netsvc.status import ProcessStatus
from netsvc.workers.child import Child

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "LONG_LIFE", "Slot"]

#: Seconds. A worker that has lived so long is replaced at once, and those that died before it are forgotten.
LONG_LIFE = 60.0
#: Seconds before the next worker starts; each that dies young doubles them.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0

_log = Logger(namespace="netsvc")


class Slot:
    """Keeps one worker running.

    `spawn` starts the process of a `Child`, or raises `OSError`. `ready` is called when the first process serves,
    `failed` with the reason if it never does, and `ended` whenever there is no process any more. Only who has
    served is replaced, or stands in for one that has (`persistent`). `departed` is called with the last that is known
    of a process that has ended, and `drained` with its name and what came of its drain.
    """

    def __init__(
        self,
        number: int,
        clock: Any,
        spawn: Callable[[Child], None],
        *,
        ready: Callable[[], None],
        failed: Callable[[str], None],
        ended: Callable[[], None],
        departed: Callable[[ProcessStatus], None] = lambda status: None,
        drained: Callable[[str, Sequence[str]], None] = lambda name, lines: None,
        persistent: bool = False,
    ) -> None:
        #: The process, from its start to its end.
        self.child: Child | None = None
        self._number = number
        self._clock = clock
        self._spawn = spawn
        self._tell_ready = ready
        self._tell_failed = failed
        self._tell_ended = ended
        self._tell_departed = departed
        self._tell_drained = drained
        #: Whether the process is ready.
        self.is_ready = False
        self._served = persistent
        self._stopping = False
        self._started = 0.0
        self._pause = FIRST_PAUSE
        self._next: Any = None

    def start(self) -> None:
        """Start a process."""
        if self._stopping:
            return
        self._started = self._clock.seconds()
        self.child = Child(self._number, self._clock, ready=self._ready, failed=self._failed, ended=self._ended)
        try:
            self._spawn(self.child)
        except OSError as error:
            self._ended(f"could not be started ({error.strerror})")

    def stop(self) -> None:
        """Have the process drain and end, and start no other."""
        self._stopping = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self.child is not None:
            self.child.signal("TERM")

    @property
    def is_stopping(self) -> bool:
        """Whether no other process is to be started."""
        return self._stopping

    def retire(self, order: bytes) -> None:
        """Give the process an order after which it ends, and start no other."""
        self._stopping = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self.child is not None:
            self.child.order(order)

    @property
    def name(self) -> str:
        """What it is called in the log."""
        pid = self.child and self.child.pid
        return f"worker {self._number} (pid {pid})" if pid else f"worker {self._number}"

    def not_ready(self) -> str:
        """Say why it does not serve, if it does not."""
        if self.is_ready:
            return ""
        return f"{self.name} is {'starting' if self.child else 'gone, and the next starts soon'}"

    def _ready(self) -> None:
        self.is_ready = True
        if self._served:
            _log.info("{worker} is ready", worker=self.name)
        else:
            self._served = True
            self._tell_ready()

    def _failed(self, lines: Sequence[str]) -> None:
        reasons = [f"worker {self._number} cannot start: {line}" for line in lines]
        if not self._served:
            self._tell_failed("\n".join(reasons))
            return
        for reason in reasons:
            _log.critical("{reason}", reason=reason)

    def _ended(self, how: str) -> None:
        name, child, self.child, self.is_ready = self.name, self.child, None, False
        if child is not None and child.drained:
            self._tell_drained(name, child.drained)
        if child is not None and (last := child.inquiry.all_counted()) is not None:
            self._tell_departed(last)
        if not (self._stopping or self._served):
            self._tell_failed(f"{name} {how}, and was never ready")
        elif not self._stopping:
            pause = 0.0
            if self._clock.seconds() - self._started < LONG_LIFE:
                pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            else:
                self._pause = FIRST_PAUSE
            _log.warn(
                "{worker} {how}; the next starts {when}",
                worker=name,
                how=how,
                when=f"in {pause:g} s" if pause else "now",
            )
            self._next = self._clock.callLater(pause, self.start)
        self._tell_ended()
