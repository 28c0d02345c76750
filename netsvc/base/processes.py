"""Whether a process runs, and whether it may be a netsvc."""

from __future__ import annotations

import os
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether a process with this pid exists."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def may_be_netsvc(pid: int, proc: Path = Path("/proc")) -> bool:
    """Return whether a process exists and may be a netsvc: a pid is given to another process after its end.

    The command line of a netsvc, and of its proxy process, names it. A zombie has none. True if it cannot be read.
    """
    if not is_alive(pid):
        return False
    try:
        return b"netsvc" in (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return True
