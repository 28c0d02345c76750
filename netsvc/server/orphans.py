"""Reaps orphans: children of processes that have ended, which the kernel gives to the first process of a container."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

from twisted.internet.process import reapProcessHandlers

#: Seconds between two looks.
LOOK_INTERVAL = 2.0

#: The child has ended, and stays a zombie.
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Orphans:
    """Reaps the children of this process that nothing else reaps.

    Children that Twisted has started are left to it, and every other child for `LOOK_INTERVAL`: its own code may wait
    for it. It ends when `is_over` returns True. `list_children` returns the pids of the children.
    """

    def __init__(
        self, clock: Any, is_over: Callable[[], bool], list_children: Callable[[], Collection[int]] | None = None
    ) -> None:
        self._clock = clock
        self._is_over = is_over
        self._list_children = list_children or children
        self._seen: set[int] = set()

    def start(self) -> None:
        """Look every `LOOK_INTERVAL` seconds."""
        self._clock.callLater(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        if self._is_over():
            return
        zombies = set(self._zombies())
        for pid in zombies & self._seen:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies - self._seen
        self.start()

    def _zombies(self) -> Iterator[int]:
        # Mostly there is none, which one call finds out.
        if not _has_ended(os.P_ALL, 0):
            return
        for pid in self._list_children():
            if pid not in reapProcessHandlers and _has_ended(os.P_PID, pid):
                yield pid


def _has_ended(kind: int, number: int) -> bool:
    try:
        return os.waitid(kind, number, _LOOK) is not None
    except ChildProcessError:
        return False


def children() -> list[int]:
    """List the children of this process (proc(5)); an empty list if the system does not tell."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found
