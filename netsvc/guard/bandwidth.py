"""Limits the bytes per second that connections receive and send: `read`, `write`, `readall` and `writeall`.

The kernel paces the `write` limit of a connection where it can (`netsvc.guard.tcp.pace`). Otherwise the transport
(`netsvc.reactor.hooks`) asks an `Allowance` how many bytes it may transfer. The allowance takes bytes in portions from
`Bucket`s, some of which connections share. When a bucket is empty, the transport is held until it refills. If the
protocol pauses, resumes, half-closes, closes or aborts meanwhile, that takes effect at once or is remembered. A reset
by the peer is noticed within about half a second.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.python import log
from twisted.python.failure import Failure

from netsvc.base.bucket import Bucket
from netsvc.guard.admission import Gate
from netsvc.guard.tcp import pace
from netsvc.plan.limits import in_force
from netsvc.reactor.hooks import socket_transport

#: The name of a limit, its bucket, and whether it is a dry run.
Rate = tuple[str, Bucket, bool]
#: Makes the buckets of a connection when it first needs them: many connections are idle from the start.
Source = Callable[[], Sequence[Bucket]]

#: The most bytes of one system call; a quarter of the burst if that is less.
MOST = 64 * 1024
#: The smallest and largest portion, in bytes, that a connection takes from its buckets in advance. A portion lasts for
#: some seconds, as each request costs time. At most a sixteenth of the burst, so that idle connections hold little.
_LEAST_PORTION = 512
_LARGEST_PORTION = 1024 * 1024
_SHORT, _LONG = 1.0, 4.0
#: Bytes for one turn when connections wait for a bucket; a sixteenth of the burst if that is less.
_SHARE = 16 * 1024

#: Seconds between checks of the waiting connections for resets, and connections checked in one iteration of the event
#: loop: each of them may be lost then.
_LOOK_EVERY = 0.25
_LOOKS = 100

_poll: Any = getattr(select, "poll", None)


def shared_rates(gate: Gate, name: str) -> list[Rate]:
    """List the shared buckets of all levels for `readall` or `writeall`."""
    found = []
    for level in gate.levels:
        bucket = level.bucket(name)
        if bucket is not None:
            found.append((name, bucket, level.reports(name)))
    return found


class Bandwidth:
    """Keeps the stream connections of one listener to `read`, `write`, `readall` and `writeall`.

    `limited` is False if there is no such limit; then nothing is done to a connection.
    """

    def __init__(self, gate: Gate, clock: Any) -> None:
        levels = [level.limits for level in gate.levels]
        self._clock = clock
        self._gate = gate
        self._read, self._read_reported = in_force(levels, "read")
        self._write, self._write_reported = in_force(levels, "write")
        self._shared_reads = shared_rates(gate, "readall")
        self._shared_writes = shared_rates(gate, "writeall")
        self.limited = bool(self._read or self._write or self._shared_reads or self._shared_writes)

    def limit(self, transport: Any, peer: str) -> None:
        """Limit a new connection. `transport` has hooks; a transport without a socket is not limited."""
        lowest = socket_transport(transport)
        if getattr(lowest, "socket", None) is None:
            return
        write = self._write
        if write and not self._write_reported and pace(lowest, write):
            write = None
        if self._read or self._shared_reads:
            buckets = partial(self._buckets, "read", self._read, self._read_reported, self._shared_reads, peer)
            transport.reads = ReadAllowance(transport, self._clock, buckets)
        if write or self._shared_writes:
            buckets = partial(self._buckets, "write", write, self._write_reported, self._shared_writes, peer)
            transport.writes = WriteAllowance(transport, self._clock, buckets)

    def _buckets(
        self, name: str, rate: int | None, reported: bool, shared: Sequence[Rate], peer: str
    ) -> Sequence[Bucket]:
        own = ((name, Bucket(rate, rate, self._clock.seconds()), reported),) if rate else ()
        return tuple(self._bucket(each, peer) for each in (*shared, *own))

    def _bucket(self, rate: Rate, peer: str) -> Bucket:
        name, bucket, reported = rate
        if not reported:
            return bucket
        return _Reporting(bucket, partial(self._gate.count_refusal, name, peer, dry=True))


class _Reporting(Bucket):
    """A bucket of a dry-run limit: never empty, but reports when the bucket behind it is."""

    __slots__ = ("_bucket", "_report")

    def __init__(self, bucket: Bucket, report: Callable[[], None]) -> None:
        super().__init__(bucket.rate, bucket.burst, 0.0)
        self._bucket = bucket
        self._report = report

    def wait(self, amount: float, now: float) -> float:
        if self._bucket.wait(min(amount, 1.0), now) > 0:
            self._report()
        return 0.0

    def take(self, amount: float, now: float) -> None:
        # At most one burst of debt, or it would report for hours.
        self._bucket.take(min(amount, self._bucket.left(now) + self.burst), now)


class Allowance:
    """Limits what one connection reads or writes: a `netsvc.reactor.hooks.ByteLimit`.

    A connection may exceed the remaining bytes by one system call (64 KiB or a quarter of the burst); the excess is
    deducted from later bytes, so that the limit is exact over time. Connections that wait for a shared bucket take
    turns.
    """

    __slots__ = (
        *("_buckets", "_clock", "_granted", "_largest", "_least", "_left", "_most", "_once", "_portion", "_since"),
        *("_source", "_taken", "_turns", "share", "transport"),
    )

    _buckets: Sequence[Bucket]

    def __init__(self, transport: Any, clock: Any, buckets: Source) -> None:
        self.transport = transport
        self._clock = clock
        self._source: Source | None = buckets
        # Bytes that may be transferred before the buckets are asked again, and in one system call.
        self._left = self._once = 0
        # How many buckets, from the last, the share has been taken from; bytes granted after waiting, but not used yet.
        self._taken = self._granted = 0
        # The queue that it waits in.
        self._turns: Turns | None = None

    def allow(self) -> int:
        """Return how many bytes one system call may transfer; see `ByteLimit`."""
        if self._left > 0:
            return self._once
        granted, self._granted = self._granted, 0
        if granted:
            # No more than this at once, as other connections wait as well.
            self._left = self._once = granted
            return granted
        if self._source is not None:
            self._start(self._source())
        if self._turns is None:
            now = self._clock.seconds()
            if self._grant(now):
                return self._once
            self._gather(now)
        self._hold()
        raise BlockingIOError(errno.EAGAIN, "over the limit of bytes a second")

    def _start(self, buckets: Sequence[Bucket]) -> None:
        self._source = None
        self._buckets = buckets
        burst = min(bucket.burst for bucket in buckets)
        self._most = max(1, min(MOST, int(burst / 4)))
        self._largest = max(1, min(_LARGEST_PORTION, int(burst / 16)))
        #: Bytes for one turn.
        self.share = min(_SHARE, self._largest)
        self._portion = self._least = min(_LEAST_PORTION, self._largest)
        self._since = 0.0

    def spend(self, size: int) -> None:
        """Count transferred bytes; see `ByteLimit`.

        Bytes beyond the grant are taken from shared buckets at once.
        """
        self._left = left = self._left - size
        if left > 0:
            return
        if self._source is not None:
            self._start(self._source())
        now = self._clock.seconds()
        if left:
            self._take(-left, now)
        lasted, self._since = now - self._since, now
        if lasted < _SHORT:
            self._portion = min(2 * self._portion, self._largest)
        elif lasted > _LONG:
            self._portion = max(int(self._portion * _LONG / lasted), self._least)
        self._grant(now)

    def _grant(self, now: float) -> bool:
        if not self._wait(max(self._portion, self._most), now):
            # Far from the limit: one call may use more than the portion.
            self._left, self._once = self._portion, self._most
        elif not self._wait(self.share, now):
            self._left = self._once = self.share
        else:
            self._left = 0
            return False
        self._take(self._left, now)
        return True

    def close(self) -> None:
        """Return unused bytes to the buckets and stop waiting; see `ByteLimit`."""
        if self._source is not None:
            return
        now = self._clock.seconds()
        if self._turns is not None:
            self._turns.leave(self, now)
            self._turns = None
            for bucket in self._buckets[len(self._buckets) - self._taken :]:
                bucket.take(-self.share, now)
        self._take(-self._left - self._granted, now)
        self._left = self._granted = 0

    def go_on(self, now: float) -> None:
        """Take the share of the bucket that was waited for; release the transport if it was the last bucket."""
        self._turns = None
        self._taken += 1
        if self._gather(now):
            self._taken, self._granted = 0, self.share
            self._release()

    def lose(self) -> None:
        """Lose the connection, as the reactor does."""
        lowest = socket_transport(self.transport)
        lowest.reactor.removeReader(lowest)
        lowest.reactor.removeWriter(lowest)
        log.callWithLogger(lowest, lowest.connectionLost, Failure(CONNECTION_LOST))

    def _hold(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _gather(self, now: float) -> bool:
        """Take the share from one bucket after the other; return True, or False if it has to wait for one.

        The connection's own bucket, the last in the list, is asked first: no other connection waits for it.
        """
        while self._taken < len(self._buckets):
            bucket = self._buckets[-1 - self._taken]
            turns = TURNS.get(bucket)
            if turns is None:
                if not bucket.wait(self.share, now):
                    bucket.take(self.share, now)
                    self._taken += 1
                    continue
                turns = TURNS[bucket] = Turns(bucket, self._clock, now)
            self._turns = turns
            turns.join(self, now)
            return False
        return True

    def _wait(self, amount: int, now: float) -> float:
        # A bucket with a queue is not available to others.
        return max(inf if bucket in TURNS else bucket.wait(amount, now) for bucket in self._buckets)

    def _take(self, amount: int, now: float) -> None:
        for bucket in self._buckets:
            bucket.take(amount, now)


class ReadAllowance(Allowance):
    """Limits what a connection reads."""

    __slots__ = ()

    def _hold(self) -> None:
        self.transport.hold_reading()

    def _release(self) -> None:
        self.transport.release_reading()


class WriteAllowance(Allowance):
    """Limits what a connection writes."""

    __slots__ = ()

    def _hold(self) -> None:
        self.transport.hold_writing()

    def _release(self) -> None:
        self.transport.release_writing()


class Turns:
    """The queue of connections that wait for a bucket, with one delayed call. When one leaves, those behind it move up.

    The reactor does not poll waiting connections and misses their resets; so they are checked here.
    """

    __slots__ = ("_bucket", "_call", "_clock", "_due", "_look_at", "_to_look_at", "_waiting")

    def __init__(self, bucket: Bucket, clock: Any, now: float) -> None:
        self._bucket = bucket
        self._clock = clock
        # Not a dict: finding the first key is slow after many keys were removed from the front.
        self._waiting: OrderedDict[Allowance, None] = OrderedDict()
        self._due = 0.0
        self._look_at = now + _LOOK_EVERY
        self._to_look_at: list[Allowance] = []
        self._call: Any = None

    def join(self, last: Allowance, now: float) -> None:
        """Add a connection to the end of the queue."""
        self._waiting[last] = None
        if len(self._waiting) == 1:
            self._next(now)
            self._arm(now)

    def leave(self, one: Allowance, now: float) -> None:
        """Remove a connection from the queue."""
        first = next(iter(self._waiting)) is one
        del self._waiting[one]
        if first:
            self._bucket.take(-one.share, now)
            self._next(now)
            self._arm(now)

    def _next(self, now: float) -> None:
        """Take the share of the first connection in advance, so that others cannot take it meanwhile."""
        if self._waiting:
            share = next(iter(self._waiting)).share
            self._due = now + self._bucket.wait(share, now)
            self._bucket.take(share, now)
        else:
            del TURNS[self._bucket]

    def _arm(self, now: float) -> None:
        delay = max(0.0, min(self._due, self._look_at) - now)
        if not self._waiting:
            if self._call is not None:
                self._call.cancel()
                self._call = None
        elif self._call is None:
            self._call = self._clock.callLater(delay, self._turn)
        else:
            self._call.reset(delay)

    def _turn(self) -> None:
        self._call = None
        now = self._clock.seconds()
        while self._waiting and now >= self._due:
            first, _ = self._waiting.popitem(last=False)
            self._next(now)
            first.go_on(now)
        if self._waiting and now >= self._look_at:
            self._look(now)
        self._arm(now)

    def _look(self, now: float) -> None:
        if not self._to_look_at:
            self._to_look_at = list(self._waiting)
        some = self._to_look_at[-_LOOKS:]
        del self._to_look_at[-_LOOKS:]
        self._look_at = now if self._to_look_at else now + _LOOK_EVERY
        for one in reset(each for each in some if each in self._waiting):
            # The loss of another connection may have ended this one.
            if one in self._waiting:
                one.lose()


def reset(waiting: Iterable[Allowance], poll: Any = _poll) -> list[Allowance]:
    """Return the waiting connections that are dead: reset by the peer, or timed out.

    If both ends have finished sending, or a peer on this machine has closed, bytes may be left to read. That is not a
    reset; the end is found after reading them. Returns nothing where there is no poll(2).
    """
    if poll is None:
        return []
    found = poll()
    by_descriptor = {}
    for one in waiting:
        if one.transport.socket.family != getattr(socket, "AF_UNIX", None):
            by_descriptor[one.transport.fileno()] = one
            # poll(2) always reports errors.
            found.register(one.transport.fileno(), 0)
    return [by_descriptor[descriptor] for descriptor, event in found.poll(0) if event & select.POLLERR]


#: The queue of each bucket that connections wait for.
TURNS: dict[Bucket, Turns] = {}
