"""How commands reach the running process: a UNIX socket that is named after its configuration file, on Linux.

The name is one of the abstract namespace (unix(7)): there is no file to be left behind, to be made in the wrong place
or to lie outside a changed root. A request is a line: the name of a command. The answer is lines of JSON, an object
each: `{"out": text}` and `{"err": text}` are for the two streams of whoever asked, `{"status": number}` comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.hush import hushed
from netsvc.listeners.opening import Listening
from netsvc.listeners.sockets import BACKLOG
from netsvc.text import escape

__all__ = ["LONGEST_ANSWER", "Answer", "Control", "control_names", "peer_user", "read_answer"]

#: Bytes of a request.
LONGEST_REQUEST = 1024
#: Bytes of an answer.
LONGEST_ANSWER = 1 << 20
#: Requests at a time.
MOST_REQUESTS = 8
#: Seconds for a request to come, and for an answer to be taken.
PATIENCE = 10.0

#: Of SO_PEERCRED: process, user and group (unix(7)).
_CREDENTIALS = struct.Struct("3i")

_log = Logger(namespace="netsvc")


@dataclass(frozen=True)
class Answer:
    """What a command answers. A `status` of 0 says that it was done."""

    status: int
    lines: Sequence[str]

    def to_bytes(self) -> bytes:
        """Write it as it is sent."""
        stream = "err" if self.status else "out"
        lines = [json.dumps({stream: line}).encode() + b"\n" for line in self.lines]
        last = json.dumps({"status": self.status}).encode() + b"\n"
        size = len(last)
        for number, line in enumerate(lines):
            size += len(line)
            if size > LONGEST_ANSWER - 100:
                lines[number:] = [json.dumps({stream: f"{len(lines) - number} more lines"}).encode() + b"\n"]
                break
        return b"".join([*lines, last])


def read_answer(data: bytes) -> Answer:
    """Read what `Answer.to_bytes` wrote. Raises `ValueError` if it is no whole answer."""
    lines: list[str] = []
    try:
        *records, last = [json.loads(line) for line in data.splitlines()]
        for record in records:
            [text] = record.values()
            lines.append(str(text))
        return Answer(int(last["status"]), lines)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("no answer") from error


def control_names(path: str) -> list[str]:
    """Name the sockets of a process that was started with the configuration file at `path`.

    There are two where a symbolic link is on the way to it: the link may be put elsewhere when there is a new version
    of everything, and the file may be named by another way.
    """
    places = dict.fromkeys((os.path.abspath(path), os.path.realpath(path)))
    return [f"\0netsvc-{hashlib.sha256(os.fsencode(place)).hexdigest()}" for place in places]


def peer_user(connected: socket.socket) -> int:
    """Return the user id of the process at the other end. Raises `OSError`."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


#: What a command does with the words that follow its name.
Command = Callable[[Sequence[str]], "Deferred[Answer] | Answer"]


class Control:
    """Answers requests of the same user, and of root. `commands` has what does each, by its name."""

    def __init__(self, reactor: Any, config: str, commands: Mapping[str, Command]) -> None:
        self._reactor = reactor
        self._config = config
        self._names = control_names(config)
        factory: Any = Factory.forProtocol(_Requests)
        self._factory = factory
        factory.noisy = False
        factory.clock = reactor
        factory.commands = commands
        self._open: set[_Requests] = set()
        factory.open = self._open
        self._ports: list[Any] = []

    def listen(self) -> None:
        """Begin to answer. If another process has the name, that is logged."""
        try:
            for name in self._names:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.setblocking(False)
                    bound.bind(name)
                    # Others may connect as well, and are closed: they shall not keep out who may ask.
                    bound.listen(BACKLOG)
                    self._ports.append(
                        hushed(self._reactor.adoptStreamPort, bound.fileno(), socket.AF_UNIX, self._factory)
                    )
        except OSError:
            self.close()
            _log.warn(
                "another process runs with {config}, and takes the commands for it; stop that one, or use kill -HUP",
                config=escape(self._config),
            )

    def close(self) -> None:
        """Answer nobody any more."""
        while self._ports:
            # Twisted's own line about it has a name that nobody could read.
            hushed(Listening(self._ports.pop()).abandon)
        for requests in list(self._open):
            requests.transport.loseConnection()


class _Requests(Protocol):
    """One connection, which has one request."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self._request: bytearray | None = bytearray()
        self._open = self.factory.open
        self._deadline = self.factory.clock.callLater(PATIENCE, self.transport.abortConnection)
        if not self._may_ask():
            self._request = None
            self.transport.abortConnection()
            return
        self._open.add(self)
        if len(self._open) > MOST_REQUESTS:
            self._request = None
            self._deadline.cancel()
            self._answer(Answer(1, [f"more than {MOST_REQUESTS} commands at a time; try again"]))

    def _may_ask(self) -> bool:
        try:
            return peer_user(self.transport.socket) in (0, os.geteuid())
        except OSError:
            return False

    def dataReceived(self, data: bytes) -> None:
        if self._request is None:
            return
        self._request += data[: LONGEST_REQUEST + 1]
        line, end, _ = self._request.partition(b"\n")
        if not end and len(self._request) <= LONGEST_REQUEST:
            return
        self._request = None
        self._deadline.cancel()
        words = bytes(line).decode("utf-8", "backslashreplace").split() if end else []
        command = self.factory.commands.get(words[0]) if words else None
        if command is None:
            known = ", ".join(self.factory.commands)
            self._answer(
                Answer(1, [f"{escape(' '.join(words[:1])) or 'nothing'}: there is no such command; there are {known}"])
            )
            return
        maybeDeferred(command, words[1:]).addErrback(self._failed).addCallback(self._answer)

    def _failed(self, failure: Failure) -> Answer:
        _log.failure("a command failed", failure)
        return Answer(1, [f"it failed: {type(failure.value).__name__}; the log has more"])

    def _answer(self, answer: Answer) -> None:
        if self in self._open:
            self._deadline = self.factory.clock.callLater(PATIENCE, self.transport.abortConnection)
            self.transport.write(answer.to_bytes())
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._open.discard(self)
        if self._deadline.active():
            self._deadline.cancel()
