"""Gives clients time to close after we have."""

from __future__ import annotations

from typing import Any

__all__ = ["LINGER", "Farewells"]

#: Seconds that a client has to close after we have. It is below the 4 s that a drain gives connections.
LINGER = 2.0


class Farewells:
    """The connections that a client should close; those that it leaves open are closed after `LINGER`.

    One timer serves all, and there is none while there are no connections.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        #: When each is due, in the order of these times.
        self._due: dict[Any, float] = {}
        self._timer: Any = None

    def add(self, transport: Any) -> None:
        """Close a connection after `LINGER` seconds, unless it is removed by then."""
        self._due[transport] = self._clock.seconds() + LINGER
        if self._timer is None:
            self._timer = self._clock.callLater(LINGER, self._close)

    def remove(self, transport: Any) -> None:
        """Forget a connection that is closed."""
        if self._due.pop(transport, None) is not None and not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for transport in [transport for transport, due in self._due.items() if due <= now]:
            del self._due[transport]
            transport.loseConnection()
        if self._due:
            self._timer = self._clock.callLater(next(iter(self._due.values())) - now, self._close)
