"""Those who have asked a process to drain, and are told what came of it before it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning

from netsvc.host.control import Answer

__all__ = ["Farewell", "stop_reactor"]


class Farewell:
    """Begins the end of a process, once, and answers all who asked for it. `stop` begins it."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._has_begun = False
        self._waiting: list[Deferred[Answer]] = []
        self._report: Sequence[str] | None = None

    @property
    def lines(self) -> Sequence[str]:
        """What came of it; nothing before it is over."""
        return self._report or ()

    def ask(self, *, is_leaving: bool) -> Deferred[Answer]:
        """Drain, or wait for the drain that is under way. Fires with the report when it is over, and never fails."""
        is_late = is_leaving or self._has_begun
        lines = ["a drain was under way already"] if is_late else []
        if not is_late:
            self._has_begun = True
            self._stop()
        if self._report is not None:
            return succeed(Answer(0, [*lines, *self._report]))
        answer: Deferred[Answer] = Deferred()
        self._waiting.append(answer)
        return answer.addCallback(lambda told: Answer(told.status, [*lines, *told.lines]))

    def report(self, lines: Sequence[str]) -> None:
        """Tell all who wait what came of it."""
        self._report = tuple(lines)
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(Answer(0, self._report))


def stop_reactor(reactor: Any) -> None:
    """Stop the reactor, as a signal does; in its own turn, and without harm if it stops already."""

    def stop() -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    reactor.callFromThread(stop)
