"""The plan: which service listens where, with which options, in how many processes. Plain data, whoever writes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from netsvc.address import Address
from netsvc.interfaces import INetworkService
from netsvc.limits import Limits

__all__ = ["DEFAULT_DRAIN", "MOST_WORKERS", "Listener", "Plan", "ServiceUse", "TwistdUse", "undivided"]

#: Seconds. honcho and foreman kill a process 5 s after TERM, docker 10 s, Heroku 30 s: this fits under all.
DEFAULT_DRAIN = 4.0
#: Processes. More than a machine has cores, and each has a socket for every port.
MOST_WORKERS = 256


@dataclass(frozen=True)
class Listener:
    """One protocol bound to one address. `use` is the key of the `ServiceUse` it belongs to."""

    use: str
    protocol: str
    address: Address
    limits: Limits = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ServiceUse:
    """A service with its settings. `service` is its name, or `PATH_OR_MODULE:NAME` for `--serve`."""

    service: str
    settings: Mapping[str, object] = field(default_factory=dict)
    adhoc: bool = False
    limits: Limits = field(default_factory=dict)


@dataclass(frozen=True)
class TwistdUse:
    """Another twistd plugin that runs in the process: its name and its options, as words of a command line."""

    words: tuple[str, ...]
    limits: Limits = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Plan:
    """What shall run. Listeners in the order they were asked for; `drain` in seconds; `workers` processes.

    `limits` are those of the process, without the defaults.
    """

    uses: Mapping[str, ServiceUse]
    listeners: tuple[Listener, ...]
    drain: float = DEFAULT_DRAIN
    workers: int = 1
    limits: Limits = field(default_factory=dict)
    twistd: tuple[TwistdUse, ...] = ()


def undivided(plan: Plan, services: Mapping[str, INetworkService], platform: str = sys.platform) -> list[str]:
    """Name what in a plan for several workers can run in one process only. `services` has those of `plan.uses`."""
    if plan.workers == 1:
        return []
    if platform != "linux":
        return [f"--workers {plan.workers}: needs Linux, whose kernel divides what comes among processes"]
    return [
        f"--workers {plan.workers}: {key} may not run in several processes, as it does not declare parallel=True; "
        "run it in a netsvc of its own, without --workers"
        for key, service in services.items()
        # A plugin that is no `netsvc.service.Service` need not have the attribute.
        if not getattr(service, "parallel", False)
    ] + [
        f"--workers {plan.workers}: {each.address.text} is one stream, and cannot be shared by several processes"
        for each in plan.listeners
        if each.address.scheme == "stdio"
    ]
