"""`netsvc drain`: has a running process end its conversations, and then itself."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import click

from netsvc.client.asking import ClosedError, Process, of_pid, request, tell, which_process
from netsvc.client.failure import ClientError
from netsvc.client.finding import Machine
from netsvc.client.running import conclude
from netsvc.client.watch import take_look
from netsvc.host.commands import query_words
from netsvc.status import ConnectionQuery

__all__ = ["command"]

#: Seconds between two looks at how many are left.
INTERVAL = 1.0

_NUMBERS = query_words(ConnectionQuery(0))


@click.command(name="drain", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant; nothing is asked without a terminal.")
@which_process
def command(process: Process, yes: bool) -> None:
    """Have the running process end, and say who held it up.

    It accepts nobody any more, lets conversations end, and stops. Conversations have as long as `--drain` says, or what
    their service has; then they are closed. Ctrl-C ends the waiting for all that; the drain goes on.
    """
    if not yes and _is_terminal():
        running = f" ({Machine().command(process.pid)})" if process.pid else ""
        click.confirm(f"{process.shown}{running} will stop; is it meant?", abort=True, err=True)
    conclude(drain(process, watched=_is_terminal()))


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


async def drain(process: Process, *, watched: bool, interval: float = INTERVAL) -> int:
    """Ask for it, wait, and show the report; meanwhile, if it is `watched`, how many are left. Return the exit status.

    Raises `ClientError`.
    """
    watching = asyncio.ensure_future(_watch(await _same(process), interval)) if watched else None
    try:
        return tell(await request(process, "drain", None))
    except ClosedError:
        raise ClientError(f"{process.shown} has closed the connection with no report; its log has it") from None
    except asyncio.CancelledError:
        click.echo("netsvc: the drain goes on; netsvc status shows it", err=True)
        raise
    finally:
        if watching is not None:
            watching.cancel()


async def _same(process: Process) -> Process:
    # One that drains leaves the name of its file to others, and answers by its pid.
    with suppress(ClientError):
        _, pid = await take_look(process, _NUMBERS)
        if process.config is not None and pid:
            return of_pid(pid)
    return process


async def _watch(process: Process, interval: float) -> None:
    told = 0
    while True:
        await asyncio.sleep(interval)
        # By its end it may be too busy to tell.
        with suppress(ClientError):
            left = (await take_look(process, _NUMBERS))[0].totals.open
            if left and left != told:
                click.echo(f"netsvc: {left} connection{'s' * (left != 1)} left", err=True)
            told = left
