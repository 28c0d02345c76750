"""Runs netsvc as the first process of a container: with a pid and a mount namespace of its own. Needs root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.builders.processes import TWISTD, Server, run
from tests.builders.several import children

_CONTAINER = """\
mount -t tmpfs -o ro none /run || exit 99
exec "$@"
"""


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", _CONTAINER, "sh"]


@contextmanager
def container(*arguments: str) -> Iterator[tuple[Server, int]]:
    """Run netsvc as the first process of a container that shares the network, and may write nothing in /run.

    Yield it with its pid outside.
    """
    server = Server([*UNSHARE, TWISTD, "-n", "--pidfile=", "netsvc", *arguments])
    try:
        server.wait_for("ready$")
    except AssertionError:
        if "unshare:" in server.stderr or "mount:" in server.stderr:
            pytest.skip(f"there can be no containers here: {server.stderr.strip()}")
        raise
    [first] = children(server.process.pid)
    try:
        yield server, first
    finally:
        # unshare(1) passes no signals on.
        if server.process.poll() is None:
            os.kill(first, signal.SIGTERM)
        server.wait()


def enter(first: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the container of a process, and in its directory, as container runtimes do."""
    return run("nsenter", "--target", str(first), "--pid", "--mount", "--wd", *words)
