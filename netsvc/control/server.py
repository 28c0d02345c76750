"""The server of the control sockets: see `netsvc.control.protocol`."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorUNIX
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.paths import make_directory
from netsvc.base.processes import is_alive
from netsvc.base.text import escape
from netsvc.control.location import (
    CONFIG_SOCKET,
    abstract_config_name,
    abstract_pid_name,
    config_keys,
    pid_key,
    read_pid,
)
from netsvc.control.protocol import LONGEST_REQUEST, answer_bytes, peer_process
from netsvc.listen.port import OpenPort, adopt
from netsvc.listen.quiet import quietly
from netsvc.listen.sockets import bind_unix
from netsvc.plan.answer import Answer
from netsvc.reactor.accept import BACKLOG, pause_when_full

#: Simultaneous requests; and connections, so that a request beyond that gets an error.
MOST_REQUESTS, MOST_CONNECTIONS = 8, 32
#: Seconds for a request to arrive, and for the answer to be read.
PATIENCE = 10.0
#: Seconds for answers to be read when the process ends, which a supervisor may wait for.
LINGER = 0.1
#: Seconds between two attempts to take the name of a file that another process has. In an upgrade, the old process
#: gives it up as soon as it drains; then `netsvc upgrade` gets its answer, and the next command may follow.
RETRY = 0.05
#: Seconds after which another process that keeps the name is logged, and between two attempts from then on.
REPORT, SELDOM = 10.0, 0.5

_log = Logger(namespace="netsvc")


#: A command, called with the arguments that follow its name.
Command = Callable[[Sequence[str]], "Deferred[Answer] | Answer"]


class Control:
    """Answers requests of the same user and of root, with `commands` by their names.

    It listens at the socket of `pid`, and at the sockets of the file `config`, if there is one, when they are free: in
    `directories` (`netsvc.control.location.prepare_directories`), or in the abstract namespace if it cannot listen
    there. Sockets that cannot be had are logged.
    """

    def __init__(
        self,
        reactor: Any,
        config: str | None,
        commands: Mapping[str, Command],
        pid: int,
        directories: Sequence[str] = (),
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._pid = pid
        self._directories = directories
        factory: Any = Factory.forProtocol(_Requests)
        self._factory = factory
        factory.noisy = False
        factory.clock = reactor
        factory.commands = commands
        self._open: set[_Requests] = set()
        factory.open = self._open
        factory.lost = self._lost
        self._own_ports: list[_ControlPort] = []
        self._config_ports: list[_ControlPort] = []
        self._retry: Any = None
        self._warn_at: float | None = None
        self._closing: Deferred[None] | None = None
        self._deadline: Any = None

    def listen(self) -> None:
        """Start to listen."""
        self._own_ports = self._take_own()
        if self._config is not None:
            self._warn_at = self._reactor.seconds() + REPORT
            self._take_config(self._config)

    def _take_own(self) -> list[_ControlPort]:
        reasons = []
        if self._directories:
            directory = self._directories[0]
            try:
                _remove_stale(directory)
                return self._take([f"{directory}/{pid_key(self._pid)}"])
            except OSError as error:
                # Outside the root directory of --chroot, for example.
                self._directories = ()
                reasons.append(_reason(error))
        name = abstract_pid_name(self._pid)
        try:
            return self._take([name])
        except OSError as error:
            reasons.append(_why_not(error, [name]))
        _log.error(
            "no control socket for process {pid}: {reasons}; commands with --pid do not reach it, signals do",
            pid=self._pid,
            reasons="; ".join(reasons),
        )
        return []

    def _config_names(self, config: str) -> list[str]:
        if self._directories:
            return [f"{directory}/{CONFIG_SOCKET}" for directory in self._directories]
        return [abstract_config_name(key) for key in config_keys(config)]

    def _take_config(self, config: str) -> None:
        names = self._config_names(config)
        try:
            self._config_ports = self._take(names)
        except OSError as error:
            if self._warn_at is not None and self._reactor.seconds() >= self._warn_at:
                self._warn_at = None
                _log.error(
                    "no control socket for {config}: {reason}; name this process with --pid {pid}",
                    config=escape(config),
                    reason=_why_not(error, names),
                    pid=self._pid,
                )
            # The other process may end.
            seconds = SELDOM if self._warn_at is None else RETRY
            self._retry = self._reactor.callLater(seconds, self._take_config, config)

    def _take(self, names: Sequence[str]) -> list[_ControlPort]:
        """Listen at all of these names, or none. Raises `OSError`."""
        ports: list[_ControlPort] = []
        try:
            for name in names:
                ports.append(_ControlPort(self._reactor, name, self._factory))
        except OSError:
            _abandon(ports)
            raise
        return ports

    def give_up_config(self) -> None:
        """Stop listening at the sockets of the file; another process may take them now."""
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        _abandon(self._config_ports)

    def close(self) -> Deferred[None]:
        """Stop listening. Fires when the last answers have been read, or after `LINGER` seconds."""
        self.give_up_config()
        _abandon(self._own_ports)
        closing: Deferred[None] = Deferred()
        self._closing = closing
        self._deadline = self._reactor.callLater(LINGER, self._closed)
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


class _ControlPort:
    """A listening control socket, at a path or an abstract name. Raises `OSError` if it cannot be had."""

    def __init__(self, reactor: Any, name: str, factory: Any) -> None:
        self._name = name
        self._inode = 0
        #: The lock of the directory, which the process with the socket of the configuration file holds.
        self._lock = -1
        if not IReactorUNIX.providedBy(reactor):
            raise OSError(errno.EAFNOSUPPORT, "this reactor has no UNIX sockets")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.setblocking(False)
            try:
                if name.startswith("\0"):
                    bound.bind(name)
                else:
                    self._bind_file(bound)
                # Connections of other users are closed; a long queue keeps them from blocking it.
                bound.listen(BACKLOG)
            except OSError:
                self._remove_file()
                raise
            port = quietly(adopt, reactor, bound, factory)
        pause_when_full(port, use_reserved=True)
        self._port = OpenPort(port)

    def _bind_file(self, bound: socket.socket) -> None:
        directory, name = os.path.split(self._name)
        # The last process that had a socket there has removed it.
        make_directory(directory)
        if name == CONFIG_SOCKET:
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process that was killed leaves its socket.
        with suppress(FileNotFoundError):
            os.unlink(self._name)
        bind_unix(bound, self._name, 0o600)
        self._inode = os.lstat(self._name).st_ino

    def abandon(self) -> None:
        """Close it, and remove its file."""
        # Twisted would log the name, which is not readable.
        quietly(self._port.abandon)
        self._remove_file()

    def _remove_file(self) -> None:
        with suppress(OSError):
            if self._inode and os.lstat(self._name).st_ino == self._inode:
                os.unlink(self._name)
                # The last one removes the directory.
                os.rmdir(os.path.dirname(self._name))
        if self._lock >= 0:
            os.close(self._lock)


def _remove_stale(directory: str) -> None:
    """Remove the sockets that killed processes have left in a directory. Raises `OSError`."""
    make_directory(directory)
    for name in os.listdir(directory):
        pid = read_pid(f"/{name}")
        # Of a process in another pid namespace nothing is known.
        if pid and name == pid_key(pid) and not is_alive(pid):
            with suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")


def _why_not(error: OSError, names: Sequence[str]) -> str:
    """Return the reason why these sockets cannot be had: mostly the process that has them."""
    if error.errno not in (errno.EADDRINUSE, errno.EWOULDBLOCK):
        return _reason(error)
    for name in names:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.setblocking(False)
            probe.connect(name)
            pid, user = peer_process(probe)
            who = f"process {pid}" if pid else "a process in another container,"
            return f"{who} of user {user} has it, and receives the commands"
    return "another process has it, and receives the commands"


def _reason(error: OSError) -> str:
    return escape(error.strerror or str(error)).lower()


def _abandon(ports: list[_ControlPort]) -> None:
    while ports:
        ports.pop().abandon()


class _Requests(Protocol):
    """A connection, with one request."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self._request: bytearray | None = bytearray()
        self._open = self.factory.open
        self._deadline = self.factory.clock.callLater(PATIENCE, self.transport.abortConnection)
        if not self._is_allowed() or len(self._open) >= MOST_CONNECTIONS:
            self._request = None
            self.transport.abortConnection()
            return
        self._open.add(self)
        # Refused after its request: an earlier answer could be lost with the unread request (unix(7)).
        self._is_refused = len(self._open) > MOST_REQUESTS

    def _is_allowed(self) -> bool:
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
            self._answer(Answer(1, [f"more than {MOST_REQUESTS} commands at the same time; try again"]))
            return
        words = bytes(line).decode("utf-8", "backslashreplace").split() if end else []
        command = self.factory.commands.get(words[0]) if words else None
        if command is None:
            known = ", ".join(self.factory.commands)
            self._answer(Answer(1, [f"{escape(' '.join(words[:1])) or 'empty'}: unknown command; use one of {known}"]))
            return
        maybeDeferred(command, words[1:]).addErrback(self._failed).addCallback(self._answer)

    def _failed(self, failure: Failure) -> Answer:
        _log.failure("a command failed", failure)
        return Answer(1, [f"failed with {type(failure.value).__name__}; see the log"])

    def _answer(self, answer: Answer) -> None:
        if self in self._open:
            self._deadline = self.factory.clock.callLater(PATIENCE, self.transport.abortConnection)
            self.transport.write(answer_bytes(answer))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._deadline.active():
            self._deadline.cancel()
        self._open.discard(self)
        self.factory.lost()
