"""Reads the status of one process: listeners, connections, limits, event loop delay and resource usage."""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed

from netsvc import __version__
from netsvc.base.text import host_port
from netsvc.guard import Connection, Guard
from netsvc.guard.admission import Gate
from netsvc.guard.counters import Tally
from netsvc.guard.guard import DatagramConversation
from netsvc.guard.session import Session
from netsvc.guard.sessions import Sessions
from netsvc.plan.limits import LIMITS, show_limit
from netsvc.plan.status import (
    MOST_SHOWN,
    ConnectionQuery,
    ConnectionStatus,
    LimitStatus,
    ListenerStatus,
    ProcessStatus,
    RefusalStatus,
    Vitals,
)
from netsvc.reactor.datagrams import ONE_COUNTED
from netsvc.server.running import RunningPlan

#: Seconds between two measurements of the event loop's delay; measurements kept (for a minute); and seconds without
#: a request after which the measurement stops.
LOOP_INTERVAL = 0.5
_REMEMBERED = 120
_UNMEASURED = 60.0
_PAGE = resource.getpagesize()

#: Connections read in one turn of the event loop: they take half a millisecond.
_LOOKS = 250
#: A reading of all connections is reused for `_TIMES` its CPU time: reading takes 1 % of the time at most. With few
#: connections every status is a new reading, and shows all that happened before.
_TIMES = 100.0
#: Seconds over which a rate is measured, at least.
_SPAN = 0.5
#: Seconds without a request after which the reading is dropped.
_FORGETFUL = 30.0
_REFUSALS = 50


class _Seen(NamedTuple):
    """The last reading of a connection or session: total bytes, and bytes per second.

    `base_in` and `base_out` are the total bytes since which the next rates are measured.
    """

    one: Connection | Session
    bytes_in: int
    bytes_out: int
    rate_in: float
    rate_out: float
    base_in: int
    base_out: int

    @property
    def age(self) -> float:
        """A number that grows with its age, as `ConnectionStatus.age` does."""
        return -self.one.began


