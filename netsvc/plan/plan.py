"""The plan: which service listens where, with which options, in how many processes. Plain data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from netsvc.base.text import escape
from netsvc.plan.address import Address
from netsvc.plan.limits import Limits

#: Seconds. honcho and foreman kill a process 5 s after TERM, docker 10 s, Heroku 30 s: this fits under all.
DEFAULT_DRAIN = 4.0
#: Processes. More than a machine has cores, and each has a socket for every port.
MOST_WORKERS = 256
#: Log formats, and where access records go if not to a file: into the log, or nowhere.
LOG_FORMS = ("text", "json")
ACCESS_FORMS = ("log", "off")
#: Forms of the requests of HTTP, which a file may have in place of connections.
REQUEST_FORMS = ("common", "combined")


def access_form(access: str) -> tuple[str, str]:
    """Split where access records go into one of `REQUEST_FORMS`, or an empty string, and the rest."""
    form, colon, rest = access.partition(":")
    return (form, rest) if colon and form in REQUEST_FORMS else ("", access)


@dataclass(frozen=True)
class Listener:
    """One protocol bound to one address. `use` is the key of the `ServiceUse` it belongs to.

    `limits` includes the limits of `guard:`. `origin` begins a line about the listener if it is in a file,
    `netsvc.toml:7: services.echo.tcp: `; the `origin` of a `ServiceUse` and a `TwistdUse` does the same.
    """

    use: str
    protocol: str
    address: Address
    limits: Limits = field(default_factory=dict, hash=False)
    origin: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """Its name in the log."""
        return f"{self.use} {self.protocol}"

    def cannot_listen(self, reason: object) -> str:
        """Return the line of an error: it cannot be opened."""
        return f"{self.origin}{self.label} cannot listen on {self.address.text}: {reason}"


@dataclass(frozen=True)
class ServiceUse:
    """A service with its settings. `service` is its name, or `PATH_OR_MODULE:NAME` for `--serve`.

    `name` is the name given to a class that is served, which declares none.
    `limits` do not include the service's own defaults. `drain` is its grace period in seconds, None for the
    plan's.
    """

    service: str
    settings: Mapping[str, object] = field(default_factory=dict)
    adhoc: bool = False
    limits: Limits = field(default_factory=dict)
    origin: str = field(default="", compare=False)
    drain: float | None = None
    name: str = ""

    def drain_seconds(self, default: float) -> float:
        """Return its grace period in seconds; `default` is the plan's."""
        return default if self.drain is None else self.drain


@dataclass(frozen=True)
class TwistdUse:
    """Another twistd plugin that runs in the process: its name and its options, as arguments of a command line."""

    arguments: tuple[str, ...]
    limits: Limits = field(default_factory=dict, hash=False)
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class AdminUse:
    """The address of the admin page, metrics and API.

    `token_file` has the token that clients must send, `client_ca` the certificates (PEM) that sign theirs. An address
    that other machines can reach has one of the two.
    """

    address: Address
    token_file: str | None = None
    client_ca: str | None = None
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Plan:
    """What is to run. Listeners are in the order they were written; `drain` in seconds; `workers` processes.

    `limits` are the process's, without the defaults. `config` is the absolute path of the configuration file, if there
    is one, and `origin` begins a line about a file that the limits of the process name. `log` is one of `LOG_FORMS`.
    `access` is one of `ACCESS_FORMS`, or the absolute path of a file, perhaps after one of `REQUEST_FORMS` and a colon.
    `state` is the absolute path of the directory for persistent data, if there is one. With `debug`, exceptions of
    protocols are logged with the data that they received.
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
    debug: bool = False
    origin: str = field(default="", compare=False)

    @property
    def longest_drain(self) -> float:
        """The longest grace period in seconds, of the services and the other plugins."""
        seconds = [use.drain_seconds(self.drain) for use in self.uses.values()]
        return max([*seconds, *([self.drain] if self.twistd or not seconds else [])])


def undivided(plan: Plan, services: Mapping[str, object], platform: str = sys.platform) -> list[str]:
    """List what in a plan for several workers can run in one process only. `services` are the plan's."""
    if plan.workers == 1:
        return []
    if platform != "linux":
        return [f"--workers {plan.workers}: needs Linux, whose kernel distributes connections among processes"]
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
    # It binds its ports itself: the second worker would find them in use.
    reasons += [
        f"{escape(each.arguments[0])} opens its own ports, which several processes cannot share; {cure}"
        for each in plan.twistd
    ]
    return [f"--workers {plan.workers}: {reason}" for reason in reasons]
