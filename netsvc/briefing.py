"""What a worker is told when it starts: one line, from the process that started it."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from netsvc.plan import Plan

__all__ = ["FIRST_SOCKET", "ORDERS", "REPORTS", "Briefing"]

#: Descriptors of a worker: what it is told, what it reports, and the first of the sockets that it inherits.
ORDERS, REPORTS, FIRST_SOCKET = 3, 4, 5


@dataclass(frozen=True)
class Briefing:
    """Everything that a fresh interpreter needs to serve a plan.

    `reactor` is the module whose `install()` it calls; `search_path` is `sys.path`, and `python_path` the
    environment's PYTHONPATH if it has one. For each listener of the plan, in its order, `descriptors` has those of
    its sockets, and `key_files` what `netsvc.keyfiles` read.
    """

    plan: Plan
    reactor: str
    search_path: tuple[str, ...]
    python_path: str | None
    descriptors: tuple[tuple[int, ...], ...]
    key_files: tuple[Mapping[str, str], ...]

    def to_line(self) -> bytes:
        """Write it as one line."""
        return base64.b64encode(pickle.dumps(self)) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Briefing:
        """Read what `to_line` wrote. It comes from the process that started this one, and from nobody else."""
        briefing = pickle.loads(base64.b64decode(line))  # noqa: S301
        assert isinstance(briefing, cls)
        return briefing