class StatusReader:
    """Reads the status of this process on request, some connections in each turn of the event loop; caches it briefly.

    `state`, `not_ready` and `metrics` return the fields of `ProcessStatus` with these names.
    """

    def __init__(
        self,
        clock: Any,
        running: Callable[[], RunningPlan],
        *,
        state: Callable[[], str],
        not_ready: Callable[[], list[str]],
        metrics: Callable[[], list[dict[str, Any]]] = list,
        worker: int = 0,
    ) -> None:
        self._clock = clock
        self._running = running
        self._state = state
        self._not_ready = not_ready
        self._metrics = metrics
        self._worker = worker
        self._started = time.time()
        self._loop_delay = LoopDelay(clock)
        self._seen: dict[Connection | Session, _Seen] = {}
        #: Start of the last reading, and the seconds for which it is reused.
        self._looked = float("-inf")
        self._fresh = 0.0
        #: Start of the last reading that measured rates.
        self._measured = float("-inf")
        self._waiting: list[tuple[ConnectionQuery, Deferred[ProcessStatus]]] = []
        self._call: Any = None
        self._forget: Any = None
        self._is_over = False

    @property
    def _guard(self) -> Guard:
        return self._running().guard

    def status(self, query: ConnectionQuery) -> Deferred[ProcessStatus]:
        """Return the status of the process."""
        if self._is_over:
            return succeed(self._compose(query))
        self._remember()
        if not self._waiting and 0 <= self._clock.seconds() - self._looked < self._fresh:
            return succeed(self._compose(query))
        answer: Deferred[ProcessStatus] = Deferred()
        self._waiting.append((query, answer))
        if len(self._waiting) == 1:
            self._call = self._clock.callLater(0, self._look_on, self._look(), {}, 0.0)
        return answer

    def _remember(self) -> None:
        if self._forget is not None and self._forget.active():
            self._forget.reset(_FORGETFUL)
        else:
            self._forget = self._clock.callLater(_FORGETFUL, self._forget_all)

    def _forget_all(self) -> None:
        self._seen = {}
        self._looked = self._measured = float("-inf")

    def last(self) -> ProcessStatus:
        """Return the status at once, without connections."""
        return self._compose(ConnectionQuery(most=0))

    def close(self) -> None:
        """Stop reading. Waiting and later requests get the last reading."""
        self._is_over = True
        for call in (self._call, self._forget):
            if call is not None and call.active():
                call.cancel()
        self._loop_delay.stop()
        self._answer()

    def _all(self) -> Iterator[Connection | Session]:
        # Of a conversation over datagrams, the session is shown.
        yield from [each for each in self._guard.live if not isinstance(each, DatagramConversation)]
        for sessions in self._tables():
            yield from sessions.all()

    def _tables(self) -> list[Sessions]:
        # A port that now serves another protocol has two tallies with one table.
        tables = (tally.sessions for tally in self._guard.book.tallies)
        return list(dict.fromkeys(table for table in tables if table is not None))

    def _look(self) -> Iterator[_Seen]:
        now = self._looked = self._clock.seconds()
        before, last = self._measured, self._seen
        measures = not 0 <= now - before < _SPAN
        if measures:
            self._measured = now
        for one in self._all():
            known = last.get(one)
            if isinstance(one, Session):
                # Until `look` is called, its counts are from the last reading.
                old_in, old_out = (_bytes(each) for each in one.seen)
                bytes_in, bytes_out, *_ = one.look()
            else:
                old_in, old_out = one.bytes_in, one.bytes_out
                one.look()
                bytes_in, bytes_out = one.bytes_in, one.bytes_out
            if known is not None:
                old_in, old_out = known.base_in, known.base_out
            if known is not None and not measures:
                yield known._replace(bytes_in=bytes_in, bytes_out=bytes_out)
                continue
            span = max(now - max(before, one.began), _SPAN)
            rates = (bytes_in - old_in) / span, (bytes_out - old_out) / span
            base = (bytes_in, bytes_out) if measures else (old_in, old_out)
            yield _Seen(one, bytes_in, bytes_out, *rates, *base)

    def _look_on(self, looking: Iterator[_Seen], seen: dict[Connection | Session, _Seen], spent: float) -> None:
        began = time.thread_time()
        for _ in range(_LOOKS):
            each = next(looking, None)
            if each is None:
                break
            seen[each.one] = each
        spent += time.thread_time() - began
        if each is not None:
            self._call = self._clock.callLater(0, self._look_on, looking, seen, spent)
            return
        self._seen = seen
        self._fresh = spent * _TIMES
        self._guard.book.prune()
        self._answer()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for query, answer in waiting:
            answer.callback(self._compose(query))

    def _compose(self, query: ConnectionQuery) -> ProcessStatus:
        guard = self._guard
        status = ProcessStatus(__version__, os.getpid(), self._started, self._worker)
        status.state, status.not_ready = self._state(), self._not_ready()
        status.vitals = read_vitals(self._loop_delay, self._clock)
        listeners = {listener.tally: listener for listener in self._running().listeners}
        for tally in guard.book.tallies:
            if not tally.place and not tally.counts.accepted:
                # It is not open yet, which `not_ready` reports.
                continue
            listener = listeners.get(tally)
            address = tally.address
            status.listeners.append(
                ListenerStatus(
                    tally.service,
                    tally.protocol,
                    tally.place,
                    tally.kind,
                    "" if address is None else address.text,
                    not tally.closed and (listener is None or listener.listening is not None),
                    "" if listener is None else getattr(listener, "unreachable_reason", ""),
                    address is not None and address.tls is not None,
                    address is not None and address.proxy is not None,
                    tally.counts.copy(),
                    _limits(tally.gate),
                )
            )
        status.connections = self._list(query) if query.most else []
        status.refusals = [
            RefusalStatus(each.time, *_listener(each.tally, each.label), each.peer, each.limit, each.action)
            for each in list(guard.refusals.last)[-_REFUSALS:]
        ]
        status.metrics = self._metrics()
        status.looked = max(0.0, self._looked)
        return status

    def _list(self, query: ConnectionQuery) -> list[ConnectionStatus]:
        live = self._guard.live
        # Connections that have ended since the reading are left out; sessions have no such check.
        seen = [each for each in self._seen.values() if not isinstance(each.one, Connection) or each.one in live]
        now = self._clock.seconds()
        return [_show(each, now) for each in replace(query, most=min(query.most, MOST_SHOWN)).pick(seen, _text)]

    def close_connection(self, connection: str) -> bool:
        """Close a connection as at a time limit, or drop a session. Returns whether it existed."""
        pid, _, number = connection.partition("-")
        if pid != str(os.getpid()):
            return False
        for one in self._all():
            if str(one.number) != number:
                continue
            if isinstance(one, Session):
                return any(sessions.forget(one, "admin") for sessions in self._tables())
            one.cause = ("admin", None)
            self._guard.watch.end(one)
            return True
        return False


