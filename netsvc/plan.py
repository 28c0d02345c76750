"""The plan: which service listens where, with which options. Plain data, whoever writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netsvc.address import Address

__all__ = ["DEFAULT_DRAIN", "Listener", "Plan", "ServiceUse"]

#: Seconds. honcho and foreman kill a process 5 s after TERM, docker 10 s, Heroku 30 s: this fits under all.
DEFAULT_DRAIN = 4.0


@dataclass(frozen=True)
class Listener:
    """One protocol bound to one address. `use` is the key of the `ServiceUse` it belongs to."""

    use: str
    protocol: str
    address: Address


@dataclass(frozen=True)
class ServiceUse:
    """A service with its settings. `service` is its name, or `PATH_OR_MODULE:NAME` for `--serve`."""

    service: str
    settings: Mapping[str, object] = field(default_factory=dict)
    adhoc: bool = False


@dataclass(frozen=True)
class Plan:
    """What shall run. Listeners in the order they were asked for; `drain` in seconds."""

    uses: Mapping[str, ServiceUse]
    listeners: tuple[Listener, ...]
    drain: float = DEFAULT_DRAIN
