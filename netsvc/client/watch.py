"""Looks at a running netsvc, again and again, through upgrades and new starts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set

from netsvc.client.asking import Process, consult, of_pid, request
from netsvc.client.failure import ClientError
from netsvc.client.finding import successor
from netsvc.client.summary import Key, Look, look

__all__ = ["PATIENCE", "Watch", "take_look"]

#: Seconds that an answer may take.
PATIENCE = 5.0


async def take_look(process: Process, words: str, patience: float = PATIENCE) -> tuple[Look, int]:
    """Look at a process once; return what was seen, and the pid of who has answered. Raises `ClientError`."""
    answer, pid = await consult(process, f"status {words}", patience)
    if answer.status:
        raise ClientError("\n".join(answer.lines))
    try:
        return look(answer, asyncio.get_running_loop().time()), pid
    except ValueError:
        raise ClientError(f"{process.shown} tells its status in another way; is it of another version?") from None


class Watch:
    """Looks at a process again and again, and at the one that takes over from it."""

    def __init__(
        self,
        process: Process,
        *,
        by_pid: Callable[[int], Process] = of_pid,
        successor: Callable[[Set[Key]], Awaitable[Process | None]] = successor,
    ) -> None:
        self._process = process
        #: Who has answered, whatever name it was asked by.
        self._same = process
        self._keys: Set[Key] = frozenset()
        self._by_pid = by_pid
        self._successor = successor

    async def look(self, words: str) -> Look:
        """Look once more. Raises `ClientError` if there is nobody to be seen."""
        try:
            seen, pid = await take_look(self._process, words)
        except ClientError as error:
            elsewhere = await self._find_elsewhere()
            if elsewhere is None:
                raise
            try:
                return (await take_look(elsewhere, words))[0]
            except ClientError:
                raise error from None
        if self._process.config is not None and pid:
            self._same = self._by_pid(pid)
        self._keys = {listener.key for listener in seen.listeners} or self._keys
        return seen

    async def _find_elsewhere(self) -> Process | None:
        if self._process.config is not None:
            # One that drains leaves the name of its file to others, and answers by its pid.
            return self._same
        # One that was named by its pid may have left its ports to another process.
        other = await self._successor(self._keys)
        if other is not None:
            self._process = self._same = other
        return other

    async def close(self, connection: str) -> str:
        """Have a connection closed; return what came of it."""
        try:
            answer = await request(self._same, f"close {connection}", PATIENCE)
        except ClientError as error:
            return str(error)
        return "; ".join(answer.lines)
