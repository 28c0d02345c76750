"""Finds out whether clients over HTTP have got what they were sent.

The system takes megabytes that a client may never read, and a connection of HTTP does not end with the answer. So an
answer has been sent when the client's system has acknowledged it, and all that was written before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from netsvc.http.connection import HTTPConnection, unacknowledged

SENT = "sent"
#: All of it was given to the system, and the connection ended before the client is known to have it.
NOT_ACKNOWLEDGED = "not acknowledged"

#: Seconds between two looks.
INTERVAL = 0.5
#: Answers of one connection that wait at once.
MOST_ANSWERS = 100


class Receipts:
    """Answers that were given to the system and are not acknowledged yet. One timer serves all."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        #: What is called with the result of each answer, in their order.
        self.waiting: dict[HTTPConnection, list[Callable[[str], None]]] = {}
        self._timer: Any = None

    def expect(self, connection: HTTPConnection, ended: Callable[[str], None]) -> None:
        """Call a function with `SENT` when all that was written is acknowledged, or else `NOT_ACKNOWLEDGED` at the end.

        Where that cannot be known, what was written counts as sent.
        """
        if not unacknowledged(connection.transport):
            ended(SENT)
            return
        waiting = self.waiting.setdefault(connection, [])
        waiting.append(ended)
        connection.closing = self._closing
        if len(waiting) > MOST_ANSWERS:
            waiting.pop(0)(NOT_ACKNOWLEDGED)
        if self._timer is None:
            self._timer = self._clock.callLater(INTERVAL, self._look_at_all)

    def look(self, connection: HTTPConnection) -> None:
        """End the answers of a connection if everything is acknowledged."""
        if connection in self.waiting and unacknowledged(connection.transport) == 0:
            self._end(connection, SENT)

    def _look_at_all(self) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._look_at_all)
        for connection in list(self.waiting):
            self.look(connection)

    def _closing(self, connection: HTTPConnection, reason: Failure | None) -> None:
        if reason is None:
            self.look(connection)
        else:
            # The other end of a TLS connection has ended it as well, after all that came before.
            is_ended = getattr(connection.transport, "TLS", False) and reason.check(ConnectionDone)
            self._end(connection, SENT if is_ended else NOT_ACKNOWLEDGED)

    def _end(self, connection: HTTPConnection, result: str) -> None:
        for ended in self.waiting.pop(connection, ()):
            ended(result)
        connection.closing = None
        if not self.waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
