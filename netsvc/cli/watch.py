"""`netsvc run --reload-on-change`: runs the server as a child process, and upgrades it when a source file changes.

The new process takes over the open ports, so listeners never close. If the changed code does not load, the old process
continues.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from netsvc.base.errors import StartError
from netsvc.base.text import escape
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import ask, find, show_answer

__all__ = ["is_source", "run_with_reload", "watched_directories"]

#: Milliseconds in which changes are collected, and between two looks at the child.
_STEP, _LOOK = 50, 250
#: Seconds in which a new process must become ready.
_PATIENCE = 60.0
_SUFFIXES = (".py", ".toml")


def run_with_reload(words: Sequence[str]) -> int:
    """Run `netsvc run` with these arguments until it ends; return its exit status. Raises `StartError`.

    Interrupts and TERM are for the child, which drains.
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise StartError("--reload-on-change needs watchfiles; install it: pip install 'netsvc[reload]'") from None

    # Python takes a file that was changed twice in a second, and has the same size, for the one that it has cached.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen([sys.executable, "-m", "netsvc", "run", *words], env=environment)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # A terminal sends Ctrl-C to both.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else lambda got, _: child.send_signal(got))
    directories = watched_directories(words)
    click.echo(f"netsvc: watching {', '.join(map(escape, directories))}", err=True)
    changes = watch(
        *directories,
        watch_filter=is_source,
        step=_STEP,
        debounce=4 * _STEP,
        rust_timeout=_LOOK,
        yield_on_timeout=True,
        raise_interrupt=False,
    )
    for changed in _until_end(child, changes):
        names = sorted({os.path.relpath(path) for _, path in changed})
        click.echo(f"netsvc: changed: {', '.join(map(escape, names[:3]))}{' …' * (len(names) > 3)}", err=True)
        _upgrade(child)
    status = child.wait()
    if status < 0:
        # End by the same signal.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _until_end(child: subprocess.Popen[bytes], changes: Any) -> Iterator[Any]:
    """Yield the changes that there are, until the child ends."""
    for changed in changes:
        if child.poll() is not None:
            return
        if changed:
            yield changed


def _upgrade(child: subprocess.Popen[bytes]) -> None:
    """Let the child be replaced by a process with the new code, and print what it answers."""
    try:
        show_answer(ask(find(None, child.pid), "upgrade", _PATIENCE))
    except ClientError as error:
        # It has not started yet, and starts with the new code; or it ends.
        click.echo(f"netsvc: {error}", err=True)


def watched_directories(words: Sequence[str]) -> list[str]:
    """List the directories to watch: the current one, and the directories of files that the arguments name."""
    found = {Path.cwd()}
    for word in words:
        for part in (word, word.partition("=")[2], word.rpartition("=")[0].rpartition(":")[0]):
            with suppress(OSError, ValueError):
                file = Path(part.rpartition("=")[2])
                if file.suffix in _SUFFIXES and file.is_file():
                    found.add(file.resolve().parent)
    return sorted(str(each) for each in found if not any(other in each.parents for other in found))


def is_source(_change: object, path: str) -> bool:
    """Return whether a file may be one of the program. Environments and caches are not."""
    parts = Path(path).parts
    return path.endswith(_SUFFIXES) and not any(
        part.startswith(".") or part in {"__pycache__", "node_modules", "site-packages"} for part in parts
    )
