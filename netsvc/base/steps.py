"""A change in several steps: all of it is committed, or all of it is undone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.logger import Logger

from netsvc.base.errors import ANYTHING

_log = Logger(namespace="netsvc")


class Steps:
    """What has been done, how it is undone, and what is left to do when all has succeeded.

    A step of either that fails is logged, and does not keep the others from it.
    """

    def __init__(self) -> None:
        self._commit: list[Callable[[], object]] = []
        self._undo: deque[Callable[[], object]] = deque()

    def on_commit(self, step: Callable[[], object]) -> None:
        """Do a step when all has succeeded, after those given before."""
        self._commit.append(step)

    def on_undo(self, step: Callable[[], object], *, last: bool = False) -> None:
        """Do a step when something has failed: before those given before, or after all others (`last`)."""
        if last:
            self._undo.appendleft(step)
        else:
            self._undo.append(step)

    def commit(self) -> None:
        """Do what is left to do; nothing can be undone after that."""
        self._undo.clear()
        for step in self._commit:
            _do(step, "a step of a change failed")

    def undo(self) -> None:
        """Undo all that was done, once."""
        self._commit.clear()
        while self._undo:
            _do(self._undo.pop(), "what was begun could not be undone")


def _do(step: Callable[[], object], failed: str) -> None:
    try:
        step()
    except ANYTHING:
        _log.failure(failed)
