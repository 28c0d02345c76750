"""The plan: which service listens where, with which options, in how many processes. Plain data, whoever writes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from netsvc.address import Address
from netsvc.interfaces import INetworkService
from netsvc.limits import Limits
from netsvc.text import escape

__all__ = [
    "ACCESS_FORMS",
    "DEFAULT_DRAIN",
    "LOG_FORMS",
    "MOST_WORKERS",
    "AdminUse",
    "Listener",
    "Plan",
    "ServiceUse",
    "TwistdUse",
    "undivided",
]

#: Seconds. honcho and foreman kill a process 5 s after TERM, docker 10 s, Heroku 30 s: this fits under all.
DEFAULT_DRAIN = 4.0
#: Processes. More than a machine has cores, and each has a socket for every port.
MOST_WORKERS = 256
#: How the log is written, and where access records go that have no file of their own: into the log, or nowhere.
LOG_FORMS = ("text", "json")
ACCESS_FORMS = ("log", "off")


@dataclass(frozen=True)
class Listener:
    """One protocol bound to one address. `use` is the key of the `ServiceUse` it belongs to.

    `limits` has those of a `guard:` as well, and `address` no longer does. `place` begins a line about the listener
    if it stands in a file: `netsvc.toml:7: services.echo.tcp: `. So does that of a `ServiceUse` and a `TwistdUse`.
    """

    use: str
    protocol: str
    address: Address
    limits: Limits = field(default_factory=dict, hash=False)
    place: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """Its name in the log."""
        return f"{self.use} {self.protocol}"

    def cannot_listen(self, reason: object) -> str:
        """Say in one line that it cannot be opened."""
        return f"{self.place}{self.label} cannot listen on {self.address.text}: {reason}"


@dataclass(frozen=True)
class ServiceUse:
    """A service with its settings. `service` is its name, or `PATH_OR_MODULE:NAME` for `--serve`.

    `limits` are without the service's own defaults. `drain` is how many seconds its conversations have to end, if it is
    not what the plan says.
    """

    service: str
    settings: Mapping[str, object] = field(default_factory=dict)
    adhoc: bool = False
    limits: Limits = field(default_factory=dict)
    place: str = field(default="", compare=False)
    drain: float | None = None

    def drain_seconds(self, default: float) -> float:
        """Return how many seconds its conversations have to end; `default` is what the plan says."""
        return default if self.drain is None else self.drain


@dataclass(frozen=True)
class TwistdUse:
    """Another twistd plugin that runs in the process: its name and its options, as words of a command line."""

    words: tuple[str, ...]
    limits: Limits = field(default_factory=dict, hash=False)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class AdminUse:
    """Where the admin page, the metrics and the API are.

    `token_file` has the word that whoever asks must know, `client_ca` the certificates (PEM) by one of which the
    certificate of whoever asks must be signed. At an address that others than this machine may reach there is one of
    the two.
    """

    address: Address
    token_file: str | None = None
    client_ca: str | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Plan:
    """What shall run. Listeners in the order they were asked for; `drain` in seconds; `workers` processes.

    `limits` are those of the process, without the defaults. `config` is the absolute path of the configuration file
    that was read, if one was, and `place` begins a line about a file that the process's limits name. `log` is one of
    `LOG_FORMS`, `access` one of `ACCESS_FORMS` or the absolute path of a file, and `state` that of the directory for
    what is to be kept, if there is one.
    """

    uses: Mapping[str, ServiceUse]
    listeners: tuple[Listener, ...]
    drain: float = DEFAULT_DRAIN
    workers: int = 1
    limits: Limits = field(default_factory=dict)
    twistd: tuple[TwistdUse, ...] = ()
    config: str | None = field(default=None, compare=False)
    admin: AdminUse | None = None
    log: str = "text"
    access: str = "log"
    state: str | None = None
    place: str = field(default="", compare=False)

    @property
    def longest_drain(self) -> float:
        """Seconds that a drain of all may take: those of the service, or the other plugins, that have most."""
        seconds = [use.drain_seconds(self.drain) for use in self.uses.values()]
        return max([*seconds, *([self.drain] if self.twistd or not seconds else [])])


def undivided(plan: Plan, services: Mapping[str, INetworkService], platform: str = sys.platform) -> list[str]:
    """Name what in a plan for several workers can run in one process only. `services` has those of `plan.uses`."""
    if plan.workers == 1:
        return []
    if platform != "linux":
        return [f"--workers {plan.workers}: needs Linux, whose kernel divides what comes among processes"]
    cure = "run it in a netsvc of its own, without --workers"
    reasons = [
        f"{key} may not run in several processes, as it does not declare parallel=True; {cure}"
        for key, service in services.items()
        # A plugin that is no `netsvc.service.Service` need not have the attribute.
        if not getattr(service, "parallel", False)
    ]
    reasons += [
        f"{each.address.text} is one stream, and cannot be shared by several processes"
        for each in plan.listeners
        if each.address.scheme == "stdio"
    ]
    # It binds its ports where it runs: the second worker would find them in use.
    reasons += [
        f"{escape(each.words[0])} opens its own ports, which several processes cannot share; {cure}"
        for each in plan.twistd
    ]
    return [f"--workers {plan.workers}: {reason}" for reason in reasons]
