"""Builds what a drain waits for: services, and connections that end when they are told, or do not."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import StringTransportWithDisconnection

from netsvc.guard.admission import Gate


class Transport(StringTransportWithDisconnection):
    """A connection that ends when it is closed, when it is aborted, or not at all."""

    ends_on = "close"
    aborted = False

    def loseWriteConnection(self) -> None:
        if self.ends_on == "close":
            self.loseConnection()

    def abortConnection(self) -> None:
        self.aborted = True
        if self.ends_on == "abort":
            self.loseConnection()


class Instance:
    """A running service: what it is told to do when it drains."""

    def __init__(self, drain: Any = None) -> None:
        self.key = "service"
        self.gates: set[Gate] = set()
        self.seconds: float | None = None
        self.asked = 0
        self._drain = drain

    def drain_seconds(self, default: float) -> float:
        return default if self.seconds is None else self.seconds

    def stop(self) -> None:
        """Do nothing."""

    def drain(self) -> Any:
        self.asked += 1
        return self._drain() if self._drain else None
