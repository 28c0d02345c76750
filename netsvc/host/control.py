"""How commands reach the running process: UNIX sockets named after its pid and its configuration file, on Linux.

The names are of the abstract namespace (unix(7)): there is no file to be left behind, to be made in the wrong place
or to lie outside a changed root. A request is a line: the name of a command, and its words. The answer is lines of
JSON, an object each: `{"out": text}` and `{"err": text}` are for the two streams of whoever asked, `{"status": number}`
comes last.
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
from twisted.internet.error import UnsupportedAddressFamily
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.accepting import accept_by
from netsvc.hush import hushed
from netsvc.listeners.opening import Listening
from netsvc.listeners.sockets import BACKLOG
from netsvc.text import escape

__all__ = [
    "LONGEST_ANSWER",
    "LONGEST_REQUEST",
    "PID_NAME",
    "Answer",
    "Command",
    "Control",
    "control_names",
    "peer_process",
    "pid_name",
    "read_answer",
]

#: Bytes of a request.
LONGEST_REQUEST = 1024
#: Bytes of an answer.
LONGEST_ANSWER = 1 << 20
#: Requests at a time, and connections, so that one request too many is told so.
MOST_REQUESTS, MOST_CONNECTIONS = 8, 32
#: Seconds for a request to come, and for an answer to be taken.
PATIENCE = 10.0
#: Seconds that answers have to be taken when the process ends; a supervisor may be waiting for that.
FAREWELL = 0.1
#: Seconds between two tries to take a file's name that another process has. It may be one that hands over to this one:
#: it gives the name up as soon as it drains, and `netsvc upgrade` has its answer then, and who waits for that goes on.
RETRY = 0.05
#: Seconds after which it is told that another process has the name and keeps it, and between two tries from then on.
TELL, SELDOM = 10.0, 0.5

#: What the name of a process begins with; its pid follows.
PID_NAME = "\0netsvc-pid-"

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


def pid_name(pid: int) -> str:
    """Name the socket of a process."""
    return f"{PID_NAME}{pid}"


def peer_process(connected: socket.socket) -> tuple[int, int]:
    """Return the pid, and the user id, of the process at the other end. Raises `OSError`.

    The pid is 0 if that process cannot be seen from here, as it is in another container.
    """
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(credentials)
    return int(pid), int(user)


#: What a command does with the words that follow its name.
Command = Callable[[Sequence[str]], "Deferred[Answer] | Answer"]


class Control:
    """Answers requests of the same user, and of root. `commands` has what does each, by its name.

    It answers at the name of `pid`, and at those of the file `config`, if there is one, as long as nobody else does.
    """

    def __init__(self, reactor: Any, config: str | None, commands: Mapping[str, Command], pid: int) -> None:
        self._reactor = reactor
        self._config = config
        self._pid = pid
        factory: Any = Factory.forProtocol(_Requests)
        self._factory = factory
        factory.noisy = False
        factory.clock = reactor
        factory.commands = commands
        self._open: set[_Requests] = set()
        factory.open = self._open
        factory.lost = self._lost
        self._own_ports: list[Any] = []
        self._config_ports: list[Any] = []
        self._retry: Any = None
        self._warn_at: float | None = None
        self._closing: Deferred[None] | None = None
        self._deadline: Any = None

    def listen(self) -> None:
        """Begin to answer. If another process has the file's name, and keeps it, that is logged."""
        # Only who wants to be in the way has that name; who asks sees that it is another process.
        self._own_ports = self._take([pid_name(self._pid)])
        if self._config is not None:
            self._warn_at = self._reactor.seconds() + TELL
            self._take_config(control_names(self._config))

    def _take_config(self, names: Sequence[str]) -> None:
        self._config_ports = self._take(names)
        if self._config_ports:
            return
        if self._warn_at is not None and self._reactor.seconds() >= self._warn_at:
            self._warn_at = None
            _log.warn(
                "another process runs with {config}, and takes the commands for it; "
                "stop that one, or name this one by --pid {pid}",
                config=escape(self._config or ""),
                pid=self._pid,
            )
        # For as long as it lasts: the other one may end.
        self._retry = self._reactor.callLater(SELDOM if self._warn_at is None else RETRY, self._take_config, names)

    def _take(self, names: Sequence[str]) -> list[Any]:
        """Take all of these names, or none."""
        ports: list[Any] = []
        try:
            for name in names:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.setblocking(False)
                    bound.bind(name)
                    # Others may connect as well, and are closed: they shall not keep out who may ask.
                    bound.listen(BACKLOG)
                    ports.append(hushed(self._reactor.adoptStreamPort, bound.fileno(), socket.AF_UNIX, self._factory))
                    accept_by(ports[-1], spare=True)
        except (OSError, UnsupportedAddressFamily):
            # Of a reactor without UNIX sockets nobody can ask anything.
            _abandon(ports)
        return ports

    def give_up_config(self) -> None:
        """Answer no more at the names of the file, which another process may take now."""
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        _abandon(self._config_ports)

    def close(self) -> Deferred[None]:
        """Answer nobody any more. The Deferred fires when what was answered has been taken, or is late."""
        self.give_up_config()
        _abandon(self._own_ports)
        closing: Deferred[None] = Deferred()
        self._closing = closing
        self._deadline = self._reactor.callLater(FAREWELL, self._closed)
        for requests in list(self._open):
            requests.transport.loseConnection()
        self._lost()
        return closing

    def _lost(self) -> None:
        if self._closing is not None and not self._open:
            self._closed()

    def _closed(self) -> None:
        closing, self._closing = self._closing, None
        assert closing is not None
        if self._deadline.active():
            self._deadline.cancel()
        for requests in list(self._open):
            requests.transport.abortConnection()
        closing.callback(None)


def _abandon(ports: list[Any]) -> None:
    while ports:
        # Twisted's own line about it has a name that nobody could read.
        hushed(Listening(ports.pop()).abandon)


class _Requests(Protocol):
    """One connection, which has one request."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self._request: bytearray | None = bytearray()
        self._open = self.factory.open
        self._deadline = self.factory.clock.callLater(PATIENCE, self.transport.abortConnection)
        if not self._may_ask() or len(self._open) >= MOST_CONNECTIONS:
            self._request = None
            self.transport.abortConnection()
            return
        self._open.add(self)
        # It is told so when it has asked: an answer before that may be lost with what was not read (unix(7)).
        self._is_refused = len(self._open) > MOST_REQUESTS

    def _may_ask(self) -> bool:
        try:
            return peer_process(self.transport.socket)[1] in (0, os.geteuid())
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
        if self._is_refused:
            self._answer(Answer(1, [f"more than {MOST_REQUESTS} commands at a time; try again"]))
            return
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
        if self._deadline.active():
            self._deadline.cancel()
        self._open.discard(self)
        self.factory.lost()
