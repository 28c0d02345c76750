"""Keeps a flood of connections, or of datagrams with forged addresses, from becoming a flood of access records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from netsvc.log.fields import ACCESS_SOURCE
from netsvc.records import Record

__all__ = ["AT_ONCE", "INTERVAL", "MOST_RECORDS", "Flood"]

#: Records of a process in a second, for as long as that lasts. Six times what 100,000 connections a minute make; and
#: what the log files that are kept have of a quieter time is pushed out of them in minutes, not in seconds.
MOST_RECORDS = 10_000
#: Records at once, after seconds with fewer: of all connections and sessions that there may be by default, as the last
#: drain ends them.
AT_ONCE = 40_000
#: Seconds from one time that there is room for more to the next.
INTERVAL = 1.0

_log = Logger(namespace=ACCESS_SOURCE)


class Flood:
    """Gives records to `record`: `most` in each `INTERVAL`, and what was not used of that later, up to `at_once`.

    The others are counted, and a line in the log says how many they were, as soon as the interval is over.
    """

    def __init__(
        self, record: Callable[[Record], object], clock: Any, most: int = MOST_RECORDS, at_once: int = AT_ONCE
    ) -> None:
        self._record = record
        self._clock = clock
        self._most = most
        self._at_once = at_once
        #: How many more there may be now, and how many there were too many.
        self._room = at_once
        self._left_out = 0
        self._interval: Any = None

    def record(self, record: Record) -> None:
        """Take a record."""
        if self._interval is None:
            self._interval = self._clock.callLater(INTERVAL, self._over)
        if self._room:
            self._room -= 1
            self._record(record)
        else:
            self._left_out += 1

    def _over(self) -> None:
        self._room = min(self._at_once, self._room + self._most)
        # Nobody waits for anything where there is room for all.
        is_full = self._room == self._at_once
        self._interval = None if is_full else self._clock.callLater(INTERVAL, self._over)
        self._say()

    def _say(self) -> None:
        left_out, self._left_out = self._left_out, 0
        if left_out:
            _log.warn(
                "{left_out} more connections and sessions ended than are recorded in {seconds} s; "
                "they are in the counts only",
                left_out=left_out,
                seconds=f"{INTERVAL:g}",
            )

    def close(self) -> None:
        """Say what is to be said, and wait for nothing any more."""
        if self._interval is not None:
            self._interval.cancel()
            self._interval = None
            self._say()
