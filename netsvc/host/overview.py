"""What is to be seen of one process: its listeners, its connections, its limits, and how it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from heapq import nlargest
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed

from netsvc import __version__
from netsvc.guard import Connection, Guard
from netsvc.guard.ending import end
from netsvc.guard.gate import Gate
from netsvc.guard.session import Session
from netsvc.guard.sessions import Sessions
from netsvc.guard.tally import Tally
from netsvc.host.running import Running
from netsvc.host.vitals import Pulse, look
from netsvc.limits import LIMITS, show_limit
from netsvc.status import (
    MOST_SHOWN,
    ConnectionQuery,
    ConnectionStatus,
    LimitStatus,
    ListenerStatus,
    ProcessStatus,
    RefusalStatus,
)
from netsvc.text import host_port
from netsvc.udp import ONE_COUNTED

__all__ = ["Overview"]

#: Connections that are looked at in one turn of the event loop: half a millisecond's worth.
_LOOKS = 250
#: Seconds for which what was seen of all connections is new enough, at least; and how many times as long as the look
#: itself took: so it takes a hundredth of the time at most, however many ask.
_FRESH, _TIMES = 0.5, 100.0
#: Seconds without a question after which nothing is remembered of the connections.
_FORGETFUL = 30.0
_REFUSALS = 50


class _Seen(NamedTuple):
    """A connection, or session, when it was looked at last: bytes so far, and bytes a second since the look before."""

    one: Connection | Session
    bytes_in: int
    bytes_out: int
    rate_in: float
    rate_out: float


class Overview:
    """Looks at a process when it is asked to, a little in each turn of the event loop, and not again right after.

    `state` tells what is going on (`netsvc.status.ProcessStatus`), `not_ready` what is not ready, `metrics` those of
    plugins.
    """

    def __init__(
        self,
        clock: Any,
        running: Callable[[], Running],
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
        self._pulse = Pulse(clock)
        self._seen: list[_Seen] = []
        #: When the last look began, and for how long it is new enough.
        self._looked = float("-inf")
        self._fresh = 0.0
        self._waiting: list[tuple[ConnectionQuery, Deferred[ProcessStatus]]] = []
        self._call: Any = None
        self._forget: Any = None
        self._is_over = False

    @property
    def _guard(self) -> Guard:
        return self._running().guard

    def status(self, query: ConnectionQuery) -> Deferred[ProcessStatus]:
        """Look at the process."""
        if self._is_over:
            return succeed(self._compose(query))
        self._remember()
        if not self._waiting and 0 <= self._clock.seconds() - self._looked < self._fresh:
            return succeed(self._compose(query))
        answer: Deferred[ProcessStatus] = Deferred()
        self._waiting.append((query, answer))
        if len(self._waiting) == 1:
            self._call = self._clock.callLater(0, self._look_on, self._look(), [], 0.0)
        return answer

    def _remember(self) -> None:
        if self._forget is not None and self._forget.active():
            self._forget.reset(_FORGETFUL)
        else:
            self._forget = self._clock.callLater(_FORGETFUL, self._forget_all)

    def _forget_all(self) -> None:
        self._seen = []
        self._looked = float("-inf")

    def last(self) -> ProcessStatus:
        """Return what is known now, without a list of connections."""
        return self._compose(ConnectionQuery(most=0))

    def close(self) -> None:
        """Look no more; whoever waits, or asks from now on, is answered with what is known."""
        self._is_over = True
        for call in (self._call, self._forget):
            if call is not None and call.active():
                call.cancel()
        self._pulse.stop()
        self._answer()

    def _all(self) -> Iterator[Connection | Session]:
        yield from list(self._guard.live)
        for sessions in self._tables():
            yield from sessions.all()

    def _tables(self) -> list[Sessions]:
        # A port that serves another protocol now has two accounts, of one table.
        tables = (tally.sessions for tally in self._guard.book.tallies)
        return list(dict.fromkeys(table for table in tables if table is not None))

    def _look(self) -> Iterator[_Seen]:
        now = self._clock.seconds()
        before, self._looked = self._looked, now
        for one in self._all():
            # What it had when it was looked at before is in it.
            if isinstance(one, Session):
                old_in, old_out = (_bytes(each) for each in one.seen)
                bytes_in, bytes_out, *_ = one.look()
            else:
                old_in, old_out = one.bytes_in, one.bytes_out
                one.look()
                bytes_in, bytes_out = one.bytes_in, one.bytes_out
            span = max(now - max(before, one.began), _FRESH)
            yield _Seen(one, bytes_in, bytes_out, (bytes_in - old_in) / span, (bytes_out - old_out) / span)

    def _look_on(self, looking: Iterator[_Seen], seen: list[_Seen], spent: float) -> None:
        began = time.monotonic()
        for _ in range(_LOOKS):
            each = next(looking, None)
            if each is None:
                break
            seen.append(each)
        spent += time.monotonic() - began
        if each is not None:
            self._call = self._clock.callLater(0, self._look_on, looking, seen, spent)
            return
        self._seen = seen
        self._fresh = max(_FRESH, spent * _TIMES)
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
        status.vitals = look(self._pulse, self._clock)
        listeners = {listener.tally: listener for listener in self._running().listeners}
        for tally in guard.book.tallies:
            if not tally.place and not tally.counts.accepted:
                # It is about to be opened, and may never be: `not_ready` tells of it.
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
                    "" if listener is None else getattr(listener, "problem", ""),
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
        words = [word.lower() for word in query.words]
        live = self._guard.live
        # Those that have ended since are left out; of sessions it is not known so soon.
        seen = [each for each in self._seen if not isinstance(each.one, Connection) or each.one in live]
        if words:
            seen = [each for each in seen if all(word in _text(each.one) for word in words)]
        chosen = nlargest(min(query.most, MOST_SHOWN), seen, key=_ORDERS.get(query.order, _ORDERS["rate"]))
        now = self._clock.seconds()
        return [_show(each, now) for each in chosen]

    def close_connection(self, connection: str) -> bool:
        """Close a connection, in order, or forget a session. Tell whether it was there."""
        pid, _, number = connection.partition("-")
        if pid != str(os.getpid()):
            return False
        for one in self._all():
            if str(one.number) != number:
                continue
            if isinstance(one, Session):
                return any(sessions.forget(one, "admin") for sessions in self._tables())
            one.cause = ("admin", None)
            end(one.transport)
            return True
        return False


def _bytes(counted: int) -> int:
    return divmod(counted, ONE_COUNTED)[1]


_ORDERS: dict[str, Callable[[_Seen], Any]] = {
    "rate": lambda each: (each.rate_in + each.rate_out, each.bytes_in + each.bytes_out),
    "bytes": lambda each: each.bytes_in + each.bytes_out,
    "age": lambda each: -each.one.began,
    "new": lambda each: each.one.began,
}


def _listener(tally: Tally | None, label: str = "") -> tuple[str, str, str]:
    return (label, "", "") if tally is None else (tally.service, tally.protocol, tally.place)


def _peer(one: Connection | Session) -> str:
    host, port = one.peer_place()
    return host if port is None else host_port(host, port)


def _text(one: Connection | Session) -> str:
    return " ".join((*_listener(one.gate.tally), _peer(one))).lower()


def _show(seen: _Seen, now: float) -> ConnectionStatus:
    one = seen.one
    tally = one.gate.tally
    return ConnectionStatus(
        f"{os.getpid()}-{one.number}",
        *_listener(tally),
        tally.kind,
        _peer(one),
        max(0.0, now - one.began),
        seen.bytes_in,
        seen.bytes_out,
        seen.rate_in,
        seen.rate_out,
    )


def _limits(gate: Gate | None) -> list[LimitStatus]:
    """List the limits in force, in the order of their table, of each that of the process first."""
    if gate is None:
        return []
    kind = gate.tally.kind
    found: list[LimitStatus] = []
    for name, limit in LIMITS.items():
        levels = [level for level in gate.levels if name in level.limits] if kind in limit.kinds else []
        # Of one that is not shared, the nearest level decides.
        for level in levels if limit.shared else levels[-1:]:
            if level.limits[name] is not None:
                value, chosen = show_limit(level.limits[name]), name in level.chosen
                found.append(LimitStatus(name, value, level.name, chosen, level.reports(name)))
    return found
