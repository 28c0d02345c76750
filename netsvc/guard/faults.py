"""Logs exceptions of protocols with their listener and peer. An exception ends only its own connection."""

from __future__ import annotations

import traceback
from types import FrameType
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import describe
from netsvc.base.text import escape, shown_peer

#: Seconds between two log lines about the same fault: a peer may trigger it as often as it likes.
INTERVAL = 1.0
#: Faults that are distinguished, by listener and position in the code.
MOST_FAULTS = 1024
#: Characters of received data in a log line, and of each variable of the protocol; and the number of variables.
MOST_SHOWN, _MOST_OF_VARIABLE, _MOST_VARIABLES = 1000, 200, 3

#: What asyncio says without its event loop: as a library is called, and as a Deferred's coroutine awaits a future.
_NO_LOOP = ("no running event loop", "await wasn't used with future")
#: What the network causes.
_NO_FAULTS = (ConnectionClosed, SSL.Error)

_log = Logger(namespace="netsvc.guard")


def is_fault(reason: Any) -> bool:
    """Return whether a connection was lost because its protocol raised an exception."""
    # `Failure.check` would look up class names for every connection that ends.
    kind: Any = reason.type if isinstance(reason, Failure) else ConnectionClosed
    return not issubclass(kind, _NO_FAULTS)


class Faults:
    """Logs a fault with its traceback; a repeated fault of a listener once a second, with the number suppressed.

    With `debug`, the line has the data that the protocol received; see `show_received`. `clock` may be the reactor that
    has caught the fault (`NetsvcReactor.fault`); then the reactor does not log it.
    """

    def __init__(self, clock: Any) -> None:
        self.debug = False
        self._clock = clock
        #: When each fault was logged last, and how often it has occurred since.
        self._logged: dict[object, tuple[float, int]] = {}

    def note(self, label: str, peer: str, port: int | None, failure: Failure, what: str = "failed") -> None:
        """Log a fault, or count it if it was logged recently. `peer` is a host with `port`, or a user with None."""
        if getattr(self._clock, "fault", None) is failure.value:
            self._clock.fault = None
        now = self._clock.seconds()
        fault = label, failure.type, failure.frames[-1][1:3] if failure.frames else None
        logged = self._logged.pop(fault, None)
        # The clock may be set back.
        if logged is not None and 0 <= now - logged[0] < INTERVAL:
            self._logged[fault] = logged[0], logged[1] + 1
            return
        self._logged[fault] = now, 0
        if len(self._logged) > MOST_FAULTS:
            # The fault that has not occurred for longest.
            del self._logged[next(iter(self._logged))]
        more = f" ({logged[1]} more before it)" if logged is not None and logged[1] else ""
        place = shown_peer(peer, port)
        if isinstance(failure.value, RuntimeError) and str(failure.value) in _NO_LOOP:
            line = "{label} {place} {what}{more}: {error}; asyncio works with its own reactor: add --reactor asyncio"
            _log.error(line, label=label, place=place, what=what, more=more, error=describe(failure.value))
            return
        more += show_received(failure.value) if self.debug and failure.value else ""
        _log.failure("{label} {place} {what}{more}", failure, label=label, place=place, what=what, more=more)


def show_received(error: BaseException) -> str:
    """Return what a protocol received when it raised an exception, to append to a log line; empty if that is unknown.

    It is found in the frames of the traceback: the data that Twisted or netsvc passed to the protocol, and the
    variables with bytes of the protocol's innermost function. Escaped, and at most `MOST_SHOWN` characters of the data.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = next((index for index, frame in enumerate(frames) if not _is_below(frame)), len(frames))
    received = [data for frame in frames[:own] if isinstance(data := frame.f_locals.get("data"), bytes)]
    parts = [f"received {len(received[-1])} bytes: {escape(received[-1], MOST_SHOWN)}"] if received else []
    protocols = [frame for frame in frames if not _is_below(frame)]
    variables = protocols[-1].f_locals if protocols else {}
    texts = [
        f"{name}={escape(bytes(value[:_MOST_OF_VARIABLE]), _MOST_OF_VARIABLE)}{'…' * (len(value) > _MOST_OF_VARIABLE)}"
        for name, value in variables.items()
        if isinstance(value, bytes | bytearray) and value not in received[-1:]
    ]
    return "".join(f"; {part}" for part in [*parts, *texts[:_MOST_VARIABLES]])


def _is_below(frame: FrameType) -> bool:
    """Return whether a frame is one of Twisted or of netsvc, except for its services."""
    package, _, rest = frame.f_globals.get("__name__", "").partition(".")
    return package == "twisted" or (package == "netsvc" and not rest.startswith("services."))
