"""What a worker is told when it starts: one line of JSON, from the process that started it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from netsvc.address import Address
from netsvc.plan import Listener, Plan, ServiceUse

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
        return json.dumps(asdict(self)).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Briefing:
        """Read what `to_line` wrote."""
        read = json.loads(line)
        plan = read["plan"]
        listeners = tuple(
            Listener(each["use"], each["protocol"], Address(**each["address"])) for each in plan["listeners"]
        )
        uses = {key: ServiceUse(**use) for key, use in plan["uses"].items()}
        return cls(
            **{
                **read,
                "plan": Plan(**{**plan, "uses": uses, "listeners": listeners}),
                "search_path": tuple(read["search_path"]),
                "descriptors": tuple(map(tuple, read["descriptors"])),
                "key_files": tuple(read["key_files"]),
            }
        )
