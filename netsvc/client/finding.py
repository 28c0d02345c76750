"""Finds the netsvc process that is meant, on Linux: by its configuration file, by its pid, or as the only one."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from netsvc.client.asking import Process, connect, of_config, of_pid, request
from netsvc.client.failure import ClientError
from netsvc.host.commands import query_words, read_statuses
from netsvc.host.control import PID_NAME, peer_process
from netsvc.status import ConnectionQuery
from netsvc.text import escape

__all__ = ["HERE", "Found", "Machine", "find", "successor"]

#: The configuration file that is meant if none is named.
HERE = "netsvc.toml"
#: Processes that a mistake lists.
MOST_LISTED = 20
#: Seconds to say what they listen on.
PATIENCE = 2.0
#: How often a process whose queue is full is tried.
_TRIES, _PAUSE = 3, 0.05

#: In /proc/net/unix, NUL is written as `@`. A number of more digits is no pid.
_OWN_NAME = re.compile(re.escape(PID_NAME.replace("\0", "@")) + r"([1-9]\d{0,9})")
#: A socket that listens (`__SO_ACCEPTCON`), of a stream.
_LISTENS = ["00010000", "0001"]


@dataclass(frozen=True)
class Found:
    """A process that answers: at which name, with which pid, seen from here, and of which user."""

    name: str
    pid: int
    user: int


class Machine:
    """What can be seen of the processes of this machine, below `proc`; `user` is who looks."""

    def __init__(self, proc: Path = Path("/proc"), user: int | None = None) -> None:
        self._proc = proc
        self._user = os.geteuid() if user is None else user

    def names(self) -> set[str]:
        """List the abstract names at which somebody listens, as /proc writes them."""
        found = set()
        with suppress(OSError), (self._proc / "net" / "unix").open(encoding="utf-8", errors="replace") as table:
            for line in table:
                fields = line.rstrip("\n").split(maxsplit=7)
                if len(fields) == 8 and fields[3:5] == _LISTENS:
                    found.add(fields[7])
        return found

    async def found(self) -> list[Found]:
        """List the processes that answer whoever looks, by their pids."""
        processes = []
        for name in self.names():
            if match := _OWN_NAME.fullmatch(name):
                number = int(match[1])
                process = await self._known(f"{PID_NAME}{number}", number)
                if process is not None and self._user in (0, process.user):
                    processes.append(process)
        return sorted(processes, key=lambda process: process.pid)

    async def _known(self, name: str, number: int) -> Found | None:
        for _ in range(_TRIES):
            try:
                with connect(name) as connection:
                    pid, user = peer_process(connection)
            except BlockingIOError:
                await asyncio.sleep(_PAUSE)
            except OSError:
                return None
            else:
                return Found(name, pid or number, user)
        return None

    def command(self, pid: int) -> str:
        """Return the command line of a process, in short."""
        try:
            words = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return "?"
        words = [os.path.basename(word) if place < 2 else word for place, word in enumerate(words)]
        if words[0].startswith(b"python") and len(words) > 2 and not words[1].startswith(b"-"):
            # The interpreter of a script.
            del words[0]
        return escape(b" ".join(words).strip(), 120)

    def parent(self, pid: int) -> int:
        """Return the process that has started another one, or watches it since that one has ended; 0 if unknown."""
        try:
            stat = (self._proc / str(pid) / "stat").read_bytes()
            # The name before it may have spaces and parentheses (proc(5)).
            return int(stat.rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return 0


def find(config: str | None = None, pid: int | None = None, machine: Machine | None = None) -> Process:
    """Find the process that is meant. Raises `ClientError`: if nothing or not only one is there, with a line for each.

    With neither a file nor a pid it is the one that runs with ./netsvc.toml, or, where there is no such file, the only
    one of this user; of anybody, for root. A pid may be that of the parent of the one that is meant.
    """
    if sys.platform != "linux":
        raise ClientError("this needs Linux; elsewhere there are signals: kill -HUP PID reloads, kill -TERM PID drains")
    if config is not None:
        return of_config(config)
    machine = machine or Machine()
    return asyncio.run(_only(machine) if pid is None else _by_pid(machine, pid))


async def successor(keys: Set[tuple[str, str, str]], machine: Machine | None = None) -> Process | None:
    """Find the one process that has a listener of these keys (`ListenerStatus.key`) and does not drain, if there is."""
    found = await (machine or Machine()).found()
    looks = await asyncio.gather(*(_look(each) for each in found[:MOST_LISTED]))
    same = [each for each, look in zip(found, looks, strict=False) if not look.is_leaving and keys & look.keys]
    return of_pid(same[0].pid, same[0].name) if len(same) == 1 else None


async def _by_pid(machine: Machine, pid: int) -> Process:
    asked = of_pid(pid)
    if asked.names[0].replace("\0", "@") in machine.names():
        return asked
    found = await machine.found()
    for process in found:
        if process.pid == pid:
            # It has another pid where it runs: in a container.
            return of_pid(pid, process.name)
    # A shell, or what stands before it after an upgrade.
    below = [process for process in found if machine.parent(process.pid) == pid]
    if not below:
        raise ClientError(asked.missing)
    return await _single(machine, below)


async def _only(machine: Machine) -> Process:
    here = of_config(HERE)
    names = machine.names()
    if any(name.replace("\0", "@") in names for name in here.names):
        return here
    found = await machine.found()
    if os.path.exists(HERE):
        # It would be odd to mean another one, which the command might end.
        running = [f"process {each.pid} runs: {machine.command(each.pid)}" for each in found[:MOST_LISTED]]
        raise ClientError(
            "\n".join([f"{here.missing}, or name a process by --pid" if found else here.missing, *running])
        )
    if not found:
        raise ClientError("no netsvc of yours runs on this machine; name another user's as root, or start one")
    return await _single(machine, found)


async def _single(machine: Machine, found: Sequence[Found]) -> Process:
    if len(found) > 1:
        looks = await asyncio.gather(*(_look(each) for each in found[:MOST_LISTED]))
        # After an upgrade, the one before may still have conversations to end.
        staying = [each for each, look in zip(found, looks, strict=False) if not look.is_leaving]
        if len(staying) != 1 or len(found) > MOST_LISTED:
            raise ClientError("\n".join(_listed(machine, found, looks)))
        found = staying
    return of_pid(found[0].pid, found[0].name)


class _Seen(NamedTuple):
    """Whether a process drains, and the keys of what it listens on."""

    is_leaving: bool = False
    keys: Set[tuple[str, str, str]] = frozenset()


async def _look(found: Found) -> _Seen:
    try:
        answer = await request(of_pid(found.pid, found.name), f"status {query_words(ConnectionQuery(0))}", PATIENCE)
        statuses, _ = read_statuses(answer)
    except (ClientError, ValueError):
        return _Seen()
    is_leaving = bool(statuses) and all(status.state == "draining" for status in statuses)
    return _Seen(is_leaving, {listener.key for status in statuses for listener in status.listeners})


def _listed(machine: Machine, found: Sequence[Found], looks: Sequence[_Seen]) -> Iterator[str]:
    yield f"{len(found)} netsvc processes run on this machine; name the one that is meant by --pid"
    for each, look in zip(found, looks, strict=False):
        owner = f" of user {each.user}" if each.user != os.geteuid() else ""
        places = [f"{service} {protocol} {place}" for service, protocol, place in sorted(look.keys)]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        serves = f"; {', '.join(places[:3])}{more}" if places else ""
        yield f"--pid {each.pid}{owner}: {machine.command(each.pid)}{serves}"
    if len(found) > len(looks):
        yield f"and {len(found) - len(looks)} more"
