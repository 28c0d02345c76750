"""What is known of a running process: plain data, for the admin page, the metrics, and `netsvc status`.

One process makes one `ProcessStatus`; with several workers there is one of each, and `merge` makes one of all. As JSON
they have the names of the fields here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = [
    "DURATIONS",
    "MOST_SHOWN",
    "ConnectionQuery",
    "ConnectionStatus",
    "Counts",
    "LimitStatus",
    "ListenerStatus",
    "ProcessStatus",
    "RefusalStatus",
    "Vitals",
    "merge",
    "read_status",
]

#: Seconds: the upper bounds of the classes of durations; the last class has no bound.
DURATIONS = (0.005, 0.05, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
#: Connections of one process that a status lists at most.
MOST_SHOWN = 500


@dataclass
class Counts:
    """What a listener has counted since it was opened. Connections are sessions where it takes datagrams.

    `accepted` is how many have come, `open` how many are there, `ended` how the others have ended, by the reasons of
    `netsvc.records`. `refused` counts by limit who was not let in, and `reported` who would not have been, by limits
    that only report. `dropped` counts answers for which the system had no room, `errors` what a protocol has raised.
    `durations` has how many connections lasted how long: a number for each of `DURATIONS`, and one for all longer
    ones; `seconds` is how long all of these lasted.
    """

    accepted: int = 0
    open: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    datagrams_in: int = 0
    datagrams_out: int = 0
    dropped: int = 0
    errors: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATIONS) + 1))
    seconds: float = 0.0

    def lasted(self, seconds: float) -> None:
        """Count how long one has lasted."""
        self.durations[bisect_left(DURATIONS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: Counts) -> None:
        """Add what another has counted."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ended.update(other.ended)
        self.refused.update(other.refused)
        self.reported.update(other.reported)
        self.durations = [one + more for one, more in zip(self.durations, other.durations, strict=True)]


_NUMBERS = (
    *("accepted", "open", "bytes_in", "bytes_out", "datagrams_in", "datagrams_out", "dropped", "errors"),
    "seconds",
)


@dataclass(frozen=True)
class LimitStatus:
    """A limit in force. `level` is what shares it: `process`, a service or a listener.

    `value` is written as on the command line. `chosen` says whether somebody has set it, or it is a default, `reports`
    whether it only reports.
    """

    name: str
    value: str
    level: str
    chosen: bool
    reports: bool


@dataclass
class ListenerStatus:
    """One listener. `place` is where it listens, with the real port; `address` is how that was asked for.

    One that is not up has a `problem`: a line that says why.
    """

    service: str
    protocol: str
    place: str
    kind: str
    address: str
    up: bool = True
    problem: str = ""
    tls: bool = False
    proxy: bool = False
    counts: Counts = field(default_factory=Counts)
    limits: list[LimitStatus] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by."""
        return self.service, self.protocol, self.place


@dataclass(frozen=True)
class ConnectionStatus:
    """One connection, or a datagram peer's session. `id` is what it is closed by: the worker's number and its own.

    `peer` is an address with a port, `192.0.2.7:51234` or `[2001:db8::1]:51234`, or who is at a UNIX socket. `age` is
    in seconds; rates are in bytes a second, since the last time that somebody looked.
    """

    id: str
    service: str
    protocol: str
    place: str
    kind: str
    peer: str
    age: float
    bytes_in: int
    bytes_out: int
    rate_in: float = 0.0
    rate_out: float = 0.0


@dataclass(frozen=True)
class RefusalStatus:
    """Somebody who was refused, or ended, by a limit. `time` is in seconds since the epoch.

    `action` is `refused` or `ended`, or `would have refused` or `would have ended` where the limit only reports.
    """

    time: float
    service: str
    protocol: str
    place: str
    peer: str
    limit: str
    action: str


@dataclass(frozen=True)
class ConnectionQuery:
    """Which connections a status lists: at most `most`, by `order`, of those in whose text every word is.

    `order` is `rate`, `bytes`, `age` or `new`; words are looked for in service, protocol, place and peer.
    """

    most: int = 100
    order: str = "rate"
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vitals:
    """How the process itself is. `delay` is by how many seconds the event loop was late when it was last measured,
    `worst_delay` the worst in the last minute; `memory` is resident bytes, `cpu` seconds of processor time.
    """

    delay: float = 0.0
    worst_delay: float = 0.0
    descriptors: int = 0
    descriptors_limit: int = 0
    memory: int = 0
    cpu: float = 0.0


@dataclass
class ProcessStatus:
    """One process. `worker` is its number, 0 if there is only one; `started` is in seconds since the epoch.

    `state` is `starting`, `ready`, `draining` or `stopped`; `not_ready` has a line for each thing for which it is not
    ready to serve. `connections` has those that a `ConnectionQuery` asked for, `refusals` the last ones, newest last.
    `metrics` are those of plugins, as `netsvc.metrics` writes them.
    """

    version: str
    pid: int
    started: float
    worker: int = 0
    state: str = "starting"
    not_ready: list[str] = field(default_factory=list)
    vitals: Vitals = field(default_factory=Vitals)
    listeners: list[ListenerStatus] = field(default_factory=list)
    connections: list[ConnectionStatus] = field(default_factory=list)
    refusals: list[RefusalStatus] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def open(self) -> int:
        """How many connections and sessions there are."""
        return sum(listener.counts.open for listener in self.listeners)

    def to_json(self) -> dict[str, Any]:
        """Make it an object that `json.dumps` takes."""
        return asdict(self)


def read_status(read: Mapping[str, Any]) -> ProcessStatus:
    """Read what `ProcessStatus.to_json` made. Raises `ValueError` if it is something else."""
    try:
        listeners = []
        for each in read["listeners"]:
            counts = Counts(**each["counts"])
            for name in ("ended", "refused", "reported"):
                setattr(counts, name, Counter(getattr(counts, name)))
            limits = [LimitStatus(**limit) for limit in each["limits"]]
            listeners.append(ListenerStatus(**{**each, "counts": counts, "limits": limits}))
        return ProcessStatus(
            **{
                **read,
                "vitals": Vitals(**read["vitals"]),
                "listeners": listeners,
                "connections": [ConnectionStatus(**each) for each in read["connections"]],
                "refusals": [RefusalStatus(**each) for each in read["refusals"]],
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no status") from error


def merge(statuses: Iterable[ProcessStatus]) -> list[ListenerStatus]:
    """Make one list of the listeners of several processes: of those that are the same, counts are added up.

    One is up only if it is so in every process. Nothing that was given is changed.
    """
    merged: dict[tuple[str, str, str], ListenerStatus] = {}
    for listener in (listener for status in statuses for listener in status.listeners):
        one = merged.get(listener.key)
        if one is None:
            one = merged[listener.key] = replace(listener, counts=Counts())
        elif not listener.up:
            one.up, one.problem = False, listener.problem
        one.counts.add(listener.counts)
    return list(merged.values())
