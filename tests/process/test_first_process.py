"""As the first process of a container, netsvc does what falls to that."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.builders.containers import container, enter
from tests.builders.several import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root for a container"),
]


def _is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    except OSError:
        return False


def orphans(first: int) -> list[int]:
    """List the children of a process that were left to it, a zombie among them."""
    listed = map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
    return [child for child in listed if _is_sleep(child)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_orphans_are_reaped(workers: str) -> None:
    with container("--tcp", "127.0.0.1:0", "--workers", workers) as (server, first):
        enter(first, "sh", "-c", "for each in 1 2 3; do (sleep 600 >/dev/null 2>&1 &); done")
        until(lambda: len(orphans(first)) == 3)
        for orphan in orphans(first):
            os.kill(orphan, signal.SIGKILL)
        until(lambda: not orphans(first))
        assert server.process.poll() is None
