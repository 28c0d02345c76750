"""Those who wait until a bucket has bytes for them: they take turns, and are looked after meanwhile."""

from __future__ import annotations

import select
import socket
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from netsvc.guard.buckets import Bucket

if TYPE_CHECKING:
    from netsvc.guard.allowance import Allowance

__all__ = ["TURNS", "Turns", "reset"]

#: Seconds between looks for resets among those that wait for a bucket, and how many are looked at in one turn of the
#: event loop: each may be lost then.
_LOOK_EVERY = 0.25
_LOOKS = 100

_poll: Any = getattr(select, "poll", None)


class Turns:
    """Those who wait for a bucket, in order, with one delayed call for all. When one leaves, all after it move up.

    They are out of the reactor, which so does not see when a peer resets one of their connections: they are looked at.
    """

    __slots__ = ("_bucket", "_call", "_clock", "_due", "_look_at", "_to_look_at", "_waiting")

    def __init__(self, bucket: Bucket, clock: Any, now: float) -> None:
        self._bucket = bucket
        self._clock = clock
        # Not a dict: to find the first in one from which many were taken takes long.
        self._waiting: OrderedDict[Allowance, None] = OrderedDict()
        self._due = 0.0
        self._look_at = now + _LOOK_EVERY
        self._to_look_at: list[Allowance] = []
        self._call: Any = None

    def join(self, last: Allowance, now: float) -> None:
        """Wait after all others."""
        self._waiting[last] = None
        if len(self._waiting) == 1:
            self._next(now)
            self._arm(now)

    def leave(self, one: Allowance, now: float) -> None:
        """Wait no more."""
        first = next(iter(self._waiting)) is one
        del self._waiting[one]
        if first:
            self._bucket.take(-one.share, now)
            self._next(now)
            self._arm(now)

    def _next(self, now: float) -> None:
        """Take for the first before it is there, so that others who take as they come do not keep it waiting."""
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
            # What the loss of another did may have ended it.
            if one in self._waiting:
                one.lose()


def reset(waiting: Iterable[Allowance], poll: Any = _poll) -> list[Allowance]:
    """Return those whose connections are no more: the peer has reset them, or they have timed out.

    Where both ends have said that they have sent all, or a peer on this machine is gone, there may be bytes left to be
    read; that is no reset, and found when they have been read. Where there is no poll(2), none is known.
    """
    if poll is None:
        return []
    found = poll()
    by_descriptor = {}
    for one in waiting:
        if one.transport.socket.family != getattr(socket, "AF_UNIX", None):
            by_descriptor[one.transport.fileno()] = one
            # Errors are always told.
            found.register(one.transport.fileno(), 0)
    return [by_descriptor[descriptor] for descriptor, event in found.poll(0) if event & select.POLLERR]


#: By bucket; only as long as somebody waits.
TURNS: dict[Bucket, Turns] = {}
