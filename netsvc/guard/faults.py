"""Says what protocols have raised: which listener's, and at whom. Nothing but their own connections ends by it."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.text import escape, host_port

__all__ = ["INTERVAL", "MOST_FAULTS", "Faults", "is_fault"]

#: Seconds from one line about a fault to the next: whoever finds out what a protocol fails at can do it for ever.
INTERVAL = 1.0
#: Faults that are told apart: by listener, and where in the code each is.
MOST_FAULTS = 1024

_log = Logger(namespace="netsvc.guard")


def is_fault(reason: Any) -> bool:
    """Tell whether this is why a connection was lost: its protocol has raised something."""
    # `Failure.check` would write down the name of each, for every connection that ends.
    kind: Any = reason.type if isinstance(reason, Failure) else ConnectionClosed
    return not issubclass(kind, ConnectionClosed | SSL.Error)


class Faults:
    """Logs a fault with its traceback, and the same fault of a listener once a second, with how many there were.

    `clock` may be the reactor that has caught one (`netsvc.reactor.NetsvcReactor.fault`): then it need not log it.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        #: When each was logged last, and how many there were since.
        self._told: dict[object, tuple[float, int]] = {}

    def note(self, label: str, peer: str, port: int | None, failure: Failure, what: str = "failed") -> None:
        """Take note of one. `peer` and `port` are where the peer is, or who it is, and None."""
        if getattr(self._clock, "fault", None) is failure.value:
            self._clock.fault = None
        now = self._clock.seconds()
        fault = label, failure.type, failure.frames[-1][1:3] if failure.frames else None
        told = self._told.pop(fault, None)
        # The clock may be set back.
        if told is not None and 0 <= now - told[0] < INTERVAL:
            self._told[fault] = told[0], told[1] + 1
            return
        self._told[fault] = now, 0
        if len(self._told) > MOST_FAULTS:
            # That of which nothing was heard for longest.
            del self._told[next(iter(self._told))]
        more = f" ({told[1]} more before it)" if told is not None and told[1] else ""
        place = _place(peer, port)
        _log.failure("{label} {place} {what}{more}", failure, label=label, place=place, what=what, more=more)


def _place(peer: str, port: int | None) -> str:
    shown = escape(peer) or "somebody"
    return shown if port is None else host_port(shown, port)
