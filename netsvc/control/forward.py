"""Passes a command on to the process that has replaced this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure

from netsvc.control.location import abstract_pid_name, pid_key
from netsvc.control.protocol import LONGEST_ANSWER, peer_process, read_answer
from netsvc.plan.answer import Answer

#: Seconds to connect.
_PATIENCE = 5.0


def forward(reactor: Any, pid: int, directories: Sequence[str], request: Sequence[str]) -> Deferred[Answer]:
    """Send the words of a request to the process `pid` of this user; return its answer. The Deferred never fails.

    Its control socket is in the first of `directories`, or has an abstract name (`netsvc.control.location`).
    """
    names = [*(f"{directory}/{pid_key(pid)}" for directory in directories[:1]), abstract_pid_name(pid)]
    factory = _Forward(reactor, names, pid, request)
    factory.connect()
    return factory.answered


class _Forward(ClientFactory):
    noisy = False

    def __init__(self, reactor: Any, names: list[str], pid: int, request: Sequence[str]) -> None:
        self._reactor = reactor
        self._names = names
        self.pid = pid
        self.request = request
        self.answered: Deferred[Answer] = Deferred()

    def connect(self) -> None:
        if self._names:
            self._reactor.connectUNIX(self._names.pop(0), self, _PATIENCE)
        else:
            self.refuse()

    def buildProtocol(self, addr: Any) -> _Answer:
        return _Answer(self)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.connect()

    def refuse(self) -> None:
        line = f"process {self.pid}, which has replaced this one, does not answer; see its log"
        self.answered.callback(Answer(1, [line]))


class _Answer(Protocol):
    transport: Any

    def __init__(self, forward: _Forward) -> None:
        self._forward = forward
        self._data = b""

    def connectionMade(self) -> None:
        # Any user can take an abstract name.
        if peer_process(self.transport.socket) != (self._forward.pid, os.geteuid()):
            self.transport.abortConnection()
            return
        self.transport.write(" ".join(self._forward.request).encode() + b"\n")

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > LONGEST_ANSWER:
            self._data = b""
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        try:
            answer = read_answer(self._data)
        except ValueError:
            self._forward.refuse()
        else:
            self._forward.answered.callback(answer)
