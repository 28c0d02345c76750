"""Runs a client to its end and turns every way it can end into an exit status."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import click

from netsvc.client.failure import ClientError, LeaveError, OutputClosedError

__all__ = ["conclude"]

#: What a shell reports of a process that a signal ended is this and the signal's number.
_BY_SIGNAL = 128


def conclude(client: Coroutine[Any, Any, int]) -> None:
    """Run `client` and end the command with the exit status that it returns.

    A `ClientError` is one line on stderr and status 1; Ctrl-C, TERM and HUP let the client clean up, and give
    130, 143 and 129; a reader of our output that has left gives 141. None of them shows a traceback.
    """
    received: list[int] = []
    try:
        status = asyncio.run(_main(client, received))
    except ClientError as error:
        click.echo(f"netsvc: {error}", err=True)
        status = 1
    except (KeyboardInterrupt, LeaveError):
        status = _BY_SIGNAL + signal.SIGINT
    except OutputClosedError:
        status = _BY_SIGNAL + signal.SIGPIPE
    except asyncio.CancelledError:
        status = _BY_SIGNAL + received[0]
    raise click.exceptions.Exit(status)


async def _main(client: Coroutine[Any, Any, int], received: list[int]) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def end(number: int, _frame: object) -> None:
        received.append(number)
        loop.call_soon_threadsafe(task.cancel)

    with _signals(end):
        return await client


@contextmanager
def _signals(end: Any) -> Iterator[None]:
    # asyncio.run does the same for Ctrl-C. The loop's own add_signal_handler would take over the process's one
    # wake-up descriptor, which another event loop in it may need.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Whoever ignores a signal for us (nohup) means it.
        if signal.getsignal(number) is signal.SIG_DFL:
            previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, disposition in previous.items():
            signal.signal(number, disposition)
