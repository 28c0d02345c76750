"""Finds the netsvc process that a command is for, and sends it the command. Linux only."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import click

from netsvc.base.text import escape, plain
from netsvc.cli.errors import ClientError, exits
from netsvc.control.location import (
    CONFIG_SOCKET,
    abstract_config_name,
    abstract_pid_name,
    bases,
    config_keys,
    is_granted,
    is_same_file,
    read_pid,
)
from netsvc.control.protocol import LONGEST_ANSWER, peer_process, query_words, read_answer, read_statuses
from netsvc.plan.answer import Answer
from netsvc.plan.status import ConnectionQuery

__all__ = [
    "DEFAULT_CONFIG",
    "ClosedError",
    "CommandTarget",
    "Machine",
    "SentCommand",
    "ask",
    "by_config",
    "by_pid",
    "find",
    "find_successor",
    "show_answer",
    "which_process",
]

#: The configuration file that is meant if none is named.
DEFAULT_CONFIG = "netsvc.toml"
#: The longest wait at a time, in seconds: a signal that comes just before one is handled after it.
_LONGEST_WAIT = 1.0
#: Seconds for an answer. A reload restarts every worker.
PATIENCE = 120.0
#: Attempts to connect to a process whose queue is full, and seconds between two.
TRIES, PAUSE = 100, 0.05
#: Processes listed in an error, seconds for all of them to report their listeners, and attempts to reach each.
MOST_LISTED, LISTING_PATIENCE, LISTING_TRIES = 20, 2.0, 3

#: The flags (`__SO_ACCEPTCON`) and the type of a stream socket that listens.
_LISTENS = ["00010000", "0001"]


class ClosedError(ClientError):
    """The process closed the connection without an answer."""


@dataclass(frozen=True)
class CommandTarget:
    """A process that a command is for: the sockets at which it may answer, in this order, and its name in messages.

    `missing` is the error if it does not run. With a `pid`, only that process may answer; with a `config`, it is the
    process that was started with this file.
    """

    names: Sequence[str]
    shown: str
    missing: str
    pid: int = 0
    config: str | None = None


def by_config(config: str, machine: Machine | None = None) -> CommandTarget:
    """Return the target for the process that runs with a configuration file."""
    shown = escape(os.path.abspath(config))
    missing = "" if os.path.exists(config) else ", and there is no such file"
    keys = config_keys(config)
    files = [f"{base}/{key}/{CONFIG_SOCKET}" for base in bases(os.geteuid()) for key in keys]
    # Others may be in the state directory of the process, or in the runtime directory of another user.
    ends = tuple(f"/{key}/{CONFIG_SOCKET}" for key in keys)
    found = sorted(name for name in (machine or Machine()).names() if name.startswith("/") and name.endswith(ends))
    return CommandTarget(
        list(dict.fromkeys([*files, *found, *map(abstract_config_name, keys)])),
        f"the process that runs with {shown}",
        f"no process runs with --config {shown}{missing}; name the file that it was started with",
        config=config,
    )


def by_pid(pid: int, name: str | None = None, machine: Machine | None = None) -> CommandTarget:
    """Return the target for a process id; `name` is its socket, if that is known."""
    missing = f"process {pid} is not a netsvc that answers; netsvc status without --pid finds those that do"
    names = [name] if name else (machine or Machine()).names_of(pid)
    return CommandTarget(names or [abstract_pid_name(pid)], f"process {pid}", missing, pid=pid)


class SentCommand:
    """A command that has been sent to a process. A context manager; leaving it closes the connection.

    `pid` is the process that received it.
    """

    def __init__(self, target: CommandTarget, command: str, patience: float | None = PATIENCE) -> None:
        """Connect and send. Raises `ClientError`."""
        self._target = target
        self._socket, self.pid = _connect(target)
        try:
            self._socket.settimeout(patience)
            with self._failures():
                self._socket.sendall(f"{command}\n".encode())
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> SentCommand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def wait(self, seconds: float) -> bool:
        """Wait until the answer begins to arrive, at most so long. Return whether it does."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def answer(self, patience: float | None = PATIENCE) -> Answer:
        """Read the answer. `patience` is in seconds, None waits for ever. Raises `ClientError`."""
        deadline = None if patience is None else time.monotonic() + patience
        data = b""
        with self._failures():
            while len(data) <= LONGEST_ANSWER:
                left = float("inf") if deadline is None else deadline - time.monotonic()
                # A timeout of 0 would not wait, and be another error.
                self._socket.settimeout(max(0.001, min(left, _LONGEST_WAIT)))
                try:
                    more = self._socket.recv(1 << 18)
                except TimeoutError:
                    if left > _LONGEST_WAIT:
                        continue
                    raise
                if not more:
                    break
                data += more
            return read_answer(data)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise ClientError(f"{self._target.shown} does not answer; its log may say why") from None
        except (OSError, ValueError):
            raise ClosedError(
                f"{self._target.shown} closed the connection; it answers its own user and root only, "
                "and only while it has free file descriptors"
            ) from None


