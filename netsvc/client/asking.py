"""Asks a running netsvc to do something, and shows what it answers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

import click

from netsvc.client.failure import ClientError
from netsvc.host.control import LONGEST_ANSWER, Answer, control_names, peer_process, pid_name, read_answer
from netsvc.text import escape, plain

__all__ = [
    "ClosedError",
    "Process",
    "ask",
    "connect",
    "consult",
    "of_config",
    "of_pid",
    "request",
    "show",
    "tell",
    "which_process",
]

#: Seconds that an answer may take. A reload starts every worker anew, and an endpoint may take its time.
PATIENCE = 120.0
#: How often it is tried to be heard, and the seconds in between.
TRIES, PAUSE = 100, 0.05


class ClosedError(ClientError):
    """It was asked, and has closed the connection without an answer."""


@dataclass(frozen=True)
class Process:
    """A process that runs, or may run: the names at which it may answer, and what it is called in a message.

    `missing` says what to do if it does not run. If there is a `pid`, whoever answers is that process; if there is a
    `config`, it was started with that file.
    """

    names: Sequence[str]
    shown: str
    missing: str
    pid: int = 0
    config: str | None = None


def of_config(config: str) -> Process:
    """Name the process that runs with a configuration file."""
    shown = escape(os.path.abspath(config))
    missing = "" if os.path.exists(config) else ", and there is no such file"
    return Process(
        control_names(config),
        f"the process that runs with {shown}",
        f"no process runs with --config {shown}{missing}; name the file that it was started with",
        config=config,
    )


def of_pid(pid: int, name: str | None = None) -> Process:
    """Name a process by its pid; `name` is where it answers, if that is known."""
    missing = f"process {pid} is no netsvc that answers; `netsvc status` without --pid finds those that do"
    return Process([name or pid_name(pid)], f"process {pid}", missing, pid=pid)


def connect(name: str) -> socket.socket:
    """Open a connection that blocks nobody. Raises `OSError`, `BlockingIOError` while too many wait to be heard."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def ask(process: Process, words: str, patience: float | None = PATIENCE) -> Answer:
    """Send a request and wait for the answer, `patience` seconds or for ever. Raises `ClientError`."""
    return asyncio.run(request(process, words, patience))


async def request(process: Process, words: str, patience: float | None = PATIENCE) -> Answer:
    """Do what `ask` does, beside other things."""
    return (await consult(process, words, patience))[0]


async def consult(process: Process, words: str, patience: float | None) -> tuple[Answer, int]:
    """Do what `request` does; return also the pid of the process that has answered, or 0 if it cannot be seen."""
    connection = await _connected(process)
    with connection:
        try:
            async with asyncio.timeout(patience):
                pid = _check(connection, process)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(connection, f"{words}\n".encode())
                return read_answer(await _read(connection)), pid
        except TimeoutError:
            raise ClientError(f"{process.shown} does not answer; its log may say why") from None
        except (OSError, ValueError):
            raise ClosedError(
                f"{process.shown} closed the connection: it answers its own user, and root, "
                "and can do so only while it may open files"
            ) from None


async def _connected(process: Process) -> socket.socket:
    for name in process.names:
        for _ in range(TRIES):
            try:
                return connect(name)
            except ConnectionRefusedError:
                break
            except BlockingIOError:
                await asyncio.sleep(PAUSE)
            except OSError as error:
                raise ClientError(f"{process.shown} cannot be asked: {escape(error.strerror or str(error))}") from None
        else:
            raise ClientError(f"{process.shown} has no time; try again")
    raise ClientError(process.missing)


def _check(connection: socket.socket, process: Process) -> int:
    """Return the pid of who answers. Raises `ClientError` if somebody else has taken the name.

    Root may ask anybody's process, and is warned if that is not the owner of the file.
    """
    pid, user = peer_process(connection)
    if os.geteuid() not in (0, user):
        raise ClientError(f"the process that answers is that of user {user}; ask as that user, or as root")
    if process.pid:
        # Anybody may have taken the name. One that runs in a container cannot be seen from outside it.
        if pid not in (0, process.pid):
            raise ClientError(f"{process.shown} does not answer: process {pid} of user {user} has taken its name")
    elif user not in (0, os.geteuid()) and not _owns(user, process.config):
        click.echo(f"netsvc: warning: the process that answers is that of user {user}", err=True)
    return pid


def _owns(user: int, config: str | None) -> bool:
    try:
        return config is not None and os.stat(config).st_uid == user
    except OSError:
        return False


async def _read(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) <= LONGEST_ANSWER and (more := await loop.sock_recv(connection, 1 << 18)):
        data += more
    return data


def tell(answer: Answer) -> int:
    """Show an answer; return the exit status, which is 1 if it was not done."""
    for line in answer.lines:
        click.echo(f"netsvc: {plain(line)}" if answer.status else plain(line), err=bool(answer.status))
    return 1 if answer.status else 0


def show(answer: Answer) -> NoReturn:
    """Show an answer, and end the command."""
    sys.exit(tell(answer))


def which_process(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which process is meant, and that `Process` as `process`.

    A `ClientError` that the command raises is its one line on stderr, with exit status 1.
    """

    @click.option("--config", metavar="FILE", help="The process that was started with this configuration file.")
    @click.option("--pid", type=click.IntRange(1, (1 << 22) - 1), metavar="PID", help="The process with this number.")
    @wraps(command)
    def with_process(*, config: str | None, pid: int | None, **given: Any) -> Any:
        from netsvc.client.finding import find

        if config is not None and pid is not None:
            raise click.UsageError("--config and --pid each name a process; give one of them")
        try:
            return command(process=find(config, pid), **given)
        except ClientError as error:
            show(Answer(1, str(error).splitlines()))

    with_process.__doc__ = (command.__doc__ or "") + _WHICH
    return with_process


_WHICH = """

    Without --config and --pid it is the process that runs with ./netsvc.toml, or the only netsvc that you run on this
    machine.
    """
