"""Tracks the peers of a datagram port as sessions, and enforces the limits of each peer.

A session begins with the first datagram of a peer and ends when the peer has been silent for `sessionidle`, or up to
half as long again. The table has three generations. A datagram moves its peer to the young generation. After each half
of `sessionidle`, the young generation becomes the old one, the old one the oldest, and the sessions of the former
oldest end. So no time is stored for each datagram. When the limit on all sessions is reached, the newest entry of the
oldest generation is evicted; in a flood from forged addresses that is a forged one. Of several ports that share a
limit, the one with the most sessions evicts one, so that a flood at one port does not close another.

When the limit on sessions of one address is reached, one of its own is evicted: the first in the order of their begin
that has nothing to wait for, which is one whose single request was answered, or that was silent since it was last
spared. So a client that uses a new port for each request does not end its own longer conversations.

What one peer may be sent is in `netsvc.guard.session`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.bucket import Bucket
from netsvc.base.hosts import ephemeral_ports, is_local, peer_key
from netsvc.guard.admission import Gate
from netsvc.guard.bandwidth import Rate, shared_rates
from netsvc.guard.faults import Faults
from netsvc.guard.session import (
    MUTED_FIRST,
    NO_CEILING,
    Answers,
    LoopBreak,
    PeerRates,
    Session,
    first_portion,
    peer_place,
)
from netsvc.plan.limits import IPV4_HEADERS, Limits, in_force
from netsvc.reactor.datagrams import ONE_COUNTED, ONE_DATAGRAM

#: Seconds after which a silent peer is forgotten if `sessionidle` is disabled, so that the table stays bounded.
_LONGEST_IDLE = 86400.0
#: The longest datagram, in bytes.
_LONGEST = 65535.0

#: Ended sessions that are recorded in one iteration of the event loop; takes about a millisecond.
_RECORDED_A_TURN = 200

#: More bytes than a datagram can have.
_UNCHECKED = 1 << 20

#: Datagrams granted at a time, at most and at least; for fewer, the limits are checked for each datagram.
_MOST_GRANTED, _LEAST_GRANTED = 63, 4


_log = Logger(namespace="netsvc.guard")


class Sessions:
    """The sessions of one datagram port. The port consults it for every datagram that it receives or sends."""

    def __init__(
        self,
        clock: Any,
        gate: Gate,
        faults: Faults,
        *,
        verified: bool = False,
        port: int = 0,
        converse: Callable[[Gate, Any, Any], Callable[[], None]] = lambda gate, port, peer: lambda: None,
    ) -> None:
        self.young: dict[Any, Session] = {}
        self._old: dict[Any, Session] = {}
        self._oldest: dict[Any, Session] = {}
        #: The sessions of each peer key, in the order in which they may be evicted.
        self._by_peer: dict[str, dict[Session, None]] = {}
        self._clock = clock
        self._faults = faults
        #: Ended sessions that are not recorded yet, with their duration, and their end in seconds since the epoch.
        self._past: list[tuple[Session, float, float]] = []
        self._verified = verified
        self._converse = converse
        #: Its number, and whether that is one that the system gives to clients.
        self._port_is_ephemeral = port in ephemeral_ports()
        self._answers: tuple[float | None, bool, bool] = (None, False, False)
        #: The limits whose cure was logged.
        self._explained: set[str] = set()
        self._unbounded = False
        self._aging_call: Any = None
        self._recording: Any = None
        self._batch = 0
        self._granted: list[Session] = []
        #: By peer key, or by address for UNIX sockets; an entry lives as long as a session uses it.
        self._rates_by_peer: WeakValueDictionary[Any, PeerRates] = WeakValueDictionary()
        self._gate = gate
        self.gate = gate

    @property
    def gate(self) -> Gate:
        """The limits of this port. A change does not affect the rates of existing sessions."""
        return self._gate

    @gate.setter
    def gate(self, gate: Gate) -> None:
        self._gate.remove_table(self)
        gate.add_table(self)
        gate.tally.sessions = self
        self._gate = gate
        levels = [level.limits for level in gate.levels]
        amplify, self._amplify_reported = in_force(levels, "amplify")
        # An `amplify` set by the user takes precedence over the service's own `verified`.
        verified = self._verified and not any("amplify" in level.chosen for level in gate.levels)
        self._amplify: float = math.inf if verified or amplify is None else amplify
        idle, _ = in_force(levels, "sessionidle")
        self._generation_seconds = (idle or _LONGEST_IDLE) / 2
        if (
            self._aging_call is not None
            and self._aging_call.getTime() - self._clock.seconds() > self._generation_seconds
        ):
            self._aging_call.reset(self._generation_seconds)
        answers = (*in_force(levels, "answers"), any("answers" in level.chosen for level in gate.levels))
        if self._answers != answers:
            self._answers = answers
            for session in self.all():
                self._limit_answers(session)
        self._life = in_force(levels, "life")
        self._shared_reads = shared_rates(gate, "readall")
        self._shared_writes = shared_rates(gate, "writeall")
        self._own_reads = _rates(levels, "datagrams", "read")
        self._own_writes = _rates(levels, "write")
        self._writes_paced = bool(self._shared_writes or self._own_writes)
        #: Whether any rate or `life` has to be checked for each datagram.
        self.paced = self._writes_paced or bool(self._shared_reads or self._own_reads) or self._life[0] is not None
        #: Whether a known peer has no limits to check, but `answers`.
        self.free = self._amplify == math.inf and not self.paced
        #: How much longer than its request the first answer to it may be without checking the limits.
        self.extra = int(IPV4_HEADERS * min(self._amplify - 1, _UNCHECKED))
        if self._writes_paced or self._amplify < 1:
            self.extra = -_UNCHECKED
        #: Whether a grant is for an answer as long as its request as well.
        self.grants_answers = self._amplify >= 1
        for session in self.all():
            # What was sent before does not count against the peer.
            session.waived = 0
            session.waived = max(0, -self._credit(session))

    def __len__(self) -> int:
        return len(self.young) + len(self._old) + len(self._oldest)

    def all(self) -> list[Session]:
        """List the sessions."""
        return [*self._oldest.values(), *self._old.values(), *self.young.values()]

    def find(self, address: Any, sockaddr: Any) -> Session | None:
        """Return the session of a peer that is not in `young`, or a new one; None if the limits refuse it."""
        session = self._old.pop(address, None) or self._oldest.pop(address, None)
        if session is None:
            session = self._begin(address, sockaddr)
        else:
            # The routes may have changed.
            session.controls, session.lookups = None, 0
        if session is not None:
            self.young[address] = session
        return session

    def known(self, address: Any) -> Session | None:
        """Return the session of a peer, if there is one, without marking the peer as active."""
        return self.young.get(address) or self._old.get(address) or self._oldest.get(address)

    def _begin(self, address: Any, sockaddr: Any) -> Session | None:
        gate = self._gate
        # The peer of a UNIX socket is a path, or nothing; the system does not report its user.
        key = gate.admit(address[0]) if type(address) is tuple else gate.admit(None, "")
        if key is None:
            return None
        now = self._clock.seconds()
        session = Session(address, gate, key, now)
        session.sockaddr = sockaddr
        self._limit_answers(session)
        if self._own_reads or self._own_writes:
            session.peer_rates = peer_rates = self._rates_of(key or address, now)
            session.reads, session.writes = peer_rates.reads, peer_rates.writes
        else:
            session.reads, session.writes = self._shared_reads, self._shared_writes
        own = self._by_peer.get(key)
        if own is None:
            self._by_peer[key] = {session: None}
        else:
            own[session] = None
        if self._aging_call is None:
            self._aging_call = self._clock.callLater(self._generation_seconds, self._age)
        return session

    def _rates_of(self, key: Any, now: float) -> PeerRates:
        peer_rates = self._rates_by_peer.get(key)
        if peer_rates is None or peer_rates.gate is not self._gate:
            reads = (*_buckets(self._own_reads, now), *self._shared_reads)
            writes = (*_buckets(self._own_writes, now), *self._shared_writes)
            peer_rates = self._rates_by_peer[key] = PeerRates(self._gate, reads, writes)
        return peer_rates

    def forget_one(self) -> None:
        """Evict a session of the oldest generation that is not empty, if there is any."""
        if not (self._oldest or self._old):
            self._grow_old()
        aged = self._oldest or self._old
        if aged:
            _, forgotten = aged.popitem()
            self._end(forgotten, "full")

    def count(self, peer: str) -> int:
        """Return the number of sessions of a peer."""
        return len(self._by_peer.get(peer, ()))

    def forget_one_of(self, peer: str) -> None:
        """Evict a session of a peer that is idle, or its first one if none is."""
        own = self._by_peer.get(peer)
        if own is None:
            return
        for _ in range(len(own)):
            session = next(iter(own))
            if session.is_idle():
                break
            # What is spared here has received something since the last time, which pays for the search.
            del own[session]
            own[session] = None
        self.forget(next(iter(own)), "full")

    def _leave(self, session: Session) -> None:
        """Uncount a session that was removed from the table."""
        key = session.peer_key
        session.gate.leave(key)
        own = self._by_peer[key]
        del own[session]
        if not own:
            del self._by_peer[key]

    def _end(self, session: Session, reason: str, limit: str | None = None) -> None:
        """End a session that was removed from the table."""
        self._leave(session)
        _record_end(session, max(0.0, self._clock.seconds() - session.began), (reason, limit))

    def forget(self, session: Session, reason: str) -> bool:
        """End a session for one of `netsvc.plan.record.REASONS`; return whether it was in the table."""
        for generation in (self.young, self._old, self._oldest):
            if generation.get(session.address) is session:
                del generation[session.address]
                self._end(session, reason)
                return True
        return False

    def _grow_old(self) -> None:
        self._oldest, self._old, self.young = self._old, self.young, {}

    def _age(self) -> None:
        if self._oldest:
            waiting = bool(self._past)
            now, when = self._clock.seconds(), time.time()
            for session in self._oldest.values():
                # Release all at once, but record them in steps: recording is slow, and thousands may end together.
                self._leave(session)
                self._past.append((session, max(0.0, now - session.began), when))
            if not waiting:
                self._recording = self._clock.callLater(0, self._record_some)
        self._grow_old()
        self._aging_call = self._clock.callLater(self._generation_seconds, self._age) if len(self) else None

    def _record_some(self) -> None:
        for session, seconds, when in self._past[:_RECORDED_A_TURN]:
            _record_end(session, seconds, ("silent", None), when)
        del self._past[:_RECORDED_A_TURN]
        if self._past:
            self._recording = self._clock.callLater(0, self._record_some)

    def _limit_answers(self, session: Session) -> None:
        """Apply `answers` to a session that has used nothing of it."""
        rate, _, is_chosen = self._answers
        is_client = (
            not is_chosen
            and is_local(session.peer_key)
            # The peer of a UNIX socket has no port, and its address cannot be forged.
            and (type(session.address) is not tuple or session.address[1] in ephemeral_ports())
        )
        session.answers, session.ceiling = None, NO_CEILING
        if rate is None or (is_client and not self._port_is_ephemeral):
            return
        portion = first_portion(rate)
        if is_client:
            session.answers, portion = LoopBreak(), MUTED_FIRST
        session.ceiling = (session.sent // ONE_COUNTED + portion) * ONE_COUNTED

    def converse(self, port: Any, peer: Any) -> Callable[[], None]:
        """Count a port beside this one, open for a conversation with `peer`, until the returned function is called."""
        session = self.known(peer)
        if session is not None:
            self.lift_answers(session)
        return self._converse(self._gate, port, peer)

    def lift_answers(self, session: Session) -> bool:
        """Exempt a peer from `answers` and return True, unless a user has set it."""
        if self._answers[2]:
            return False
        session.answers, session.ceiling = None, NO_CEILING
        return True

    def may_answer(self, session: Session) -> bool:
        """Return whether `answers` allows a datagram from or to a peer that is at its ceiling; or count a refusal."""
        rate, reported, _ = self._answers
        now = self._clock.seconds()
        allowance = session.answers
        if allowance is None:
            assert rate is not None
            allowance = session.answers = Answers(rate, now)
        portion = allowance.grant(now)
        # A dry run counts each datagram once, although it is asked about the request and about its answer.
        session.ceiling = (session.sent // ONE_COUNTED + (portion or reported)) * ONE_COUNTED
        if not portion:
            self._gate.count_refusal("answers", session.peer_key, dry=reported)
            what = f"what is beyond {rate:g} datagrams a second to one address and port; raise answers if it needs more"
            self._explain("answers", what, dry=reported)
        return bool(portion or reported)

    def fail(self, address: Any) -> None:
        """Log and count the exception that the protocol has just raised with a datagram from this address."""
        self._gate.tally.counts.errors += 1
        self._faults.note(self._gate.label, *peer_place(address), Failure())

    def count_unanswered(self, unanswered: Mapping[Session, int]) -> None:
        """Count further datagrams that were dropped in this batch because `may_answer` refused their session."""
        for session, count in unanswered.items():
            if count:
                self._gate.count_refusal("answers", session.peer_key, count=count)

    def may_read(self, session: Session, size: int) -> bool:
        """Return whether a received datagram is within the limits, and count it."""
        now = self._clock.seconds()
        life, reported = self._life
        if life is not None and now - session.began >= life:
            self._gate.count_refusal("life", session.peer_key, dry=reported, ended=True)
            if reported:
                session.began = now
            else:
                # The next datagram of the peer begins a new session, if the limits admit it.
                self.young.pop(session.address, None)
                self._end(session, "limit", "life")
                return False
        if session.asked == self._batch:
            # It is not the first datagram of this batch.
            if session.granted > 0:
                self._settle(session)
            # A datagram of a UNIX socket may be longer than a grant assumes.
            if type(session.address) is tuple and self._grant(session, now):
                session.used = ONE_DATAGRAM + size
                session.unchecked = size
                return True
        session.asked = self._batch
        return self._take(session, session.reads, size, now)

    def _grant(self, session: Session, now: float) -> bool:
        """Take enough for many datagrams from the buckets; return False if they do not have enough."""
        count = _MOST_GRANTED
        for name, bucket, _ in (*session.reads, *session.writes):
            count = min(count, int(bucket.left(now) / (1 if name == "datagrams" else _LONGEST)))
        if count < _LEAST_GRANTED:
            return False
        for name, bucket, _ in (*session.reads, *session.writes):
            bucket.take(count * (1 if name == "datagrams" else _LONGEST), now)
        session.granted = count * ONE_DATAGRAM + ONE_DATAGRAM - 1
        self._granted.append(session)
        return True

    def _settle(self, session: Session) -> None:
        """Return the unused part of a grant to the buckets."""
        granted = session.granted // ONE_DATAGRAM
        count, size = divmod(session.used, ONE_DATAGRAM)
        for name, bucket, _ in session.reads:
            bucket.give_back(granted - count if name == "datagrams" else granted * _LONGEST - size)
        for _, bucket, _ in session.writes:
            bucket.give_back(granted * _LONGEST - (size - session.unchecked))
        session.granted = -1
        session.used = 0

    def _take_back(self) -> bool:
        """Settle all grants; return whether there were any."""
        granted, self._granted = self._granted, []
        for session in granted:
            if session.granted > 0:
                self._settle(session)
        return bool(granted)

    def end_batch(self) -> None:
        """End the batch of this port, and all grants with it."""
        self._batch += 1
        if self._granted:
            self._take_back()

    def _may_write(self, session: Session, size: int) -> bool:
        """Return whether a datagram to a peer is within the rates, and count it."""
        if not self._writes_paced:
            return True
        if session.granted >= 0 and size <= session.unchecked:
            session.unchecked -= size
            return True
        return self._take(session, session.writes, size, self._clock.seconds())

    def _take(self, session: Session, rates: Sequence[Rate], size: int, now: float) -> bool:
        for name, bucket, reported in rates:
            amount = 1 if name == "datagrams" else size
            if bucket.wait(amount, now) > 0 and not (self._take_back() and bucket.wait(amount, now) == 0):
                self._gate.count_refusal(name, session.peer_key, dry=reported)
                if not reported:
                    return False
            else:
                bucket.take(amount, now)
        return True

    def _credit(self, session: Session) -> float:
        """Return how many bytes `amplify` still allows to be sent to a peer, with the headers of each datagram."""
        if self._amplify == math.inf:
            return math.inf
        datagrams_in, bytes_in = divmod(session.received, ONE_COUNTED)
        datagrams_out, bytes_out = divmod(session.sent, ONE_COUNTED)
        allowed = (bytes_in + datagrams_in * session.headers) * self._amplify
        return allowed - (bytes_out + datagrams_out * session.headers) + session.waived

    def may_send(self, address: Any, session: Session | None, size: int) -> bool:
        """Return whether the limits allow a datagram of `size` bytes to a peer, with its session if it has one.

        Anything else is counted as a refusal.
        """
        if session is None:
            return self._amplify == math.inf or self._overdrawn(address, None, size)
        if session.sent >= session.ceiling and not self.may_answer(session):
            return False
        if self.free:
            return True
        packet = size + session.headers
        if self._credit(session) < packet:
            if not self._overdrawn(address, session, size):
                return False
            session.waived += packet
        return self._may_write(session, size)

    def _overdrawn(self, address: Any, session: Session | None, size: int) -> bool:
        """Count a datagram of `size` bytes that exceeds the credit; return whether it may be sent nevertheless."""
        key = session.peer_key if session else peer_key(address[0]) if type(address) is tuple else str(address)
        self._gate.count_refusal("amplify", key, dry=self._amplify_reported)
        received = session.received % ONE_COUNTED if session else 0
        self._explain(
            "amplify",
            f"an answer of {size} bytes to {received}; raise amplify, or declare verifies_peers",
            dry=self._amplify_reported,
        )
        return self._amplify_reported

    def _explain(self, limit: str, what: str, *, dry: bool) -> None:
        """Log, once for this port, what a limit drops and the cure: its author sees nothing else of it."""
        if limit not in self._explained:
            self._explained.add(limit)
            verb = "would have dropped" if dry else "dropped"
            _log.warn("{label}: limit {limit} {verb} {what}", label=self._gate.label, limit=limit, verb=verb, what=what)

    def close(self) -> None:
        """End every session."""
        self._gate.remove_table(self)
        for session in self.all():
            self._end(session, "closed")
        if self._past:
            self._recording.cancel()
            for session, seconds, when in self._past:
                _record_end(session, seconds, ("silent", None), when)
            self._past.clear()
        for generation in (self._oldest, self._old, self.young):
            generation.clear()
        if self._aging_call is not None:
            self._aging_call.cancel()
            self._aging_call = None


def _record_end(session: Session, seconds: float, cause: tuple[str, str | None], when: float | None = None) -> None:
    taken = session.look()
    session.gate.tally.ended(session.peer_place(), taken, seconds, cause, when)


def _rates(levels: Sequence[Limits], *names: str) -> list[tuple[str, float, bool]]:
    """List the rates per peer that are set: the name, the amount per second, and whether it is a dry run."""
    found = [(name, *in_force(levels, name)) for name in names]
    return [each for each in found if each[1] is not None]


def _buckets(rates: Sequence[tuple[str, float, bool]], now: float) -> list[Rate]:
    # The burst must hold the longest datagram, or that could never pass.
    return [
        (name, Bucket(rate, max(rate, 1.0 if name == "datagrams" else _LONGEST), now), reported)
        for name, rate, reported in rates
    ]
