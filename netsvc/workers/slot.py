"""Keeps one worker running: starts another process, after a pause, when one dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger

from netsvc.plan.status import ProcessStatus
from netsvc.workers.channel import ChildProcess, report
from netsvc.workers.cover import CoverLink
from netsvc.workers.reports import relay, relay_access, relay_line, relay_requests
from netsvc.workers.status import Inquiry

#: Seconds. A worker that has lived this long is replaced at once, and the delay is reset.
HEALTHY_AFTER = 60.0
#: Seconds before the next process starts; doubled, up to the maximum, for each that dies before `HEALTHY_AFTER`.
RESTART_DELAY = 1.0
MAX_RESTART_DELAY = 30.0

_log = Logger(namespace="netsvc")


class Child(ChildProcess):
    """A worker process, seen from its parent.

    `ready` is called when it serves, `failed` with the reasons, a line each, when it reports that it cannot start, and
    `ended` with how it ended.
    """

    def __init__(
        self,
        number: int,
        clock: Any,
        *,
        ready: Callable[[], None],
        failed: Callable[[Sequence[str]], None],
        ended: Callable[[str], None],
    ) -> None:
        super().__init__(clock, reported=self._reported_by_worker, printed=self._printed_by_worker, ended=self._gone)
        self.number = number
        self.inquiry = Inquiry(clock, self.order)
        #: The report of its drain; empty before that is over.
        self.drained: Sequence[str] = ()
        #: See `netsvc.workers.cover`. None before the start.
        self.link: CoverLink | None = None
        self._serves = False
        self._on_ready = ready
        self._on_failed = failed
        self._on_gone = ended

    def serve(self) -> None:
        """Order the worker to accept connections and datagrams."""
        if not self._serves:
            self._serves = True
            self.order(b"serve\n")

    def drain(self) -> None:
        """Order the worker to drain and end, after earlier orders."""
        self.order(b"drain\n")

    def force(self) -> None:
        """Order the worker to cut its drain short."""
        self.order(b"force\n")

    def _reported_by_worker(self, kind: str, *arguments: str) -> None:
        if kind == "log":
            relay(self.number, *arguments)
        elif kind == "access":
            relay_access(*arguments)
        elif kind == "requests":
            relay_requests(*arguments)
        elif kind == "drained":
            self.drained = arguments
        elif kind == "ready":
            self._on_ready()
        elif kind == "answer":
            self.inquiry.answered(*arguments)
        elif kind == "final":
            self.inquiry.final_status(*arguments)
        elif kind == "failed":
            self._on_failed(arguments)
        else:
            self._printed_by_worker(report(kind, *arguments).rstrip(), True)

    def _printed_by_worker(self, line: bytes, is_error: bool) -> None:
        relay_line(self.number, line, error=is_error)

    def _gone(self, how: str) -> None:
        self.inquiry.close()
        if self.link is not None:
            self.link.close()
        self._on_gone(how)


class Slot:
    """Keeps one worker running.

    `spawn` starts the process of a `Child`, or raises `OSError`. `ready` is called when the first process serves,
    `replaced` when a later one does, `failed` with the reason if none ever does, and `ended` whenever one has ended. A
    process is replaced only after one has served, or if the slot replaces one that has (`persistent`). For a process
    that has ended, `departed` is called with its last known status, and `drained` with its name and the report of its
    drain.
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
        replaced: Callable[[], None] = lambda: None,
        departed: Callable[[ProcessStatus], None] = lambda status: None,
        drained: Callable[[str, Sequence[str]], None] = lambda name, lines: None,
        persistent: bool = False,
    ) -> None:
        #: The running process; None between two processes.
        self.child: Child | None = None
        self._number = number
        self._clock = clock
        self._spawn = spawn
        self._on_ready = ready
        self._on_failed = failed
        self._on_ended = ended
        self._on_replaced = replaced
        self._on_departed = departed
        self._on_drained = drained
        #: Whether the process is ready.
        self.is_ready = False
        self._served = persistent
        self._stopping = False
        self._started = 0.0
        self._delay = RESTART_DELAY
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
        """Drain and end the process, and start no other."""
        self._stopping = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self.child is not None:
            self.child.drain()
            if not self.is_ready:
                # It may not read its orders before it is ready. It serves no connection that could be lost.
                self.child.signal("TERM")

    @property
    def is_stopping(self) -> bool:
        """Whether no other process will be started."""
        return self._stopping

    @property
    def is_being_replaced(self) -> bool:
        """Whether its process has died, and the next one does not serve yet."""
        return self._served and not self._stopping and not self.is_ready

    def retire(self, order: bytes) -> None:
        """Send the process an order that ends it, and start no other."""
        self._stopping = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self.child is not None:
            self.child.order(order)

    @property
    def name(self) -> str:
        """The name of the worker in the log."""
        pid = self.child and self.child.pid
        return f"worker {self._number} (pid {pid})" if pid else f"worker {self._number}"

    def not_ready(self) -> str:
        """Return the reason why the worker is not ready; an empty string if it is."""
        if self.is_ready:
            return ""
        return f"{self.name} {'is starting' if self.child else 'has ended; the next one starts soon'}"

    def _ready(self) -> None:
        self.is_ready = True
        if self._served:
            _log.info("{worker} is ready", worker=self.name)
            self._on_replaced()
        else:
            self._served = True
            self._on_ready()

    def _failed(self, lines: Sequence[str]) -> None:
        reasons = [f"worker {self._number} cannot start: {line}" for line in lines]
        if not self._served:
            self._on_failed("\n".join(reasons))
            return
        for reason in reasons:
            _log.critical("{reason}", reason=reason)

    def _ended(self, how: str) -> None:
        name, child, self.child, self.is_ready = self.name, self.child, None, False
        if child is not None and child.drained:
            self._on_drained(name, child.drained)
        if child is not None and (last := child.inquiry.all_counted()) is not None:
            self._on_departed(last)
        if not (self._stopping or self._served):
            self._on_failed(f"{name} {how}, and was never ready")
        elif not self._stopping:
            delay = 0.0
            if self._clock.seconds() - self._started < HEALTHY_AFTER:
                delay, self._delay = self._delay, min(2 * self._delay, MAX_RESTART_DELAY)
            else:
                self._delay = RESTART_DELAY
            _log.warn(
                "{worker} {how}; the next starts {when}",
                worker=name,
                how=how,
                when=f"in {delay:g} s" if delay else "now",
            )
            self._next = self._clock.callLater(delay, self.start)
        self._on_ended()
