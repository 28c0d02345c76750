"""The status of a running process: plain data for the admin page, the metrics and `netsvc status`.

Each process makes a `ProcessStatus`, and `merge` combines their listeners. The JSON has the names of the fields here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from heapq import nsmallest
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

#: Seconds: the upper bounds of the buckets of durations; the last bucket has none.
DURATIONS = (0.005, 0.05, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
#: Maximum number of connections of one process in a status.
MOST_SHOWN = 500


@dataclass
class Counts:
    """The counters of a listener since it was opened. For datagrams, connections are sessions.

    `ended` is by reason (`plan.record.REASONS`), `refused` by limit, and `reported` by dry-run limit, for what it would
    have refused. `dropped` counts answers for which the system had no buffer, `errors` exceptions of protocols.
    `durations` counts ended connections by duration, in a bucket for each of `DURATIONS` and one for all longer ones;
    `seconds` is the sum of the durations.
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
        """Count the duration of an ended connection."""
        self.durations[bisect_left(DURATIONS, seconds)] += 1
        self.seconds += seconds

    def copy(self) -> Counts:
        """Return a copy."""
        made = Counts()
        made.add(self)
        return made

    def take(self) -> Counts:
        """Return a copy, and reset all counters."""
        made = self.copy()
        vars(self).update(vars(Counts()))
        return made

    def add(self, other: Counts) -> None:
        """Add other counters."""
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


class LimitStatus(NamedTuple):
    """A limit in force. `level` is what shares it: `process`, a service or a listener.

    `value` is written as on the command line. `chosen` is False for a default, `reports` True for a dry-run limit.
    """

    name: str
    value: str
    level: str
    chosen: bool
    reports: bool


@dataclass
class ListenerStatus:
    """A listener. `place` is the address at which it listens, with the real port; `address` is as configured.

    If it is not up, `problem` is one line with the reason.
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
        """What identifies it."""
        return self.service, self.protocol, self.place


class ConnectionStatus(NamedTuple):
    """A connection, or the session of a datagram peer. `id` is the pid and its own number, and closes it.

    `peer` is an address with a port, `192.0.2.7:51234` or `[2001:db8::1]:51234`, or the peer of a UNIX socket. `age` is
    in seconds; rates are in bytes a second since the previous status.
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


class RefusalStatus(NamedTuple):
    """A connection that was refused, or ended, by a limit. `time` is in seconds since the epoch.

    `action` is `refused` or `ended`, or `would have refused` or `would have ended` for a dry-run limit.
    """

    time: float
    service: str
    protocol: str
    place: str
    peer: str
    limit: str
    action: str


#: The orders of connections, as sort keys of `ConnectionStatus` and of what else has these fields.
ORDERS: Mapping[str, Callable[[Any], Any]] = {
    "rate": lambda each: (-each.rate_in - each.rate_out, -each.bytes_in - each.bytes_out),
    "bytes": lambda each: -each.bytes_in - each.bytes_out,
    "age": lambda each: -each.age,
    "new": lambda each: each.age,
}


def _text(connection: Any) -> str:
    each = connection
    return f"{each.service} {each.protocol} {each.place} {each.peer}"


@dataclass(frozen=True)
class ConnectionQuery:
    """The connections that a status lists: at most `most`, in this `order`, of those that contain all `words`.

    `order` is one of `ORDERS`. Words are searched in service, protocol, place and peer, ignoring case.
    """

    most: int = 100
    order: str = "rate"
    words: tuple[str, ...] = ()

    def pick(self, connections: Iterable[_T], text: Callable[[_T], str] = _text) -> list[_T]:
        """Select and sort connections, of any number of processes. `text` returns what is searched for the words."""
        if self.words:
            words = [word.lower() for word in self.words]
            connections = (each for each in connections if all(word in text(each).lower() for word in words))
        return nsmallest(self.most, connections, key=ORDERS.get(self.order, ORDERS["rate"]))


class Vitals(NamedTuple):
    """The vital signs of a process.

    `delay` is the delay of the event loop in seconds when last measured, `worst_delay` the longest in the last minute,
    `memory` resident bytes, `cpu` seconds of processor time, `calls` the number of pending delayed calls.
    """

    delay: float = 0.0
    worst_delay: float = 0.0
    descriptors: int = 0
    descriptors_limit: int = 0
    memory: int = 0
    cpu: float = 0.0
    calls: int = 0


#: Of the types here, those that are tuples: to make a dataclass takes a millisecond of every start and every command.
_TUPLES = (LimitStatus, ConnectionStatus, RefusalStatus, Vitals)


@dataclass
class ProcessStatus:
    """A process. `worker` is its number, 0 if it is the only one; `started` is in seconds since the epoch.

    `state` is `starting`, `ready`, `draining` or `stopped`; `not_ready` has a line for each reason why it is not ready.
    `connections` has those that a `ConnectionQuery` selects, `refusals` the last ones, newest last. `metrics` are those
    of services (`netsvc.metrics.Metrics.samples`). `looked` is when the byte counters were last read, in seconds of the
    clock of the process; 0 if that is not known.
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
        """The number of open connections and sessions."""
        return sum(listener.counts.open for listener in self.listeners)

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for `json.dumps`."""
        made: dict[str, Any] = plain_data(self)
        return made


def plain_data(value: Any) -> Any:
    """Return a value of the types defined here, or a list of them, as an object for `json.dumps`."""
    # dataclasses.asdict would count the items of a Counter instead of copying it.
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return [plain_data(each) for each in value]
    if is_dataclass(value):
        return {name: plain_data(each) for name, each in vars(value).items()}
    if isinstance(value, _TUPLES):
        return value._asdict()
    return value


def read_status(read: Mapping[str, Any]) -> ProcessStatus:
    """Read the result of `ProcessStatus.to_json`, also of another version: unknown fields are ignored.

    Raises `ValueError` if it is anything else.
    """
    try:
        status = _made(ProcessStatus, read)
        status.vitals = _made(Vitals, read["vitals"])
        status.connections = [_made(ConnectionStatus, each) for each in read["connections"]]
        status.refusals = [_made(RefusalStatus, each) for each in read["refusals"]]
        status.listeners = read_listeners(read["listeners"])
        return status
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a status") from error


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
        raise ValueError("not a list of listeners") from error


def _made(kind: type[_T], read: Mapping[str, Any]) -> _T:
    known = kind.__annotations__
    return kind(**{name: value for name, value in read.items() if name in known})


def merge(statuses: Iterable[ProcessStatus]) -> list[ListenerStatus]:
    """Merge the listeners of several processes; see `merge_listeners`."""
    return merge_listeners(listener for status in statuses for listener in status.listeners)


def merge_listeners(listeners: Iterable[ListenerStatus]) -> list[ListenerStatus]:
    """Merge listeners with the same key: counters are added, and it is up only if all are. Copies its arguments."""
    merged: dict[tuple[str, str, str], ListenerStatus] = {}
    for listener in listeners:
        one = merged.get(listener.key)
        if one is None:
            one = merged[listener.key] = replace(listener, counts=Counts())
        elif not listener.up:
            one.up, one.problem = False, listener.problem
        one.counts.add(listener.counts)
    return list(merged.values())
