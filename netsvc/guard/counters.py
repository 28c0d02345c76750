"""Counts what each listener has accepted, refused and transferred, and records each connection that ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.logger import Logger

from netsvc.interfaces import Kind
from netsvc.plan.record import Record
from netsvc.plan.status import Counts, ListenerStatus, merge_listeners

_log = Logger(namespace="netsvc.guard")

#: Closed listeners whose counts are kept.
MOST_DEPARTED = 256

#: Takes the `Record` of each connection and session that has ended, or the `RequestRecord` of each request.
Recorder = Callable[[Any], None]

_make: Any = tuple.__new__

#: Numbers the connections and sessions of the process.
next_number = count(1).__next__


def split_label(label: str) -> tuple[str, str]:
    """Return the service and the protocol of a listener's label: `echo tcp`, or `web` for a plugin's streams."""
    service, _, protocol = label.partition(" ")
    return service, protocol or "stream"


class Book:
    """The tallies of a process. `record`, unless None, is called with the record of each connection that ends.

    If it `has_requests`, it takes those of requests instead, which are not known here.
    """

    def __init__(self) -> None:
        self.record: Recorder | None = None
        self.has_requests = False
        self.tallies: dict[Tally, None] = {}
        #: The counts of closed listeners, the latest first.
        self.departed: list[ListenerStatus] = []
        self._is_blamed = False

    def open(self, service: str, protocol: str, kind: Kind) -> Tally:
        """Open the tally of a listener."""
        tally = Tally(service, protocol, kind, self)
        self.tallies[tally] = None
        return tally

    def reopen(self, tally: Tally) -> None:
        """Continue a tally, if it was closed."""
        tally.closed = False
        self.tallies[tally] = None

    def blame(self) -> None:
        """Log an exception of `record`; only once, as it may fail for each connection."""
        if not self._is_blamed:
            self._is_blamed = True
            _log.failure("failed to write an access record")

    def prune(self) -> None:
        """Remove the tallies of closed listeners without connections, but keep their counts.

        Totals never decrease, nor do the counts of a listener that is opened again at the same address.
        """
        gone = [tally for tally in self.tallies if tally.closed and not tally.counts.open]
        for tally in gone:
            del self.tallies[tally]
        # `depart` resets the counts, as a tally may be reopened.
        counted = [tally.depart() for tally in gone if tally.counts != Counts()]
        if counted:
            self.departed = merge_listeners([*counted, *self.departed])[:MOST_DEPARTED]


class Tally:
    """The counts of one listener, as long as it is open or has connections.

    `place` is where it listens, once it does; `address` is the address that was configured.
    """

    __slots__ = ("_book", "address", "closed", "counts", "gate", "kind", "place", "protocol", "service", "sessions")

    def __init__(self, service: str, protocol: str, kind: Kind, book: Book | None = None) -> None:
        self.service = service
        self.protocol = protocol
        self.kind = kind
        self.place = ""
        self.address: Any = None
        #: Whether the listener is closed.
        self.closed = False
        self.counts = Counts()
        #: The gate that admits the next connections, and the `Sessions` of a datagram port.
        self.gate: Any = None
        self.sessions: Any = None
        self._book = book or Book()

    def depart(self) -> ListenerStatus:
        """Return the counts so far, to keep them when the listener is removed, and reset them."""
        return ListenerStatus(self.service, self.protocol, self.place, self.kind, "", counts=self.counts.take())

    def ended(
        self,
        peer: tuple[str, int | None],
        taken: tuple[int, int, int | None, int | None],
        seconds: float,
        cause: tuple[str, str | None],
        when: float | None = None,
    ) -> None:
        """Count and record the end of a connection or session.

        `taken` has the bytes in and out, then the datagrams in and out; `cause` is a reason and a limit. `when` is the
        end in seconds since the epoch, by default now.
        """
        counts, reason = self.counts, cause[0]
        bytes_in, bytes_out, datagrams_in, datagrams_out = taken
        counts.ended[reason] += 1
        counts.lasted(seconds)
        record = self._book.record
        if record is None or self._book.has_requests:
            return
        try:
            record(
                # One call less than the constructor of a named tuple.
                _make(
                    Record,
                    (
                        time.time() if when is None else when,
                        self.service,
                        self.protocol,
                        self.kind,
                        self.place,
                        *peer,
                        bytes_in,
                        bytes_out,
                        datagrams_in,
                        datagrams_out,
                        seconds,
                        *cause,
                    ),
                )
            )
        except Exception:  # noqa: BLE001  (the connection has ended all the same)
            self._book.blame()
