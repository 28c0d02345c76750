"""Access records on their way to the log: limited in number, then collected and written together a moment later.

So are the lines of requests (`netsvc.base.requests`), which are events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import RLock
from typing import Any, Generic, TypeVar

from twisted.logger import Logger

from netsvc.log.formats import ACCESS_SOURCE, access_text
from netsvc.plan.record import AnyRecord, Record

#: Access records of a process a second. Six times what 100,000 connections a minute make; and few enough that a flood
#: takes minutes, not seconds, to push older records out of the log files that are kept.
MOST_RECORDS = 10_000
#: Access records at once, after quieter seconds: one for each connection and session that the default limits allow, as
#: a drain ends them together.
AT_ONCE = 40_000
#: Seconds between two refills.
INTERVAL = 1.0
#: Seconds that a record waits for others, at most.
LONGEST_WAIT = 0.2
#: Records that wait, at most: half a millisecond's work.
MOST_GATHERED = 256
#: Characters that are written at once.
LONGEST_WRITE = 1 << 16

_log = Logger(namespace=ACCESS_SOURCE)


class RecordLimit:
    """Keeps a flood of connections, or of datagrams with forged addresses, from flooding the log.

    Passes `most` records to `record` in each `INTERVAL`; what is not used of that is kept, up to `at_once`. Others are
    dropped, and their number logged at the end of the interval.
    """

    def __init__(
        self, record: Callable[[Any], object], clock: Any, most: int = MOST_RECORDS, at_once: int = AT_ONCE
    ) -> None:
        self._record = record
        self._clock = clock
        self._most = most
        self._at_once = at_once
        #: How many records may still pass, and how many were dropped.
        self._room = at_once
        self._dropped = 0
        self._interval: Any = None

    def record(self, record: AnyRecord) -> None:
        """Pass a record, or drop it."""
        if self._interval is None:
            self._interval = self._clock.callLater(INTERVAL, self._refill)
        if self._room:
            self._room -= 1
            self._record(record)
        else:
            self._dropped += 1

    def _refill(self) -> None:
        self._room = min(self._at_once, self._room + self._most)
        is_full = self._room == self._at_once
        self._interval = None if is_full else self._clock.callLater(INTERVAL, self._refill)
        self._report()

    def _report(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            _log.warn(
                "{dropped} connections and sessions that ended in the last {seconds} s have no access record; "
                "they are in the counters only",
                dropped=dropped,
                seconds=f"{INTERVAL:g}",
            )

    def close(self) -> None:
        """Log the number of dropped records, and cancel the timer."""
        if self._interval is not None:
            self._interval.cancel()
            self._interval = None
            self._report()


#: What an `AccessLog` collects.
Entry = TypeVar("Entry")


class AccessLog(Generic[Entry]):
    """Collects records, formats them with `line`, and passes the lines to `write`, in order.

    Records wait for `LONGEST_WAIT` seconds, or until there are `MOST_GATHERED`: formatting many at a time is far
    cheaper. A write has at most `most` characters, or is a single line. Call `record` in the thread of `clock`, a
    reactor; before writing other lines to the same output, call `flush`, in any thread.
    """

    def __init__(
        self,
        line: Callable[[Entry], str],
        write: Callable[[str], object],
        clock: Any,
        most: int = LONGEST_WRITE,
    ) -> None:
        self._line = line
        self._write = write
        self._clock = clock
        self._most = most
        self._records: list[Entry] = []
        self._waiting: Any = None
        # Reentrant: a signal handler may log in the middle of a flush.
        self._lock = RLock()

    def record(self, record: Entry) -> None:
        """Add the record of a connection, session or request that has ended."""
        records = self._records
        # Atomic, whatever another thread does.
        records.append(record)
        if self._waiting is None:
            self._waiting = self._clock.callLater(LONGEST_WAIT, self._waited)
        elif len(records) >= MOST_GATHERED:
            self.flush()

    def _waited(self) -> None:
        self._waiting = None
        self.flush()

    def flush(self) -> None:
        """Write the collected records."""
        if not self._records:
            return
        with self._lock:
            # More may be added meanwhile.
            taken = self._records[:]
            del self._records[: len(taken)]
            for text in _joined(map(self._line, taken), self._most):
                self._write(text)

    def close(self) -> None:
        """Write the collected records, and cancel the timer."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self.flush()


def _joined(lines: Iterable[str], most: int) -> Iterator[str]:
    """Join lines to texts of at most `most` characters."""
    joined: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > most and joined:
            yield "".join(joined)
            joined.clear()
            size = len(line)
        joined.append(line)
    if joined:
        yield "".join(joined)


def log_record(record: AnyRecord) -> None:
    """Log a record of a connection as an event with its fields, for logs that are not ours."""
    assert isinstance(record, Record)
    _log.info("{line}", line=access_text(record), **record._asdict())
