"""How many bytes a second: what one listener's limits make of a connection's sockets and buckets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from netsvc.guard.buckets import Bucket
from netsvc.guard.gate import Gate
from netsvc.guard.meter import Source, meter
from netsvc.guard.pace import pace
from netsvc.limits import in_force

__all__ = ["Bandwidth", "Rate", "shared_rates"]

#: A limit's name, what is left of it, and whether it only reports.
Rate = tuple[str, Bucket, bool]


def shared_rates(gate: Gate, name: str) -> list[Rate]:
    """List the buckets that everything at a level takes from, for `readall` or `writeall`."""
    found = []
    for level in gate.levels:
        bucket = level.bucket(name)
        if bucket is not None:
            found.append((name, bucket, level.reports(name)))
    return found


class Bandwidth:
    """Keeps the stream connections of one listener to `read`, `write`, `readall` and `writeall`.

    `limited` says whether there is anything to keep: nothing is done to a connection otherwise.
    """

    def __init__(self, gate: Gate, clock: Any) -> None:
        levels = [level.limits for level in gate.levels]
        self._clock = clock
        self._gate = gate
        self._write, self._write_reported = in_force(levels, "write")
        self._reads = self._source("read", *in_force(levels, "read"), shared_rates(gate, "readall"))
        shared = shared_rates(gate, "writeall")
        self._writes = self._source("write", self._write, self._write_reported, shared)
        #: Where the kernel sees to those of the connection itself.
        self._writes_paced = self._source("write", None, False, shared)
        self.limited = bool(self._reads or self._writes)

    def limit(self, transport: Any, peer: str) -> None:
        """Limit a new connection; `transport` is what its protocol was given."""
        writes: Source | None = self._writes
        if self._write and not self._write_reported and pace(transport, self._write):
            writes = self._writes_paced
        meter(transport, self._clock, self._reads, writes, peer)

    def _source(self, name: str, rate: int | None, reported: bool, shared: Sequence[Rate]) -> Source | None:
        """Return what makes the buckets of a connection; None if there is no limit."""

        def buckets(peer: str) -> Sequence[Bucket]:
            own = ((name, Bucket(rate, rate, self._clock.seconds()), reported),) if rate else ()
            return tuple(self._bucket(each, peer) for each in (*shared, *own))

        return buckets if rate or shared else None

    def _bucket(self, rate: Rate, peer: str) -> Bucket:
        name, bucket, reported = rate
        if not reported:
            return bucket
        return _Reporting(bucket, partial(self._gate.note, name, peer, dry=True))


class _Reporting(Bucket):
    """Never empty: tells when the bucket that it stands for is."""

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
        # No further into debt than a burst, or it would report for hours.
        self._bucket.take(min(amount, self._bucket.left(now) + self.burst), now)
