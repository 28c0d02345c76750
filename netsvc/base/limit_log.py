"""Logs messages that exceed a limit of their protocol, at most one line a second."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from netsvc.base.hosts import plain_host
from netsvc.base.text import shown_peer

#: Seconds between two lines: peers may exceed a limit as often as they like.
INTERVAL = 1.0


class LimitLog:
    """Logs that a connection was closed because of what its peer sent; at most one line a second, with their number."""

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._logged: float | None = None
        self._more = 0

    def note(self, address: Any, what: str, cure: str = "") -> None:
        """Log one connection, or count it if another was logged less than a second ago."""
        now = self._clock.seconds()
        # The clock may be set back.
        if self._logged is not None and 0 <= now - self._logged < INTERVAL:
            self._more += 1
            return
        more = f" ({self._more} more before it)" if self._more else ""
        self._logged, self._more = now, 0
        peer = shown_peer(plain_host(getattr(address, "host", "")), getattr(address, "port", None))
        line = "closed {peer}{more}: it sent {what}{cure}"
        self._log.warn(line, peer=peer, more=more, what=what, cure=f"; {cure}" if cure else "")
