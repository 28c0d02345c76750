"""Access records on their way to the log: gathered, and made into lines and written together a little later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import RLock
from typing import Any

from twisted.logger import Logger

from netsvc.log.fields import ACCESS_SOURCE
from netsvc.log.text import access_text
from netsvc.records import Record

__all__ = ["LONGEST_WAIT", "LONGEST_WRITE", "MOST_GATHERED", "AccessLog", "log_record"]

#: Seconds that a record waits for others at most.
LONGEST_WAIT = 0.2
#: Records that wait at most: half a millisecond's work.
MOST_GATHERED = 256
#: Characters that are written at once.
LONGEST_WRITE = 1 << 16

_log = Logger(namespace=ACCESS_SOURCE)


class AccessLog:
    """Gathers records, and gives the lines that `line` makes of them to `write`, in order, none twice.

    They wait for `LONGEST_WAIT` at most, or until there are `MOST_GATHERED`: to make lines of many is far cheaper than
    to make one for each while everything else is done. What is written at once has `most` characters at most, unless it
    is a single line. Who writes other lines to the same place calls `flush` first, from whatever thread; `record` is
    for the thread of `clock`, a reactor.
    """

    def __init__(
        self,
        line: Callable[[Record], str],
        write: Callable[[str], object],
        clock: Any,
        most: int = LONGEST_WRITE,
    ) -> None:
        self._line = line
        self._write = write
        self._clock = clock
        self._most = most
        self._records: list[Record] = []
        self._waiting: Any = None
        # Whoever handles a signal may log, in the middle of a flush too.
        self._lock = RLock()

    def record(self, record: Record) -> None:
        """Take the record of a connection or session that has ended."""
        records = self._records
        # One step, whatever another thread does.
        records.append(record)
        if self._waiting is None:
            self._waiting = self._clock.callLater(LONGEST_WAIT, self._waited)
        elif len(records) >= MOST_GATHERED:
            self.flush()

    def _waited(self) -> None:
        self._waiting = None
        self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self._records:
            return
        with self._lock:
            # More may be appended meanwhile.
            taken = self._records[:]
            del self._records[: len(taken)]
            for text in _joined(map(self._line, taken), self._most):
                self._write(text)

    def close(self) -> None:
        """Write what has been gathered, and wait for nothing any more."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self.flush()


def _joined(lines: Iterable[str], most: int) -> Iterator[str]:
    """Join lines to texts of `most` characters at most."""
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


def log_record(record: Record) -> None:
    """Log a record as an event, with its fields, for a log that is somebody else's."""
    _log.info("{line}", line=access_text(record), **record._asdict())
