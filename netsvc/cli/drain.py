"""`netsvc drain`: a running process lets its connections end, and stops."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click

from netsvc.cli.errors import ClientError, SignalError
from netsvc.cli.processes import ClosedError, CommandTarget, Machine, SentCommand, by_pid, show_answer, which_process
from netsvc.cli.status import take_snapshot
from netsvc.plan.status import ConnectionQuery

__all__ = ["command", "drain"]

#: Seconds between two reports of how many connections are left.
INTERVAL = 1.0
#: Seconds for the process to end after its report.
END_GRACE = 10.0

_COUNTS = ConnectionQuery(0)


@click.command(name="drain", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Only a terminal is asked.")
@which_process(acts=True)
def command(target: CommandTarget, yes: bool) -> None:
    """Drain and stop a running process.

    It accepts no more connections, lets the open ones end, and stops. They have as much time as the setting `drain`, or
    their service, gives them; then they are closed. The command waits for the end, and prints which connections had to
    be closed, and which process it has stopped. Ctrl-C stops the waiting; the drain continues.

    \b
    Examples:
      netsvc drain
      netsvc drain --pid 4711 --yes
    """
    if not yes and _is_terminal():
        running = f" ({Machine().command(target.pid)})" if target.pid else ""
        click.confirm(f"{target.shown}{running} will drain and stop. Continue?", abort=True, err=True)
    raise click.exceptions.Exit(drain(target, watched=_is_terminal()))


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def drain(target: CommandTarget, *, watched: bool, interval: float = INTERVAL, grace: float = END_GRACE) -> int:
    """Drain a process, wait for the end and print the report. Return the exit status. Raises `ClientError`.

    After the report, the process has `grace` seconds to end.

    If `watched`, how many connections are left is printed every `interval` seconds.
    """
    process = _without_file(target) if watched else target
    left = 0
    try:
        with SentCommand(target, "drain") as request, _watched_process(request.pid) as has_ended:
            while watched and not request.wait(interval):
                left = _report(process, left)
            status = show_answer(request.answer(None))
            if not status:
                stopped = has_ended(grace)
                which = f"pid {request.pid}" if request.pid else target.shown
                click.echo(f"stopped {which}" if stopped else f"drained {which}, which has not ended yet")
            return status
    except ClosedError:
        raise ClientError(f"{target.shown} closed the connection without a report; see its log") from None
    except (KeyboardInterrupt, SignalError):
        click.echo("netsvc: the drain continues; netsvc status shows it", err=True)
        raise


@contextmanager
def _watched_process(pid: int) -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits for the end of a process, for so many seconds, and returns whether it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):
        # It has ended, or is in another container.
        yield lambda _seconds: bool(pid) and not os.path.exists(f"/proc/{pid}")
        return
    try:
        yield lambda seconds: bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _without_file(target: CommandTarget) -> CommandTarget:
    """Return the target by its pid: a process that drains gives the name of its file to its successor."""
    with suppress(ClientError):
        _, pid = take_snapshot(target, _COUNTS)
        if target.config is not None and pid:
            return by_pid(pid)
    return target


def _report(process: CommandTarget, before: int) -> int:
    # Shortly before its end it may be too busy to answer.
    with suppress(ClientError):
        left = take_snapshot(process, _COUNTS, INTERVAL)[0].totals.open
        if left and left != before:
            click.echo(f"netsvc: {left} connection{'s' * (left != 1)} left", err=True)
        return left
    return before