def ask(target: CommandTarget, command: str, patience: float | None = PATIENCE) -> Answer:
    """Send a command and return the answer. `patience` is in seconds, None waits for ever. Raises `ClientError`."""
    with SentCommand(target, command, patience) as request:
        return request.answer(patience)


def _connect(target: CommandTarget) -> tuple[socket.socket, int]:
    """Connect to the process that is meant; return its pid, too. Raises `ClientError`."""
    refusal = target.missing
    for name in target.names:
        for _ in range(TRIES):
            try:
                connection = _open(name)
            except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
                break
            except PermissionError:
                refusal = f"{target.shown} belongs to {_owner(name)}; run this as that user or as root"
                break
            except BlockingIOError:
                time.sleep(PAUSE)
            except OSError as error:
                reason = escape(error.strerror or str(error))
                raise ClientError(f"cannot connect to {target.shown}: {reason}") from None
            else:
                try:
                    return connection, _check_peer(connection, name, target)
                except (ClientError, OSError) as error:
                    # Another process; the one that is meant may have another name.
                    refusal = str(error)
                    connection.close()
                    break
        else:
            raise ClientError(f"{target.shown} is busy; try again")
    raise ClientError(refusal)


def _open(name: str) -> socket.socket:
    """Connect without waiting. Raises `OSError`; `BlockingIOError` while the queue of the listener is full."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_peer(connection: socket.socket, name: str, target: CommandTarget) -> int:
    """Return the pid of the process that answers. Raises `ClientError` if it is another than the one that is meant.

    Every user can take an abstract name. A process that is named by its pid is known for certain. Of a configuration
    file it must belong to this user; for root also to the owner of the file, or to the user to whom root has given the
    directory of the socket.
    """
    pid, user = peer_process(connection)
    who = f"process {pid} of user {user}" if pid else f"a process of user {user} in another container"
    if os.geteuid() not in (0, user):
        raise ClientError(f"the process that answers belongs to user {user}; run this as that user or as root")
    if target.pid:
        # The pid of a process in another container is not known here, and no such process is meant.
        if pid != target.pid:
            raise ClientError(f"{target.shown} does not answer: {who} has taken its name")
    elif not pid:
        raise ClientError(f"{target.shown} does not answer: {who} does; run this command in its container")
    elif user != os.geteuid() and not _owns(user, target.config) and not is_granted(name, user):
        raise ClientError(
            f"{target.shown} does not answer: {who} does, which may have taken its name; "
            f"name it with --pid {pid} if you mean it"
        )
    elif target.config is not None and not is_same_file(target.config, pid):
        raise ClientError(
            f"{target.shown} does not answer: {who} does, which has another file of this name, or none, "
            f"in its mount namespace; name it with --pid {pid} if you mean it"
        )
    return pid


def _owner(name: str) -> str:
    """Describe the user of a socket in a directory that this user cannot enter."""
    try:
        return f"user {os.stat(os.path.dirname(name)).st_uid}"
    except OSError:
        return "another user"


def _owns(user: int, config: str | None) -> bool:
    try:
        return config is not None and os.stat(config).st_uid == user
    except OSError:
        return False


def show_answer(answer: Answer) -> int:
    """Print an answer, to stderr if the command failed. Return the exit status."""
    for line in answer.lines:
        click.echo(f"netsvc: {plain(line)}" if answer.status else plain(line), err=bool(answer.status))
    return 1 if answer.status else 0


def which_process(*, acts: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--config` and `--pid` to a command, which gets the process that they name as `target`.

    A command that `acts`, and does not only ask, uses no process of another directory that they do not name.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--config", metavar="FILE", help="The process that was started with this configuration file.")
        @click.option(
            "--pid", type=click.IntRange(1, (1 << 22) - 1), metavar="PID", help="The process with this number."
        )
        @wraps(command)
        def with_target(*, config: str | None, pid: int | None, **given: Any) -> Any:
            if config is not None and pid is not None:
                raise click.UsageError("--config and --pid both name a process; give one of them")
            with exits():
                return command(target=find(config, pid, acts=acts), **given)

        with_target.__doc__ = (command.__doc__ or "") + (_WHICH_ACTS if acts else _WHICH_ASKS)
        return with_target

    return add


_WHICH_ACTS = """

    Without --config and --pid, the process is the one that runs with ./netsvc.toml, or else the only netsvc that you
    run in this directory.
    """
_WHICH_ASKS = """

    Without --config and --pid, the process is the one that runs with ./netsvc.toml, or else the only netsvc that you
    run in this directory, or on this machine.
    """


@dataclass(frozen=True)
class _Running:
    """A process that answers: its socket name, its pid as seen from here, and its user."""

    name: str
    pid: int
    user: int

    @property
    def target(self) -> CommandTarget:
        return by_pid(self.pid, self.name)


class Machine:
    """The processes of this machine, read from `proc`, as `user` sees them."""

    def __init__(self, proc: Path = Path("/proc"), user: int | None = None) -> None:
        self._proc = proc
        self.user = os.geteuid() if user is None else user

    def names(self) -> set[str]:
        """List the names of the UNIX sockets that listen, as /proc writes them: NUL as `@`."""
        found = set()
        with suppress(OSError), (self._proc / "net" / "unix").open(encoding="utf-8", errors="replace") as table:
            for line in table:
                fields = line.rstrip("\n").split(maxsplit=7)
                if len(fields) == 8 and fields[3:5] == _LISTENS:
                    found.add(fields[7])
        return found

    def names_of(self, pid: int) -> list[str]:
        """List the names of the sockets that may be those of a process, files first."""
        return [_socket_name(name) for name in sorted(self.names()) if read_pid(name) == pid][::-1]

    def running(self) -> list[_Running]:
        """List the netsvc processes that answer this user, by pid: for root also those of other users."""
        processes: dict[int, _Running] = {}
        deadline = time.monotonic() + LISTING_PATIENCE
        for name in sorted(self.names()):
            if read_pid(name):
                process = self.contact(_socket_name(name), deadline)
                if process is not None and self.user in (0, process.user):
                    processes[process.pid] = process
        return sorted(processes.values(), key=lambda process: process.pid)

    def contact(self, name: str, deadline: float) -> _Running | None:
        """Return the process that listens at a socket; None if there is none, or if it is busy until the deadline."""
        for _ in range(LISTING_TRIES):
            try:
                with _open(name) as connection:
                    pid, user = peer_process(connection)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return None
                time.sleep(PAUSE)
            except OSError:
                return None
            else:
                # A process in another container has no pid here, and nobody here runs it.
                return _Running(name, pid, user) if pid else None
        return None

    def trusts(self, process: _Running) -> bool:
        """Return whether this user may take a process that claims to be a netsvc for one: see `_check_peer`."""
        return process.user == self.user or is_granted(process.name, process.user)

    def command(self, pid: int) -> str:
        """Return the command line of a process, shortened."""
        try:
            words = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return "?"
        words = [os.path.basename(word) if place < 2 else word for place, word in enumerate(words)]
        if words[0].startswith(b"python") and len(words) > 2 and not words[1].startswith(b"-"):
            # The interpreter of a script.
            del words[0]
        return escape(b" ".join(words).strip(), 120)

    def directory(self, pid: int) -> str:
        """Return the working directory of a process as text, empty if it is not known."""
        try:
            return escape(os.readlink(self._proc / str(pid) / "cwd"))
        except OSError:
            return ""

    def is_here(self, pid: int) -> bool:
        """Return whether the working directory of a process is that of this one; false if it is not known."""
        try:
            return os.path.samefile(self._proc / str(pid) / "cwd", ".")
        except OSError:
            return False

    def parent(self, pid: int) -> int:
        """Return the parent of a process, 0 if it is not known."""
        try:
            stat = (self._proc / str(pid) / "stat").read_bytes()
            # The name before it may have spaces and parentheses (proc(5)).
            return int(stat.rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return 0


def _socket_name(name: str) -> str:
    """Return the name of a socket that /proc writes like this."""
    return f"\0{name[1:]}" if name.startswith("@") else name


def find(
    config: str | None = None, pid: int | None = None, machine: Machine | None = None, *, acts: bool = False
) -> CommandTarget:
    """Find the process that a command is for.

    Without a file and a pid it is the one that runs with ./netsvc.toml, or else the only one of this user (for root: of
    all users) whose working directory is this one, or else, unless the command `acts`, the only one of this machine. A
    pid may be that of the process's parent. Raises `ClientError` if there is none, or several: then with a line for
    each.
    """
    if sys.platform != "linux":
        raise ClientError("this needs Linux; elsewhere use signals: kill -HUP PID reloads, kill -TERM PID drains")
    machine = machine or Machine()
    if config is not None:
        return by_config(config, machine)
    return _find_default(machine, acts) if pid is None else _find_pid(machine, pid)


def find_successor(keys: Set[tuple[str, str, str]], machine: Machine | None = None) -> CommandTarget | None:
    """Find the one process that has a listener with one of these keys (`ListenerStatus.key`) and does not drain."""
    running = (machine or Machine()).running()
    same = [each for each, has in _with_listeners(running) if not has.is_draining and keys & has.keys]
    return same[0].target if len(same) == 1 else None


def _find_pid(machine: Machine, pid: int) -> CommandTarget:
    deadline = time.monotonic() + LISTING_PATIENCE
    named = by_pid(pid, machine=machine)
    for name in named.names:
        process = machine.contact(name, deadline)
        if process is not None and process.pid == pid:
            return process.target
        if not name.startswith("\0") and not os.access(os.path.dirname(name), os.X_OK):
            # The process of another user, as far as it can be seen.
            return named
    running = machine.running()
    for process in running:
        # In its own container it has another pid, and a name after that one.
        if process.pid == pid:
            return process.target
    # The parent: a shell, or the process that stays in front after an upgrade.
    children = [each for each in running if machine.parent(each.pid) == pid and machine.trusts(each)]
    if not children:
        raise ClientError(named.missing)
    return _only_one(machine, children)


def _find_default(machine: Machine, acts: bool) -> CommandTarget:
    default = by_config(DEFAULT_CONFIG, machine)
    names = {_socket_name(name) for name in machine.names()}
    if any(name in names for name in default.names):
        return default
    running = machine.running()
    has_file = os.path.exists(DEFAULT_CONFIG)
    if not running:
        none = "no netsvc of yours runs on this machine; start one, or look for another user's as root"
        raise ClientError(default.missing if has_file else none)
    trusted = [each for each in running if machine.trusts(each)]
    if not trusted:
        # Any user could run a process that claims to be a netsvc.
        first = f"no netsvc of user {machine.user} runs on this machine; name one of another user with --pid"
        raise ClientError("\n".join(_list_processes(machine, first, len(running), _with_listeners(running))))
    here = [each for each in trusted if machine.is_here(each.pid)]
    only = _only_one(machine, here or trusted)
    if acts and not here:
        # It may be the server of another project.
        where = machine.directory(only.pid) or "another directory"
        raise ClientError(f"process {only.pid} runs in {where}, not here; name it with --pid {only.pid} if you mean it")
    if has_file:
        without = f"no process runs with ./{DEFAULT_CONFIG}; the only one is {only.pid}"
        click.echo(f"netsvc: {without}: {machine.command(only.pid)}", err=True)
    elif not here:
        where = machine.directory(only.pid) or "another directory"
        click.echo(f"netsvc: process {only.pid} is not from this directory, but from {where}", err=True)
    return only


def _only_one(machine: Machine, running: Sequence[_Running]) -> CommandTarget:
    if len(running) == 1:
        return running[0].target
    listed = _with_listeners(running)
    # After an upgrade, the old process may still have connections to end.
    staying = [each for each, has in listed if not has.is_draining]
    if len(staying) != 1 or len(running) > len(listed):
        first = f"{len(running)} netsvc processes run on this machine; name one with --pid"
        raise ClientError("\n".join(_list_processes(machine, first, len(running), listed)))
    return staying[0].target


class _Listeners(NamedTuple):
    """Whether a process drains, and the keys of its listeners."""

    is_draining: bool = False
    keys: Set[tuple[str, str, str]] = frozenset()


def _with_listeners(running: Sequence[_Running]) -> list[tuple[_Running, _Listeners]]:
    """Ask the first `MOST_LISTED` processes for their listeners, all at the same time."""
    deadline = time.monotonic() + LISTING_PATIENCE
    requests: list[SentCommand | None] = []
    for each in running[:MOST_LISTED]:
        try:
            requests.append(SentCommand(each.target, f"status {query_words(ConnectionQuery(0))}", LISTING_PATIENCE))
        except ClientError:
            requests.append(None)
    return [
        (each, _read_listeners(request, deadline - time.monotonic()))
        for each, request in zip(running, requests, strict=False)
    ]


def _read_listeners(request: SentCommand | None, patience: float) -> _Listeners:
    if request is None:
        return _Listeners()
    with request:
        try:
            statuses, _ = read_statuses(request.answer(patience))
        except (ClientError, ValueError):
            return _Listeners()
    is_draining = bool(statuses) and all(status.state == "draining" for status in statuses)
    return _Listeners(is_draining, {listener.key for status in statuses for listener in status.listeners})


def _list_processes(
    machine: Machine, first: str, number: int, listed: Sequence[tuple[_Running, _Listeners]]
) -> Iterator[str]:
    yield first
    for each, has in listed:
        owner = f" of user {each.user}" if each.user != os.geteuid() else ""
        listeners = [" ".join(key) for key in sorted(has.keys)]
        more = f" and {len(listeners) - 3} more" if len(listeners) > 3 else ""
        serves = f"; {', '.join(listeners[:3])}{more}" if listeners else ""
        yield f"--pid {each.pid}{owner}: {machine.command(each.pid)}{serves}"
    if number > len(listed):
        yield f"and {number - len(listed)} more"
