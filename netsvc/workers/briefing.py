"""What a worker is told when it starts: one line, from the process that started it."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from netsvc.plan import Plan

__all__ = ["FIRST_SOCKET", "ORDERS", "REPORTS", "Briefing", "Retirement"]

#: Descriptors of a worker: what it is told, what it reports, and the first of the sockets that it inherits.
ORDERS, REPORTS, FIRST_SOCKET = 3, 4, 5


@dataclass(frozen=True)
class Briefing:
    """Everything that a fresh interpreter needs to serve a plan.

    `reactor` is the module whose `install()` it calls; `search_path` is `sys.path`, and `python_path` the
    environment's PYTHONPATH if it has one. For each listener of the plan, in its order, `descriptors` has those of
    its sockets, and `key_files` what `netsvc.workers.keyfiles` read. One that is `held` takes nothing before it is
    told to. `number` is the worker's, from 1.
    """

    plan: Plan
    reactor: str
    search_path: tuple[str, ...]
    python_path: str | None
    descriptors: tuple[tuple[int, ...], ...]
    key_files: tuple[Mapping[str, str], ...]
    held: bool = False
    number: int = 0

    def to_line(self) -> bytes:
        """Write it as one line."""
        return base64.b64encode(pickle.dumps(self)) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Briefing:
        """Read what `to_line` wrote. It comes from the process that started this one, and from nobody else."""
        briefing = pickle.loads(base64.b64decode(line))  # noqa: S301
        assert isinstance(briefing, cls)
        return briefing


@dataclass(frozen=True)
class Retirement:
    """What a worker is told when another takes its place. Listeners are numbers, their places in its plan.

    Of those that are `closed` nobody else has the sockets, and the connections of those that are `drained` have
    `seconds` to end.
    """

    closed: tuple[int, ...]
    drained: tuple[int, ...]
    seconds: float

    def to_line(self) -> bytes:
        """Write it as one order."""
        return b"retire " + json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_words(cls, words: bytes) -> Retirement:
        """Read what follows `retire` in an order."""
        read = json.loads(words)
        return cls(tuple(read["closed"]), tuple(read["drained"]), read["seconds"])
