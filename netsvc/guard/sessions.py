"""The peers of a datagram port, and the limits that hold for each of them.

A session begins with a peer's first datagram and ends when the peer has been silent for `sessionidle`, or up to half
as long again. The table has three generations: a peer that is heard of is in the young one; each half of
`sessionidle` the young one becomes the old one, that the oldest one, and what was the oldest one is forgotten. So
nothing is noted of a datagram but that it came. In a full table the peer that was found last among the oldest ones
gives way: in a flood from forged addresses, one of these. Of several ports that share a limit, the one with most
sessions forgets one: a flood at one port does not close another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from netsvc.guard.bandwidth import Rate, shared_rates
from netsvc.guard.buckets import Bucket
from netsvc.guard.gate import Gate
from netsvc.guard.peers import peer_key
from netsvc.guard.session import Pool, Session
from netsvc.limits import Limits, in_force
from netsvc.udp import ONE_DATAGRAM

__all__ = ["Sessions"]

#: Seconds after which a silent peer is forgotten where `sessionidle` is lifted: the table must not only grow.
_LONGEST_IDLE = 86400.0
#: Bytes. No datagram is longer.
_LONGEST = 65535.0

#: Sessions that are recorded in one turn of the event loop: a millisecond's worth.
_RECORDED_A_TURN = 200

#: Datagrams that are granted in one go. Fewer are asked for one by one.
_MOST_GRANTED, _LEAST_GRANTED = 63, 4


class Sessions:
    """The peers of one datagram port. `netsvc.udp.UDPPort` asks it of every datagram that comes or goes."""

    def __init__(self, clock: Any, gate: Gate, *, verified: bool = False) -> None:
        self.young: dict[Any, Session] = {}
        self._old: dict[Any, Session] = {}
        self._oldest: dict[Any, Session] = {}
        self._clock = clock
        #: Those that have ended and are still to be recorded, with the moment since the epoch.
        self._past: list[tuple[Session, float, float]] = []
        self._verified = verified
        self._unbounded = False
        self._turn: Any = None
        self._recording: Any = None
        self._batch = 0
        self._granted: list[Session] = []
        #: By the keys of peers, those of UNIX sockets by their addresses. One is there as long as a session has it.
        self._pools: WeakValueDictionary[Any, Pool] = WeakValueDictionary()
        self._gate = gate
        self.gate = gate

    @property
    def gate(self) -> Gate:
        """The limits of this port. Rates of a session that has begun already stay as they are."""
        return self._gate

    @gate.setter
    def gate(self, gate: Gate) -> None:
        self._gate.remove_table(self)
        gate.add_table(self)
        gate.tally.sessions = self
        self._gate = gate
        levels = [level.limits for level in gate.levels]
        amplify, self._amplify_reported = in_force(levels, "amplify")
        # What somebody has set for this service goes before what the service says of itself.
        verified = self._verified and not any("amplify" in level.chosen for level in gate.levels)
        if self._unbounded is not (verified or amplify is None):
            self._unbounded = not self._unbounded
            for session in self.all():
                session.credit = math.inf if self._unbounded else 0
        self._amplify: float = 0 if self._unbounded else amplify
        idle, _ = in_force(levels, "sessionidle")
        self._half = (idle or _LONGEST_IDLE) / 2
        if self._turn is not None and self._turn.getTime() - self._clock.seconds() > self._half:
            self._turn.reset(self._half)
        self._life = in_force(levels, "life")
        self._shared_reads = shared_rates(gate, "readall")
        self._shared_writes = shared_rates(gate, "writeall")
        self._own_reads = _rates(levels, "datagrams", "read")
        self._own_writes = _rates(levels, "write")
        self._writes_paced = bool(self._shared_writes or self._own_writes)
        #: Whether it has to be asked how fast datagrams may come or go.
        self.paced = self._writes_paced or bool(self._shared_reads or self._own_reads) or self._life[0] is not None
        #: Whether nothing has to be asked of a peer that is known, and whether nothing but that it is not sent more
        #: than it has sent.
        self.free = self._unbounded and not self.paced
        self.plain = self._amplify == 1 and not self.paced
        # Of a peer that is granted something, no more is known than how much it sent: so it may be sent that much.
        self._grants = self._amplify == 1

    def __len__(self) -> int:
        return len(self.young) + len(self._old) + len(self._oldest)

    def all(self) -> list[Session]:
        """List the sessions."""
        return [*self._oldest.values(), *self._old.values(), *self.young.values()]

    def find(self, address: Any) -> Session | None:
        """Return the session of a peer that is not among the young; a new one if the limits let it, else None."""
        session = self._old.pop(address, None) or self._oldest.pop(address, None) or self._begin(address)
        if session is not None:
            self.young[address] = session
        return session

    def known(self, address: Any) -> Session | None:
        """Return the session of a peer if there is one; to be sent something is not to be heard of."""
        return self.young.get(address) or self._old.get(address) or self._oldest.get(address)

    def _begin(self, address: Any) -> Session | None:
        gate = self._gate
        gate.make_room()
        # The peer of a UNIX socket is a path, or nothing; who it is the system does not tell.
        key = gate.admit(address[0]) if type(address) is tuple else gate.admit(None, "")
        if key is None:
            return None
        now = self._clock.seconds()
        session = Session(address, gate, key, now)
        if self._unbounded:
            session.credit = math.inf
        if self._own_reads or self._own_writes:
            session.pool = pool = self._pool(key or address, now)
            session.reads, session.writes = pool.reads, pool.writes
        else:
            session.reads, session.writes = self._shared_reads, self._shared_writes
        if self._turn is None:
            self._turn = self._clock.callLater(self._half, self._turn_over)
        return session

    def _pool(self, key: Any, now: float) -> Pool:
        pool = self._pools.get(key)
        if pool is None or pool.gate is not self._gate:
            reads = (*_buckets(self._own_reads, now), *self._shared_reads)
            writes = (*_buckets(self._own_writes, now), *self._shared_writes)
            pool = self._pools[key] = Pool(self._gate, reads, writes)
        return pool

    def forget_one(self) -> None:
        """Forget one of those that have been silent longest, if there is any."""
        if not (self._oldest or self._old):
            self._grow_old()
        aged = self._oldest or self._old
        if aged:
            _, forgotten = aged.popitem()
            self._end(forgotten, "full")

    def _end(self, session: Session, reason: str, limit: str | None = None) -> None:
        """Let a session leave that is in no table any more."""
        session.gate.leave(session.peer_key)
        _tell(session, max(0.0, self._clock.seconds() - session.began), (reason, limit))

    def forget(self, session: Session, reason: str) -> bool:
        """Forget a session, for one of `netsvc.records.REASONS`. Tell whether it was there."""
        for generation in (self.young, self._old, self._oldest):
            if generation.get(session.address) is session:
                del generation[session.address]
                self._end(session, reason)
                return True
        return False

    def _grow_old(self) -> None:
        self._oldest, self._old, self.young = self._old, self.young, {}

    def _turn_over(self) -> None:
        if self._oldest:
            waiting = bool(self._past)
            now, when = self._clock.seconds(), time.time()
            for session in self._oldest.values():
                # To make room is quick, and to record it is not: thousands may end at once.
                session.gate.leave(session.peer_key)
                self._past.append((session, max(0.0, now - session.began), when))
            if not waiting:
                self._recording = self._clock.callLater(0, self._record_some)
        self._grow_old()
        self._turn = self._clock.callLater(self._half, self._turn_over) if len(self) else None

    def _record_some(self) -> None:
        for session, seconds, when in self._past[:_RECORDED_A_TURN]:
            _tell(session, seconds, ("silent", None), when)
        del self._past[:_RECORDED_A_TURN]
        if self._past:
            self._recording = self._clock.callLater(0, self._record_some)

    def room(self, session: Session, size: int) -> float:
        """Return how many bytes may be sent to a peer unasked because of a datagram, where this is not `plain`."""
        if self._writes_paced:
            session.credit += size * self._amplify
            return 0
        return math.inf if self._unbounded else size * self._amplify

    def may_read(self, session: Session, size: int) -> bool:
        """Tell whether a datagram of a peer may be taken now, and count it."""
        now = self._clock.seconds()
        life, reported = self._life
        if life is not None and now - session.began >= life:
            self._gate.note("life", session.peer_key, dry=reported, ended=True)
            if reported:
                session.began = now
            else:
                # Its next datagram begins another one, if the limits let it.
                self.young.pop(session.address, None)
                self._end(session, "limit", "life")
                return False
        if session.asked == self._batch:
            # It is not the only one.
            if session.granted > 0:
                self._settle(session)
            # What a UNIX socket takes may be longer than what would be granted.
            if self._grants and type(session.address) is tuple and self._grant(session, now):
                session.used = ONE_DATAGRAM + size
                return True
        session.asked = self._batch
        return self._take(session, session.reads, size, now)

    def _grant(self, session: Session, now: float) -> bool:
        """Take what many datagrams may need in one go, if there is plenty."""
        count = _MOST_GRANTED
        for name, bucket, _ in (*session.reads, *session.writes):
            count = min(count, int(bucket.left(now) / (1 if name == "datagrams" else _LONGEST)))
        if count < _LEAST_GRANTED:
            return False
        for name, bucket, _ in (*session.reads, *session.writes):
            bucket.take(count * (1 if name == "datagrams" else _LONGEST), now)
        session.granted = count * ONE_DATAGRAM + ONE_DATAGRAM - 1
        session.unsent = 0
        self._granted.append(session)
        return True

    def _settle(self, session: Session) -> None:
        """Give back what was granted and not used."""
        granted = session.granted // ONE_DATAGRAM
        count, size = divmod(session.used, ONE_DATAGRAM)
        for name, bucket, _ in session.reads:
            bucket.give_back(granted - count if name == "datagrams" else granted * _LONGEST - size)
        for _, bucket, _ in session.writes:
            bucket.give_back(granted * _LONGEST - (size - session.unsent))
        session.granted = -1
        session.used = 0

    def _take_back(self) -> bool:
        """Settle with all who were granted something; return whether there was anybody."""
        granted, self._granted = self._granted, []
        for session in granted:
            if session.granted > 0:
                self._settle(session)
        return bool(granted)

    def end_batch(self) -> None:
        """Note that other ports have their turn now: what is granted is granted for no longer."""
        self._batch += 1
        if self._granted:
            self._take_back()

    def may_write(self, session: Session, size: int) -> bool:
        """Tell whether a datagram to a peer may be sent now, and count it."""
        return not self._writes_paced or self._take(session, session.writes, size, self._clock.seconds())

    def _take(self, session: Session, rates: Sequence[Rate], size: int, now: float) -> bool:
        for name, bucket, reported in rates:
            amount = 1 if name == "datagrams" else size
            if bucket.wait(amount, now) > 0 and not (self._take_back() and bucket.wait(amount, now) == 0):
                self._gate.note(name, session.peer_key, dry=reported)
                if not reported:
                    return False
            else:
                bucket.take(amount, now)
        return True

    def overdrawn(self, address: Any, session: Session | None) -> bool:
        """Count an answer for which there is no credit; return whether it may go out all the same."""
        if self._unbounded:
            return True
        key = session.peer_key if session else peer_key(address[0]) if type(address) is tuple else str(address)
        self._gate.note("amplify", key, dry=self._amplify_reported)
        return self._amplify_reported

    def close(self) -> None:
        """Forget every peer."""
        self._gate.remove_table(self)
        for session in self.all():
            self._end(session, "closed")
        if self._past:
            self._recording.cancel()
            for session, seconds, when in self._past:
                _tell(session, seconds, ("silent", None), when)
            self._past.clear()
        for generation in (self._oldest, self._old, self.young):
            generation.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None


def _tell(session: Session, seconds: float, cause: tuple[str, str | None], when: float | None = None) -> None:
    taken = session.look()
    session.gate.tally.ended(session.peer_place(), taken, seconds, cause, when)


def _rates(levels: Sequence[Limits], *names: str) -> list[tuple[str, float, bool]]:
    """List what of these limits is set for each peer: a name, how much a second, whether it only reports."""
    found = [(name, *in_force(levels, name)) for name in names]
    return [each for each in found if each[1] is not None]


def _buckets(rates: Sequence[tuple[str, float, bool]], now: float) -> list[Rate]:
    # The longest datagram must fit, or it could never pass.
    return [
        (name, Bucket(rate, max(rate, 1.0 if name == "datagrams" else _LONGEST), now), reported)
        for name, rate, reported in rates
    ]
