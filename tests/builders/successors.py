"""Builds a reactor whose processes are objects that take over from this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.internet import task
from twisted.internet.error import ProcessExitedAlready

from netsvc.workers.channel import ORDERS, ChildProcess


class Process:
    """The transport of a process that is not there."""

    def __init__(self) -> None:
        self.pid = 77
        self.pipes = {ORDERS: object()}
        self.written = b""
        self.signals: list[str] = []
        self.gone = False

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == ORDERS
        self.written += data

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)


class Reactor(task.Clock):
    """Starts no process, but says how it would be."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, Any] = {}
        self.process = Process()
        self.refuses = False

    def spawnProcess(self, protocol: ChildProcess, executable: str, words: Sequence[str], **named: Any) -> None:
        if self.refuses:
            raise OSError(12, "Cannot allocate memory")
        self.started = {"program": executable, "words": words, "directory": os.getcwd(), **named}
        protocol.transport = self.process
        protocol.connectionMade()
