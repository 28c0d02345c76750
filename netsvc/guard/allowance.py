"""What may go in one direction of one connection, and what becomes of its transport while nothing may."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.python import log
from twisted.python.failure import Failure

from netsvc.guard.buckets import Bucket
from netsvc.guard.turns import TURNS, Turns

__all__ = ["MOST", "Allowance", "Flushing", "Reading", "Writing"]

#: Bytes that go in one system call, at most; a quarter of a burst where that is less.
MOST = 64 * 1024
#: Bytes that a connection takes from its buckets before it needs them, at least and at most: so many that they last for
#: some seconds, for to ask is what costs. A sixteenth of a burst where that is less: what is quiet holds little back.
_LEAST_PORTION = 512
_LARGEST_PORTION = 1024 * 1024
_SHORT, _LONG = 1.0, 4.0
#: Bytes for one turn, where there are not enough for all who want some; a sixteenth of a burst where that is less.
_SHARE = 16 * 1024


class Allowance(ABC):
    """What may go in one direction of one connection, and the absence of its transport while nothing may."""

    __slots__ = (
        "_buckets",
        "_clock",
        "_granted",
        "_largest",
        "_least",
        "_most",
        "_portion",
        "_since",
        "_taken",
        "_turns",
        "share",
        "transport",
    )

    def __init__(self, transport: Any, clock: Any, buckets: Sequence[Bucket]) -> None:
        self.transport = transport
        self._clock = clock
        self._buckets = buckets
        burst = min(bucket.burst for bucket in buckets)
        self._most = max(1, min(MOST, int(burst / 4)))
        self._largest = max(1, min(_LARGEST_PORTION, int(burst / 16)))
        #: Bytes for one turn.
        self.share = min(_SHARE, self._largest)
        self._portion = self._least = min(_LEAST_PORTION, self._largest)
        # How many buckets, from the last, the share has been taken from; what was waited for, and not handed out.
        self._taken = self._granted = 0
        self._since = 0.0
        # Among whom it waits.
        self._turns: Turns | None = None

    def ask(self) -> tuple[int, int]:
        """Return how many bytes may go, and how many in one system call.

        Raises `BlockingIOError` if there are none; the transport is called again when there are.
        """
        granted, self._granted = self._granted, 0
        if granted:
            # Not more than that at once: others wait as well.
            return granted, granted
        if self._turns is None:
            now = self._clock.seconds()
            left, most = self._grant(now)
            if left:
                return left, most
            self._gather(now)
        self.hold()
        raise BlockingIOError(errno.EAGAIN, "over the limit of bytes a second")

    def spend(self, left: int) -> tuple[int, int]:
        """Settle what went; `left` is what was not used, or is negative. Return what `ask` does; or 0: to be asked for.

        So what was used beyond what was granted is known to others who share a bucket at once.
        """
        now = self._clock.seconds()
        if left:
            self._take(-left, now)
        lasted, self._since = now - self._since, now
        if lasted < _SHORT:
            self._portion = min(2 * self._portion, self._largest)
        elif lasted > _LONG:
            self._portion = max(int(self._portion * _LONG / lasted), self._least)
        return self._grant(now)

    def _grant(self, now: float) -> tuple[int, int]:
        if not self._wait(max(self._portion, self._most), now):
            # Far from the limit: one call may well use more than that.
            self._take(self._portion, now)
            return self._portion, self._most
        if not self._wait(self.share, now):
            self._take(self.share, now)
            return self.share, self.share
        return 0, 0

    def end(self, left: int) -> None:
        """Give back what was not used, and wait no more: the connection is closed."""
        now = self._clock.seconds()
        if self._turns is not None:
            self._turns.leave(self, now)
            self._turns = None
            self.release()
            for bucket in self._buckets[len(self._buckets) - self._taken :]:
                bucket.take(-self.share, now)
        self._take(-left - self._granted, now)

    def go_on(self, now: float) -> None:
        """Have the share of the bucket that was waited for, and be called again if that was the last."""
        self._turns = None
        self._taken += 1
        if self._gather(now):
            self._taken, self._granted = 0, self.share
            if self.release():
                self.resume()

    def lose(self) -> None:
        """Lose the connection, as the reactor does."""
        transport = self.transport
        transport.reactor.removeReader(transport)
        transport.reactor.removeWriter(transport)
        log.callWithLogger(transport, transport.connectionLost, Failure(CONNECTION_LOST))

    @abstractmethod
    def hold(self) -> None:
        """Take the transport out of the reactor. It may be out already."""

    @abstractmethod
    def release(self) -> bool:
        """Let the transport do again as it wants; return whether it wants to go on."""

    @abstractmethod
    def resume(self) -> None:
        """Put the transport back into the reactor."""

    def _gather(self, now: float) -> bool:
        """Take the share from one bucket after the other; return whether from all, or wait among others for one.

        The connection's own bucket is the last, and the first to be waited for: nobody waits behind it.
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
        # Nobody overtakes those who wait.
        return max(inf if bucket in TURNS else bucket.wait(amount, now) for bucket in self._buckets)

    def _take(self, amount: int, now: float) -> None:
        for bucket in self._buckets:
            bucket.take(amount, now)


class _Absence(Allowance):
    """Remembers whether a transport would be in the reactor: whoever starts or stops it meanwhile is told to us."""

    __slots__ = ("_wanted",)

    start: str
    stop: str

    def hold(self) -> None:
        """See `Allowance`."""
        self._remove()
        if self.start not in vars(self.transport):
            self._wanted = True
            setattr(self.transport, self.start, self._started)
            setattr(self.transport, self.stop, self._stopped)

    def release(self) -> bool:
        """See `Allowance`."""
        delattr(self.transport, self.start)
        delattr(self.transport, self.stop)
        return self._wanted

    def resume(self) -> None:
        """See `Allowance`."""
        getattr(self.transport, self.start)()

    @abstractmethod
    def _remove(self) -> None:
        """Take the transport out of the reactor."""

    def _started(self) -> None:
        self._wanted = True

    def _stopped(self) -> None:
        self._wanted = False


class Reading(_Absence):
    """What may be read."""

    __slots__ = ()
    start, stop = "startReading", "stopReading"

    def _remove(self) -> None:
        self.transport.reactor.removeReader(self.transport)


class Writing(_Absence):
    """What may be written."""

    __slots__ = ()
    start, stop = "startWriting", "stopWriting"

    def _remove(self) -> None:
        self.transport.reactor.removeWriter(self.transport)


class Flushing(Allowance):
    """What may be written by a transport of `netsvc.transports`, which knows itself whether it waits to write."""

    __slots__ = ()

    def hold(self) -> None:
        """See `Allowance`."""
        self.transport.flushing = 0
        # As it is while the kernel has no room, but that the reactor does not ask the kernel.
        self.transport.waiting = True
        self.transport.reactor.removeWriter(self.transport)

    def release(self) -> bool:
        """See `Allowance`."""
        return bool(self.transport.waiting)

    def resume(self) -> None:
        """See `Allowance`."""
        self.transport.reactor.addWriter(self.transport)
