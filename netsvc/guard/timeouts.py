"""Enforces the time limits of stream connections, and the time of closing.

They are `handshake`, `idle`, `life`, `minrate`, and what the kernel leaves of `keepalive` (`netsvc.guard.tcp`).

A connection is checked only when it could have exceeded a limit; no code runs when bytes are transferred. Its activity
is read from the kernel for TCP on Linux (`netsvc.guard.tcp`), otherwise from the transport (`netsvc.reactor.hooks`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

from twisted.logger import Logger

from netsvc.guard.closing import abort, end
from netsvc.guard.tcp import GONE_AFTER, TCPInfo, read_tcp_info
from netsvc.reactor.hooks import socket_transport

#: Seconds between closing a connection and aborting it.
GRACE = 5.0
#: Seconds over which `minrate` is measured.
RATE_WINDOW = 20.0
#: Once a connection is closed, its peer must acknowledge `LEAST_RATE` bytes a second of the rest over each `LINGER`
#: seconds, or all of it. That is less than a modem of 1,200 baud takes.
LINGER = 60.0
LEAST_RATE = 100
#: Seconds between two checks of a closed connection, if the reactor does not report acknowledgements.
_LINGER_CHECK = 0.5

# Bits for the limits that need no further check: not set, met, or reported; for a connection that is being closed; and
# for one that is closed, whose peer has not acknowledged everything.
_HANDSHAKE, _IDLE, _LIFE, _MINRATE, _KEEPALIVE, _CLOSING, _LINGERING = 1, 2, 4, 8, 16, 32, 64
#: The limits for which the traffic must be read.
_BY_TRAFFIC = _HANDSHAKE | _IDLE | _MINRATE | _KEEPALIVE

#: Checks in one iteration of the event loop, about a millisecond; closing a connection counts as several.
_LOOKS = 250
_CLOSE_COST = 8

#: The resolution in seconds of the kernel's segment ages: its timer ticks at least 100 times a second.
_TICK = 0.01

_log = Logger(namespace="netsvc.guard")

#: The value of a limit in seconds, and whether it is a dry run (`netsvc.plan.limits.in_force`).
_Set = tuple[float | None, bool]
_OFF: _Set = (None, False)


class TimeLimits:
    """The limits that many connections share."""

    __slots__ = ("dry", "first", "gone", "grain", "handshake", "idle", "lapse", "life", "minrate", "over")

    def __init__(self, handshake: _Set, idle: _Set, life: _Set, minrate: _Set = _OFF, keepalive: _Set = _OFF) -> None:
        self.over = self.dry = 0
        limits = (handshake, idle, life, minrate, keepalive)
        for bit, (value, dry) in zip((_HANDSHAKE, _IDLE, _LIFE, _MINRATE, _KEEPALIVE), limits, strict=True):
            self.over |= 0 if value else bit
            self.dry |= bit if dry else 0
        self.handshake, self.idle, self.life = handshake[0] or inf, idle[0] or inf, life[0] or inf
        self.minrate = minrate[0] or 0
        #: Seconds without an answer after which the peer is gone.
        self.gone = GONE_AFTER * (keepalive[0] or inf)
        self.first = min(self.handshake, self.idle, self.life, self.gone, RATE_WINDOW if self.minrate else inf)
        #: Due times are rounded up to a multiple of this many seconds, so that many connections share one.
        self.grain = min(0.25, self.first / 4)
        #: Seconds until the next check, if the time of the last activity is not known exactly.
        self.lapse = min(max(0.5, self.idle / 20), self.idle / 2)


#: Returns the `TimeLimits` of limits: `handshake`, `idle`, `life`, `minrate` and `keepalive`, as for `Watch.add`.
terms_of = lru_cache(1024)(TimeLimits)


class Watched:
    """The state that `Watch` keeps of a connection. `transport` closes it; `hooks` is the transport with the hooks.

    It begins with `Watch.add`.
    """

    __slots__ = (
        *("acknowledged", "alive", "began", "due", "hooks", "moved", "over", "rated", "received", "terms"),
        "unanswered",
    )

    transport: Any
    hooks: Any
    terms: TimeLimits
    over: int
    #: When it is checked next (0: never), when it began, and when it was last known to be active.
    due: float
    began: float
    alive: float
    received: int
    acknowledged: int
    #: When the present window of `minrate` began, and the bytes in both directions until then.
    rated: float
    moved: int
    #: Since when the peer has answered nothing; 0 while it may.
    unanswered: float


class Watch:
    """Enforces the time limits of any number of connections with one delayed call.

    - `handshake`: seconds until the first byte is received, or until the TLS handshake is complete.
    - `idle`: seconds in which no byte is received and none is acknowledged. Retransmissions are no progress, so a peer
      that reads nothing is idle.
    - `life`: seconds since the connection began.
    - `minrate`: bytes a second, received and acknowledged, over each `RATE_WINDOW` seconds since the first byte. The
      first window begins at most one window later.
    - `keepalive`: one and a half times as many seconds in which the peer answers nothing, although data is on its way
      to it; the connection is aborted at once. Without such data the kernel probes it (`netsvc.guard.tcp`).

    A connection that exceeds a limit is ended once: `ended(connection, limit)` is called, written bytes are still sent,
    and the connection is closed in order, or aborted if it is still open `GRACE` seconds later. For a dry-run limit,
    `reported` is called instead, once for each connection and limit. Neither is called before the limit is exceeded,
    nor later than a second, or a tenth of the limit, after that (`keepalive` above two minutes: twice).

    A closed connection whose peer has not acknowledged everything (`linger`) is reset when the peer stops
    acknowledging for `LINGER` seconds, or for `idle` if that is less; for too little see `LEAST_RATE`. `life` applies
    to it as before, but without a grace.
    """

    def __init__(self, clock: Any, ended: Callable[[Any, str], None], reported: Callable[[Any, str], None]) -> None:
        self._clock = clock
        self._ended = ended
        self._reported = reported
        # The connections by due time, and a heap of due times, some of which may have no connections any more.
        self._due: dict[float, set[Watched]] = {}
        self._moments: list[float] = []
        self._call: Any = None
        self._wakes = inf

    def add(self, connection: Watched, *limits: _Set) -> None:
        """Watch a connection.

        The limits are `handshake`, `idle`, `life`, `minrate` and `keepalive`, in this order; the last two may be left
        out. Each is its value, or None, and whether it is a dry run.
        """
        self.begin(connection, terms_of(*limits))

    def begin(self, connection: Watched, terms: TimeLimits) -> None:
        """Watch a connection under the limits of `terms`."""
        connection.terms = terms
        connection.over = terms.over
        connection.due = connection.unanswered = 0.0
        connection.received = connection.acknowledged = connection.moved = 0
        now = connection.began = connection.alive = connection.rated = self._clock.seconds()
        if terms.first == inf:
            return
        self._schedule(connection, now + terms.first, now)

    def end(self, connection: Watched, *, half: bool = True) -> None:
        """Close a connection in order, and abort it if it is still open `GRACE` seconds later. `half`: see `end`."""
        self.remove(connection)
        connection.over |= _CLOSING
        now = self._clock.seconds()
        self._schedule(connection, now + GRACE, now)
        end(connection.transport, half=half)

    def linger(self, connection: Watched) -> None:
        """Watch a closed connection, whose `transport` and `hooks` are a `Lingering` now, until it is removed."""
        connection.over |= _LINGERING
        # One that has been closed for a limit is aborted after its grace.
        if not connection.over & _CLOSING and (info := connection.hooks.look()) is not None:
            self.remove(connection)
            connection.alive, connection.acknowledged = self._clock.seconds(), info.acknowledged
            self._schedule_rest(connection, connection.alive)

    def remove(self, connection: Watched) -> None:
        """Stop watching a connection, if it is watched."""
        if connection.due:
            self._unschedule(connection)

    def close(self) -> None:
        """Stop watching all connections."""
        for due in list(self._due.values()):
            for connection in list(due):
                self.remove(connection)
        self._moments.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._wakes = inf

    def _schedule(self, connection: Watched, when: float, now: float) -> None:
        grain = connection.terms.grain
        # Always later than now, so that a sweep ends.
        moment = (max(when, now) // grain + 1) * grain
        connection.due = moment
        due = self._due.get(moment)
        if due is None:
            self._due[moment] = {connection}
            heappush(self._moments, moment)
            if moment < self._wakes:
                self._wake_at(moment, now)
        else:
            due.add(connection)

    def _unschedule(self, connection: Watched) -> None:
        moment, connection.due = connection.due, 0.0
        due = self._due[moment]
        due.remove(connection)
        if not due:
            del self._due[moment]
            if len(self._moments) > 2 * len(self._due) + 64:
                self._moments[:] = self._due
                heapify(self._moments)

    def _wake_at(self, moment: float, now: float) -> None:
        self._wakes = moment
        if self._call is None:
            self._call = self._clock.callLater(max(0.0, moment - now), self._sweep)
        else:
            self._call.reset(max(0.0, moment - now))

    def _sweep(self) -> None:
        self._call = None
        self._wakes = inf
        now = self._clock.seconds()
        moments, looks = self._moments, _LOOKS
        while moments and moments[0] <= now and looks > 0:
            due = self._due.get(moments[0])
            if not due:
                self._due.pop(heappop(moments), None)
                continue
            connection = due.pop()
            connection.due = 0.0
            try:
                looks -= self._look(connection, now)
            except Exception:  # noqa: BLE001  (closing calls the protocol; the other connections must still be checked)
                looks -= _CLOSE_COST
                _log.failure("failed to close a connection that exceeded a limit")
        if moments:
            self._wake_at(moments[0], now)

    def _look(self, connection: Watched, now: float) -> int:
        """Check a connection that is due; return the cost in checks."""
        if connection.over & _CLOSING:
            abort(connection.transport)
            return _CLOSE_COST
        if connection.over & _LINGERING:
            return self._look_at_rest(connection, now)
        terms = connection.terms
        again = inf
        if not connection.over & _LIFE:
            ends = connection.began + terms.life
            if now >= ends:
                if self._exceeded(connection, "life", _LIFE, now):
                    return _CLOSE_COST
            else:
                again = ends
        if connection.over & _BY_TRAFFIC != _BY_TRAFFIC:
            info = read_tcp_info(socket_transport(connection.hooks))
            known = self._update(connection, info, now)
            if not connection.over & _KEEPALIVE:
                if info is None:
                    # Not TCP, or not on Linux.
                    connection.over |= _KEEPALIVE
                else:
                    silent = _silent_for(connection, info, now)
                    if silent < terms.gone:
                        again = min(again, now + terms.gone - silent)
                    elif self._exceeded(connection, "keepalive", _KEEPALIVE, now):
                        return _CLOSE_COST
            if not connection.over & _HANDSHAKE:
                ends = connection.began + terms.handshake
                if _has_begun(connection):
                    connection.over |= _HANDSHAKE
                elif now >= ends:
                    if self._exceeded(connection, "handshake", _HANDSHAKE, now):
                        return _CLOSE_COST
                else:
                    again = min(again, ends)
            if not connection.over & _IDLE:
                ends = connection.alive + terms.idle
                if now >= ends:
                    if self._exceeded(connection, "idle", _IDLE, now):
                        return _CLOSE_COST
                else:
                    again = min(again, ends if known else now + terms.lapse)
            if not connection.over & _MINRATE:
                if now >= connection.rated + RATE_WINDOW and _is_slow(connection, now):
                    if self._exceeded(connection, "minrate", _MINRATE, now):
                        return _CLOSE_COST
                else:
                    again = min(again, connection.rated + RATE_WINDOW)
        if again < inf:
            self._schedule(connection, again, now)
        return 1

    def _look_at_rest(self, connection: Watched, now: float) -> int:
        """Check a closed connection that is due, and reset it if its peer takes too long; return the cost in checks."""
        info = connection.hooks.look()
        if info is None:
            return _CLOSE_COST
        span, ends, rate = _rest_terms(connection)
        if now >= ends:
            self._ended(connection, "life")
        elif now >= connection.alive + span:
            if info.acknowledged - connection.acknowledged < rate * span:
                ends = now
            connection.alive, connection.acknowledged = now, info.acknowledged
        if now >= ends:
            connection.hooks.abortConnection()
            return _CLOSE_COST
        self._schedule_rest(connection, now)
        return 1

    def _schedule_rest(self, connection: Watched, now: float) -> None:
        span, ends, _ = _rest_terms(connection)
        check = inf if connection.hooks.is_notified else now + _LINGER_CHECK
        self._schedule(connection, min(connection.alive + span, ends, check), now)

    def _exceeded(self, connection: Watched, limit: str, bit: int, now: float) -> bool:
        """End a connection that exceeds a limit, or report it in a dry run; return whether it was ended."""
        connection.over |= bit
        if connection.terms.dry & bit:
            self._reported(connection, limit)
            return False
        self._ended(connection, limit)
        if bit == _KEEPALIVE:
            # Nobody is there to be told of an orderly end.
            abort(connection.transport)
        else:
            self.end(connection, half=bit != _HANDSHAKE)
        return True

    def _update(self, connection: Watched, progress: TCPInfo | None, now: float) -> bool:
        """Update when a connection was last active; return whether that time is exact, not only an upper bound."""
        hooks = connection.hooks
        if progress is None:
            connection.received, connection.acknowledged = hooks.received, hooks.sent
            connection.alive = max(connection.alive, min(now, hooks.moved_at))
            return True
        # Only progress counts as activity, at the latest time that it may have happened. A peer that acknowledges the
        # same byte again and again (keepalive, zero window) makes none.
        if progress.received != connection.received:
            connection.received = progress.received
            self._lived(connection, now, progress.received_ago)
        if progress.acknowledged != connection.acknowledged:
            connection.acknowledged = progress.acknowledged
            ago = progress.heard_ago
            if not progress.outstanding:
                # All sent bytes are acknowledged; so the last one was, before it would have been retransmitted.
                ago = max(ago, progress.sent_ago - progress.timeout // 500)
            self._lived(connection, now, ago)
        return not progress.outstanding

    def _lived(self, connection: Watched, now: float, ago: int) -> None:
        connection.alive = max(connection.alive, min(now, now - ago / 1000 + _TICK))


def _rest_terms(connection: Watched) -> tuple[float, float, float]:
    """Return the seconds over which a closed connection is measured, when it must end, and the least rate."""
    terms = connection.terms
    unlimited = connection.over | terms.dry
    return (
        LINGER if unlimited & _IDLE else min(LINGER, terms.idle),
        inf if unlimited & _LIFE else connection.began + terms.life,
        LEAST_RATE if unlimited & _MINRATE else max(LEAST_RATE, terms.minrate),
    )


def _silent_for(connection: Watched, info: TCPInfo, now: float) -> float:
    """Return the seconds in which the peer has answered nothing that was sent to it; 0 if it may still answer."""
    unanswered = info.unanswered
    if unanswered:
        # The kernel's own time stands still once its timeout has reached the maximum.
        since = connection.unanswered = min(connection.unanswered or inf, now - unanswered)
        return now - since
    connection.unanswered = 0.0
    return 0.0


def _is_slow(connection: Watched, now: float) -> bool:
    """Begin the next window of `minrate`; return whether too few bytes were transferred in the one that ends."""
    before, connection.moved = connection.moved, connection.received + connection.acknowledged
    seconds, connection.rated = now - connection.rated, now
    # Before the first byte there is no rate; that is what `handshake` and `idle` are for.
    return before > 0 and connection.moved - before < connection.terms.minrate * seconds


def _has_begun(connection: Watched) -> bool:
    """Return whether the peer has sent a byte; with TLS, whether the handshake is complete."""
    layer = connection.transport
    bottom = socket_transport(connection.hooks)
    # startTLS() does not add a layer above the transport, but replaces its protocol by one.
    states = [getattr(each, "_handshakeDone", None) for each in (bottom, getattr(bottom, "protocol", None))]
    while layer is not None and layer is not bottom:
        states.append(getattr(layer, "_handshakeDone", None))
        layer = getattr(layer, "transport", None)
    if False in states:
        return False
    if True in states and not connection.hooks.counted_by_kernel:
        return True
    # A wrapper may have read bytes of its own before, such as a PROXY header.
    return bool(connection.received > connection.hooks.preamble)
