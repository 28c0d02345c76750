"""Runs coroutines so that asyncio's libraries work in them, where an asyncio reactor runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return asyncio's event loop, if the reactor is one of asyncio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def deferred_of(awaited: Any) -> Deferred[Any]:
    """Return what a coroutine waits for as a Deferred. Raises an error to throw into the coroutine if it cannot be."""
    if getattr(awaited, "_asyncio_future_blocking", None) is not None:
        # As asyncio's own tasks do: what awaits the future checks it.
        awaited._asyncio_future_blocking = False
        if not awaited.get_loop().is_running():
            raise RuntimeError("no running event loop")
        return Deferred.fromFuture(awaited)
    if awaited is None:
        # `asyncio.sleep(0)`: the next turn of the loop.
        turn: Deferred[None] = Deferred()
        asyncio.get_running_loop().call_soon(_passed_on, None, turn)
        return turn
    if not isinstance(awaited, Deferred):
        raise TypeError(f"a coroutine of netsvc cannot await {type(awaited).__name__}; await the stream or a Deferred")
    return awaited


class CurrentTask:
    """Stands in as asyncio's current task while a coroutine runs that is not a task.

    Libraries cancel the current task for their time-outs: then `cancelled` is called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cancelled: Callable[[], None]) -> None:
        self._loop = loop
        self._cancelled = cancelled
        self._is_over = False
        self._task = loop.create_task(self._wait())

    async def _wait(self) -> None:
        while not self._is_over:
            try:
                await self._loop.create_future()
            except asyncio.CancelledError:
                if not self._is_over:
                    self._cancelled()

    def step(self, step: Callable[[Any], Any], value: Any) -> Any:
        """Call `step(value)`, the `send` or `throw` of the coroutine, with this as the current task."""
        loop = self._loop
        # There is another one if a coroutine fires what this one waits for.
        outer = asyncio.current_task(loop)
        if outer is not None:
            asyncio.tasks._leave_task(loop, outer)
        asyncio.tasks._enter_task(loop, self._task)
        try:
            return step(value)
        finally:
            asyncio.tasks._leave_task(loop, self._task)
            if outer is not None:
                asyncio.tasks._enter_task(loop, outer)

    def close(self) -> None:
        """End the task: the coroutine has ended."""
        self._is_over = True
        self._task.cancel()


@coroutine
def run_in_task(running: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, Any]:
    """Run a coroutine that awaits Deferreds or asyncio's futures, for `Deferred.fromCoroutine`."""
    waits: Deferred[Any] | None = None
    was_cancelled = False

    def cancel() -> None:
        nonlocal was_cancelled
        was_cancelled = True
        if waits is not None:
            waits.cancel()

    current = CurrentTask(loop, cancel)
    error: BaseException | None = None
    try:
        while True:
            try:
                awaited = current.step(running.send, None) if error is None else current.step(running.throw, error)
            except StopIteration as end:
                return end.value
            error = None
            try:
                # The coroutine takes the result from the Deferred itself.
                waits = deferred_of(awaited)
                fired: Deferred[None] = Deferred(lambda _: cancel())
                waits.addBoth(_passed_on, fired)
                yield fired
            except BaseException as raised:  # noqa: BLE001  (it is for the coroutine)
                error = raised
            if was_cancelled:
                error, was_cancelled = asyncio.CancelledError(), False
    finally:
        current.close()


def _passed_on(result: Any, fired: Deferred[None]) -> Any:
    if fired.called:
        # It was cancelled.
        return None
    if isinstance(result, Failure):
        fired.errback(result)
        return None
    fired.callback(None)
    return result
