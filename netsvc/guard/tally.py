"""What is known of one listener: where it is, what has come there, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.logger import Logger

from netsvc.interfaces import Kind
from netsvc.records import Record
from netsvc.status import Counts, ListenerStatus, merge_listeners

__all__ = ["MOST_DEPARTED", "Book", "Recorder", "Tally", "next_number", "split_label"]

_log = Logger(namespace="netsvc.guard")

#: Listeners that are gone, and whose counts are kept.
MOST_DEPARTED = 256

#: Takes the record of each connection and session that has ended.
Recorder = Callable[[Record], None]

#: Numbers the connections and sessions of the process.
next_number = count(1).__next__


def split_label(label: str) -> tuple[str, str]:
    """Return the service and the protocol of a listener's label: `echo tcp`, or `web` for a plugin's streams."""
    service, _, protocol = label.partition(" ")
    return service, protocol or "stream"


class Book:
    """The accounts of a process. `record`, unless it is None, is called with the record of each that ends."""

    def __init__(self) -> None:
        self.record: Recorder | None = None
        self.tallies: dict[Tally, None] = {}
        #: What listeners have counted that are gone, those that have gone last first.
        self.departed: list[ListenerStatus] = []
        self._is_blamed = False

    def open(self, service: str, protocol: str, kind: Kind) -> Tally:
        """Open the account of a listener."""
        tally = Tally(service, protocol, kind, self)
        self.tallies[tally] = None
        return tally

    def reopen(self, tally: Tally) -> None:
        """Go on with an account, if it was closed."""
        tally.closed = False
        self.tallies[tally] = None

    def blame(self) -> None:
        """Log what `record` has raised; once, or it would be done for each that ends."""
        if not self._is_blamed:
            self._is_blamed = True
            _log.failure("an access record could not be taken")

    def prune(self) -> None:
        """Forget those of listeners that are closed, once nobody is there any more; but not what they have counted:
        the sums of all shall not be less than before, nor the counts of one that is opened again there.
        """
        gone = [tally for tally in self.tallies if tally.closed and not tally.counts.open]
        for tally in gone:
            del self.tallies[tally]
        # Begun anew, for one of them may be reopened.
        counted = [tally.depart() for tally in gone if tally.counts != Counts()]
        if counted:
            self.departed = merge_listeners([*counted, *self.departed])[:MOST_DEPARTED]


class Tally:
    """The account of one listener, for as long as it is open or has connections.

    `place` is where it listens, once it does, and `address` how that was asked for.
    """

    __slots__ = ("_book", "address", "closed", "counts", "gate", "kind", "place", "protocol", "service", "sessions")

    def __init__(self, service: str, protocol: str, kind: Kind, book: Book | None = None) -> None:
        self.service = service
        self.protocol = protocol
        self.kind = kind
        self.place = ""
        self.address: Any = None
        #: Whether nothing comes any more.
        self.closed = False
        self.counts = Counts()
        #: The gate by which the next ones come, and of a datagram port its `Sessions`.
        self.gate: Any = None
        self.sessions: Any = None
        self._book = book or Book()

    def depart(self) -> ListenerStatus:
        """Return what has been counted so far, for when the listener is no more, and begin anew."""
        return ListenerStatus(self.service, self.protocol, self.place, self.kind, "", counts=self.counts.take())

    def ended(
        self,
        peer: tuple[str, int | None],
        taken: tuple[int, int, int | None, int | None],
        seconds: float,
        cause: tuple[str, str | None],
        when: float | None = None,
    ) -> None:
        """Count one that has ended: why (a reason and a limit), and how many bytes and datagrams came and went.

        `when` is in seconds since the epoch, if it is not now.
        """
        counts, reason = self.counts, cause[0]
        bytes_in, bytes_out, datagrams_in, datagrams_out = taken
        counts.ended[reason] += 1
        counts.lasted(seconds)
        record = self._book.record
        if record is None:
            return
        try:
            record(
                Record(
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
                )
            )
        except Exception:  # noqa: BLE001  (whoever has ended has to be let go all the same)
            self._book.blame()