class LoopDelay:
    """Measures the delay of timed calls in the event loop.

    It measures from the first call of `keep_on` until `_UNMEASURED` seconds after the last. `monotonic` is a clock that
    is never set back or forward.
    """

    def __init__(self, clock: Any, monotonic: Any = time.monotonic) -> None:
        self.delays: deque[float] = deque([0.0], maxlen=_REMEMBERED)
        self._clock = clock
        self._monotonic = monotonic
        self._due = 0.0
        self._call: Any = None
        self._beats = 0
        self._is_over = False

    def keep_on(self) -> None:
        """Measure for another minute."""
        self._beats = int(_UNMEASURED / LOOP_INTERVAL)
        if self._call is None and not self._is_over:
            self._await_beat()

    def _await_beat(self) -> None:
        self._due = self._monotonic() + LOOP_INTERVAL
        self._call = self._clock.callLater(LOOP_INTERVAL, self._beat)

    def _beat(self) -> None:
        self._call = None
        self.delays.append(max(0.0, self._monotonic() - self._due))
        self._beats -= 1
        if self._beats > 0:
            self._await_beat()

    def stop(self) -> None:
        """Stop measuring for good: later calls of `keep_on` have no effect."""
        self._is_over = True
        if self._call is not None:
            self._call.cancel()
            self._call = None


def read_vitals(loop_delay: LoopDelay, reactor: Any) -> Vitals:
    """Read the resource usage of the process. Values that the system does not report are 0."""
    loop_delay.keep_on()
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Vitals(
        loop_delay.delays[-1],
        max(loop_delay.delays),
        _descriptors(),
        soft,
        _memory(),
        used.ru_utime + used.ru_stime,
        len(reactor.getDelayedCalls()),
    )


def _descriptors() -> int:
    try:
        # Since Linux 6.2 the size is the number of descriptors; listing thousands takes milliseconds.
        size = os.stat("/proc/self/fd").st_size
        # The list includes the descriptor of the directory itself.
        return size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return 0


def _memory() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _bytes(counted: int) -> int:
    return divmod(counted, ONE_COUNTED)[1]


def _listener(tally: Tally | None, label: str = "") -> tuple[str, str, str]:
    return (label, "", "") if tally is None else (tally.service, tally.protocol, tally.place)


def _text(seen: _Seen) -> str:
    return " ".join((*_listener(seen.one.gate.tally), host_port(*seen.one.peer_place())))


def _show(seen: _Seen, now: float) -> ConnectionStatus:
    one = seen.one
    tally = one.gate.tally
    return ConnectionStatus(
        f"{os.getpid()}-{one.number}",
        *_listener(tally),
        tally.kind,
        host_port(*one.peer_place()),
        max(0.0, now - one.began),
        seen.bytes_in,
        seen.bytes_out,
        seen.rate_in,
        seen.rate_out,
    )


def _limits(gate: Gate | None) -> list[LimitStatus]:
    """Return the limits in force, in the order of `LIMITS`; for each, the limit of the process comes first."""
    if gate is None:
        return []
    kind = gate.tally.kind
    found: list[LimitStatus] = []
    for name, limit in LIMITS.items():
        levels = [level for level in gate.levels if name in level.limits] if kind in limit.kinds else []
        # Of a limit that is not shared, only the nearest level applies.
        for level in levels if limit.shared else levels[-1:]:
            if (set_to := level.limits[name]) is not None:
                value, chosen = show_limit(set_to), name in level.chosen
                found.append(LimitStatus(name, value, level.name, chosen, level.reports(name)))
    return found
