"""What is known of a running process: plain data, for the admin page, the metrics, and `netsvc status`.

One process makes one `ProcessStatus`; with several workers there is one of each, and `merge` makes one of all. As JSON
they have the names of the fields here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from heapq import nsmallest
from typing import Any, TypeVar

__all__ = [
    "DURATIONS",
    "MOST_SHOWN",
    "ORDERS",
    "ConnectionQuery",
    "ConnectionStatus",
    "Counts",
    "LimitStatus",
    "ListenerStatus",
    "ProcessStatus",
    "RefusalStatus",
    "Vitals",
    "merge",
    "merge_listeners",
    "plain_data",
    "read_listeners",
    "read_status",
]

_T = TypeVar("_T")

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

    def copy(self) -> Counts:
        """Return what has been counted so far, as it stays."""
        made = Counts()
        made.add(self)
        return made

    def take(self) -> Counts:
        """Return what has been counted so far, and begin anew."""
        made = self.copy()
        vars(self).update(vars(Counts()))
        return made

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
    """One connection, or a datagram peer's session. `id` is what it is closed by: the process's number and its own.

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


#: The orders in which connections can be listed: what is low comes first.
ORDERS: Mapping[str, Callable[[ConnectionStatus], float]] = {
    "rate": lambda each: -each.rate_in - each.rate_out,
    "bytes": lambda each: -each.bytes_in - each.bytes_out,
    "age": lambda each: -each.age,
    "new": lambda each: each.age,
}


@dataclass(frozen=True)
class ConnectionQuery:
    """Which connections a status lists: at most `most`, by `order`, of those in whose text every word is.

    `order` is `rate`, `bytes`, `age` or `new`; words are looked for in service, protocol, place and peer, whatever the
    case of their letters.
    """

    most: int = 100
    order: str = "rate"
    words: tuple[str, ...] = ()

    def pick(self, connections: Iterable[ConnectionStatus]) -> list[ConnectionStatus]:
        """Of connections of any number of processes, pick those that are asked for, in their order."""
        wanted = (each for each in connections if self._is_wanted(each))
        return nsmallest(self.most, wanted, key=ORDERS[self.order])

    def _is_wanted(self, connection: ConnectionStatus) -> bool:
        each = connection
        text = f"{each.service} {each.protocol} {each.place} {each.peer}".lower()
        return all(word.lower() in text for word in self.words)


@dataclass(frozen=True)
class Vitals:
    """How the process itself is. `delay` is by how many seconds the event loop was late when it was last measured,
    `worst_delay` the worst in the last minute; `memory` is resident bytes, `cpu` seconds of processor time,
    `calls` how many calls wait for their time.
    """

    delay: float = 0.0
    worst_delay: float = 0.0
    descriptors: int = 0
    descriptors_limit: int = 0
    memory: int = 0
    cpu: float = 0.0
    calls: int = 0


@dataclass
class ProcessStatus:
    """One process. `worker` is its number, 0 if there is only one; `started` is in seconds since the epoch.

    `state` is `starting`, `ready`, `draining` or `stopped`; `not_ready` has a line for each thing for which it is not
    ready to serve. `connections` has those that a `ConnectionQuery` asked for, `refusals` the last ones, newest last.
    `metrics` are those of plugins, as `netsvc.metrics` writes them. `looked` is when the bytes that are counted were
    looked at, in seconds of the process's clock; 0 if that is not known.
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
    looked: float = 0.0

    @property
    def open(self) -> int:
        """How many connections and sessions there are."""
        return sum(listener.counts.open for listener in self.listeners)

    def to_json(self) -> dict[str, Any]:
        """Make it an object that `json.dumps` takes."""
        made: dict[str, Any] = plain_data(self)
        return made


def plain_data(value: Any) -> Any:
    """Make of what has been defined here, or a list of it, what `json.dumps` takes."""
    # dataclasses.asdict counts the items of a Counter, rather than copying it.
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return [plain_data(each) for each in value]
    if is_dataclass(value):
        return {name: plain_data(each) for name, each in vars(value).items()}
    return value


def read_status(read: Mapping[str, Any]) -> ProcessStatus:
    """Read what `ProcessStatus.to_json` made. Raises `ValueError` if it is something else.

    What another version has written is read as well: fields that are not known here are left out.
    """
    try:
        status = _made(ProcessStatus, read)
        status.vitals = _made(Vitals, read["vitals"])
        status.connections = [_made(ConnectionStatus, each) for each in read["connections"]]
        status.refusals = [_made(RefusalStatus, each) for each in read["refusals"]]
        status.listeners = read_listeners(read["listeners"])
        return status
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no status") from error


def read_listeners(read: Iterable[Any]) -> list[ListenerStatus]:
    """Read a list of listeners, as `read_status` does."""
    try:
        listeners = [_made(ListenerStatus, each) for each in read]
        for listener in listeners:
            counts: Any = listener.counts
            listener.counts = _made(Counts, counts)
            for name in ("ended", "refused", "reported"):
                setattr(listener.counts, name, Counter(counts.get(name, {})))
            limits: Any = listener.limits
            listener.limits = [_made(LimitStatus, each) for each in limits]
        return listeners
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no listeners") from error


def _made(kind: type[_T], read: Mapping[str, Any]) -> _T:
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in read.items() if name in known})


def merge(statuses: Iterable[ProcessStatus]) -> list[ListenerStatus]:
    """Make one list of the listeners of several processes; see `merge_listeners`."""
    return merge_listeners(listener for status in statuses for listener in status.listeners)


def merge_listeners(listeners: Iterable[ListenerStatus]) -> list[ListenerStatus]:
    """Make one of those that are the same: counts are added up, and it is up only if all are.

    Nothing that was given is changed.
    """
    merged: dict[tuple[str, str, str], ListenerStatus] = {}
    for listener in listeners:
        one = merged.get(listener.key)
        if one is None:
            one = merged[listener.key] = replace(listener, counts=Counts())
        elif not listener.up:
            one.up, one.problem = False, listener.problem
        one.counts.add(listener.counts)
    return list(merged.values())
