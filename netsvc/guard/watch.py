"""Ends stream connections that are silent, or last, for too long. Nothing of it runs when bytes come or go.

What a connection has done is asked when it could be over a limit, and not before. Of TCP on Linux the kernel knows it
all (`netsvc.guard.tcp_info`). Any other transport is given traps (`netsvc.guard.traps`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

from twisted.logger import Logger

from netsvc.guard.ending import abort, end
from netsvc.guard.tcp_info import read_progress, socket_transport
from netsvc.guard.traps import Traps

__all__ = ["GRACE", "Watch", "Watched"]

#: Seconds between closing a connection and aborting it.
GRACE = 5.0

# A connection's limits that have nothing more to say: not set, met, or reported; and that it is being closed.
_HANDSHAKE, _IDLE, _LIFE, _CLOSING = 1, 2, 4, 8

#: Looks in one turn of the event loop, a millisecond's worth; to close a connection counts as several.
_LOOKS = 250
_CLOSE_COST = 8

#: Classes of transports that are remembered. There are four or so.
_CLASSES = 64

#: Seconds by which the kernel's clock for the age of a segment may be off: it ticks 100 times a second or more.
_TICK = 0.01

_log = Logger(namespace="netsvc.guard")

#: A limit's value in seconds, and whether it only reports (`netsvc.limits.in_force`).
_Set = tuple[float | None, bool]


class _Terms:
    """The limits that many connections share."""

    __slots__ = ("dry", "first", "grain", "handshake", "idle", "lapse", "life", "over")

    def __init__(self, handshake: _Set, idle: _Set, life: _Set) -> None:
        self.over = self.dry = 0
        for bit, (value, dry) in ((_HANDSHAKE, handshake), (_IDLE, idle), (_LIFE, life)):
            self.over |= 0 if value else bit
            self.dry |= bit if dry else 0
        self.handshake, self.idle, self.life = handshake[0] or inf, idle[0] or inf, life[0] or inf
        self.first = min(self.handshake, self.idle, self.life)
        #: Seconds to which moments are rounded up, so that many connections share one.
        self.grain = min(0.25, self.first / 4)
        #: Seconds after a sign of life until we look again, where it is not known better when the last one was.
        self.lapse = min(max(0.5, self.idle / 20), self.idle / 2)


_terms = lru_cache(1024)(_Terms)
#: Of a connection that is not watched.
_NONE = _Terms((None, False), (None, False), (None, False))


class Watched:
    """What `Watch` keeps of a connection, which has a `transport` and a `protocol` as well."""

    __slots__ = ("acknowledged", "alive", "began", "due", "over", "received", "terms", "traps")

    protocol: Any
    transport: Any

    def __init__(self) -> None:
        self.terms = _NONE
        #: When it is looked at next (0: never), when it began, and when it was last known to be alive.
        self.due = self.began = self.alive = 0.0
        self.received = self.acknowledged = 0
        self.over = 0
        self.traps: Traps | None = None


class Watch:
    """Watches the `handshake`, `idle` and `life` limits of any number of connections with one delayed call.

    - `handshake`: seconds until the first byte is received, or until the TLS handshake is complete.
    - `idle`: seconds in which no byte comes and none is acknowledged; what is sent again is no progress, so a peer
      that reads nothing is idle.
    - `life`: seconds from the beginning.

    A connection over a limit is ended once: `ended(connection, limit)` is called, what was written is still sent, the
    peer sees an orderly end, and what is left `GRACE` seconds later is aborted. Where the limit only reports,
    `reported` is called instead, once a connection and limit. Neither comes before the limit; they come at most a
    second, or a tenth of the limit, after.
    """

    def __init__(self, clock: Any, ended: Callable[[Any, str], None], reported: Callable[[Any, str], None]) -> None:
        self._clock = clock
        self._ended = ended
        self._reported = reported
        # A timing wheel: who is due at a moment, and the moments, of which some may be past use.
        self._due: dict[float, set[Watched]] = {}
        self._moments: list[float] = []
        self._call: Any = None
        self._wakes = inf
        # The classes of transports that the kernel counts for.
        self._counted: set[type] = set()

    def add(self, connection: Watched, handshake: _Set, idle: _Set, life: _Set) -> None:
        """Watch a connection from now on. Of each limit, its value or None, and whether it only reports."""
        terms = connection.terms = _terms(handshake, idle, life)
        connection.over = terms.over
        if terms.first == inf:
            return
        now = connection.began = connection.alive = self._clock.seconds()
        wait = terms.first
        transport = socket_transport(connection.transport)
        if transport is None:
            # TLS is about to get its transport: look soon, and lay traps then if need be.
            wait = 0
        elif transport.__class__ not in self._counted:
            if read_progress(transport) is None:
                self._lay_traps(connection, transport)
            elif len(self._counted) < _CLASSES:
                self._counted.add(transport.__class__)
        self._schedule(connection, now + wait, now)

    def remove(self, connection: Watched) -> None:
        """Watch a connection no more. It need not be watched."""
        if connection.due:
            self._unschedule(connection)
        if connection.traps is not None:
            connection.traps.clear()
            connection.traps = None

    def close(self) -> None:
        """Watch nothing any more."""
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
        # Always a later moment than this one: a sweep comes to its end.
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
            except Exception:  # noqa: BLE001  (a protocol may hear of its end from here; the others are to be looked at)
                looks -= _CLOSE_COST
                _log.failure("a connection over its limit was not closed in order")
        if moments:
            self._wake_at(moments[0], now)

    def _look(self, connection: Watched, now: float) -> int:
        """Do what is due with a connection; return how much that cost, in looks."""
        if connection.over & _CLOSING:
            abort(connection.transport)
            return _CLOSE_COST
        terms = connection.terms
        again = inf
        if not connection.over & _LIFE:
            ends = connection.began + terms.life
            if now >= ends:
                if self._exceeded(connection, "life", _LIFE, now):
                    return _CLOSE_COST
            else:
                again = ends
        if connection.over & (_HANDSHAKE | _IDLE) != _HANDSHAKE | _IDLE:
            known = self._ask(connection, now)
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
        if again < inf:
            self._schedule(connection, again, now)
        elif connection.traps is not None:
            connection.traps.clear()
            connection.traps = None
        return 1

    def _exceeded(self, connection: Watched, limit: str, bit: int, now: float) -> bool:
        """Report a connection that is over a limit, or end it; return whether it was ended."""
        connection.over |= bit
        if connection.terms.dry & bit:
            self._reported(connection, limit)
            return False
        connection.over |= _CLOSING
        if connection.traps is not None:
            connection.traps.clear()
            connection.traps = None
        self._schedule(connection, now + GRACE, now)
        self._ended(connection, limit)
        end(connection.transport, half=bit != _HANDSHAKE)
        return True

    def _ask(self, connection: Watched, now: float) -> bool:
        """Learn when a connection was alive; return whether that is known well, not merely not too early."""
        if connection.traps is not None:
            if connection.traps.sprung:
                connection.alive = now
                connection.traps.lay()
            return True
        transport = socket_transport(connection.transport)
        progress = read_progress(transport)
        if progress is None:
            # Its transport was not there yet when it was added; or it is lost, and about to be removed.
            if transport is not None:
                self._lay_traps(connection, transport)
            return True
        # Only what counts as progress is dated, and none later than it may have been: a peer that acknowledges the same
        # byte again and again (keepalive, no room) does not live by that.
        if progress.received != connection.received:
            connection.received = progress.received
            self._lived(connection, now, progress.received_ago)
        if progress.acknowledged != connection.acknowledged:
            connection.acknowledged = progress.acknowledged
            ago = progress.heard_ago
            if not progress.outstanding:
                # All that was sent is acknowledged; so the last was, sooner than it would have been sent again.
                ago = max(ago, progress.sent_ago - progress.timeout // 500)
            self._lived(connection, now, ago)
        return not progress.outstanding

    def _lived(self, connection: Watched, now: float, ago: int) -> None:
        connection.alive = max(connection.alive, min(now, now - ago / 1000 + _TICK))

    def _lay_traps(self, connection: Watched, transport: Any) -> None:
        connection.traps = Traps(transport, connection.protocol, self._hasten, connection)
        connection.traps.lay()

    def _hasten(self, connection: Watched) -> None:
        """Look at a connection that a trap has seen moving, so that its idle time is known to begin soon."""
        now = self._clock.seconds()
        if connection.due > now + connection.terms.lapse:
            self._unschedule(connection)
            self._schedule(connection, now + connection.terms.lapse, now)


def _has_begun(connection: Watched) -> bool:
    """Tell whether the peer has said something; under TLS, whether it has done its part of the handshake."""
    layer = connection.transport
    bottom = socket_transport(layer)
    # What protocol.startTLS() puts in is not above the transport, but in the place of its protocol.
    states = [getattr(getattr(bottom, "protocol", None), "_handshakeDone", None)]
    while layer is not None and layer is not bottom:
        states.append(getattr(layer, "_handshakeDone", None))
        layer = getattr(layer, "transport", None)
    if False in states:
        return False
    if connection.traps is not None:
        return True in states or connection.traps.heard or getattr(connection.transport, "heard_before", False)
    # What stands around a transport may have read bytes of its own before, such as a PROXY header.
    return connection.received > getattr(connection.transport, "preamble", 0)
