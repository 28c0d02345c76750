"""Hands open ports to another process: one line of JSON, and the inherited sockets.

The other process is a worker, or the successor of this one. Their versions may differ.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from netsvc.base.values import Kind
from netsvc.plan.encoding import decode, encode
from netsvc.plan.plan import Plan

#: The version of the JSON format. Unknown keys are ignored; the version changes when a key gets another meaning.
VERSION = 1


class Offering(Protocol):
    """The owner of an open port, which can hand it to another process."""

    def pause(self) -> None:
        """Stop accepting and receiving until `resume`; connections and datagrams wait in the kernel."""

    def resume(self) -> None:
        """Accept and receive again."""

    def release(self) -> None:
        """Close the port in this process only."""

    def own(self, files: Sequence[str]) -> None:
        """Remove these files when the port is closed, as no other process has the port any more."""


@dataclass(frozen=True)
class OfferedPort:
    """An open port of this process that can be passed to another one.

    `role` is `listener`, `plugin` for a port of another twistd plugin, or `admin`; `name` is the name of its owner, and
    `address` the address that was requested. `sockets` are the socket of the address, and those bound beside it for
    further workers. `files` are removed by the process that closes the port last.
    """

    role: str
    name: str
    kind: Kind
    address: str
    sockets: Sequence[Any]
    owner: Offering
    files: Sequence[str] = ()
    key_files: Mapping[str, str] = field(default_factory=dict)

    def passed(self, number: Callable[[int], int]) -> PassedPort:
        """Return the port for the other process. `number` maps a descriptor of ours to the one it has there."""
        return PassedPort(
            self.role,
            self.name,
            self.kind,
            self.address,
            [number(each.fileno()) for each in self.sockets],
            self.files,
            self.key_files,
        )


@dataclass(frozen=True)
class PassedPort:
    """An open port of another process; see `OfferedPort`. `sockets` are descriptors of this process."""

    role: str
    name: str
    kind: Kind
    address: str
    sockets: Sequence[int]
    files: Sequence[str] = ()
    key_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerStart:
    """The start parameters of a worker, besides its ports, which are in the order of the listeners of `plan`.

    `reactor` is the module whose `install()` it calls; `search_path` is `sys.path`, and `python_path` the PYTHONPATH of
    the environment, if set. A `paused` worker accepts nothing before it is resumed. `number` is the worker's number,
    from 1. `cover` is the descriptor of its link for the sockets of other workers, if the parent has such links.
    """

    plan: Plan
    reactor: str
    search_path: Sequence[str]
    python_path: str | None = None
    paused: bool = False
    number: int = 0
    cover: int | None = None


@dataclass(frozen=True)
class Handoff:
    """Everything that a new process inherits from the old one.

    `proxy` is the descriptor of the link to the proxy process, which has the first pid, if there is one. `systemd`
    lists the names and descriptors of the sockets that systemd has passed. `detached` means that the old process is a
    daemon; `ignored` are the signals that it was started to ignore.
    """

    pid: int
    ports: Sequence[PassedPort]
    proxy: int | None = None
    systemd: Sequence[tuple[str, int]] = ()
    detached: bool = False
    ignored: Sequence[int] = ()
    worker: WorkerStart | None = None

    def to_line(self) -> bytes:
        """Encode as one line of JSON."""
        ports = [vars(port) | {"key_files": dict(port.key_files)} for port in self.ports]
        worker = self.worker and vars(self.worker) | {"plan": encode(self.worker.plan)}
        return json.dumps({"version": VERSION} | vars(self) | {"ports": ports, "worker": worker}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Handoff:
        """Decode a line of `to_line` of this or another version. Raises `ValueError` if it is invalid."""
        try:
            read: Any = json.loads(line)
            if read["version"] != VERSION:
                raise ValueError(f"its version is {read['version']}, not {VERSION}")
            return cls(
                int(read["pid"]),
                [_read_port(port) for port in read["ports"]],
                read.get("proxy"),
                [(str(name), int(number)) for name, number in read.get("systemd", ())],
                bool(read.get("detached", False)),
                [int(number) for number in read.get("ignored", ())],
                _read_worker(read.get("worker")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is invalid: {error!r}") from error

    def descriptors(self) -> list[int]:
        """List every descriptor that was passed."""
        passed = [number for port in self.ports for number in port.sockets]
        passed += [number for _, number in self.systemd]
        return passed + ([] if self.proxy is None else [self.proxy])


def _read_port(read: Any) -> PassedPort:
    kind: Kind = "datagram" if read["kind"] == "datagram" else "stream"
    return PassedPort(
        str(read["role"]),
        str(read["name"]),
        kind,
        str(read["address"]),
        [int(number) for number in read["sockets"]],
        [str(file) for file in read.get("files", ())],
        {str(name): str(content) for name, content in read.get("key_files", {}).items()},
    )


def _read_worker(read: Any) -> WorkerStart | None:
    if read is None:
        return None
    return WorkerStart(
        decode(read["plan"]),
        str(read["reactor"]),
        [str(path) for path in read["search_path"]],
        read.get("python_path"),
        bool(read.get("paused", False)),
        int(read.get("number", 0)),
        read.get("cover"),
    )


class Sockets:
    """Open sockets to use in place of new ones. Each is taken once.

    The sockets of a listener are taken in order, a plugin's by the address that the plugin requests (see
    `asked_of`). `beside` are further sockets of the same address for workers; None if no other process has had the
    socket. `key_files` are the contents of the address's key and certificate files that the other process has read.
    """

    def __init__(
        self,
        descriptors: Iterable[int] = (),
        *,
        beside: Iterable[int] | None = None,
        key_files: Mapping[str, str] | None = None,
        asked: Sequence[tuple[Kind, str]] | None = None,
    ) -> None:
        self._descriptors = list(descriptors)
        self._asked = None if asked is None else list(asked)
        self.beside = None if beside is None else list(beside)
        self.key_files: Mapping[str, str] = key_files or {}
        self._taken: set[int] = set()

    @classmethod
    def of(cls, *sockets: Any) -> Sockets:
        """Duplicate sockets."""
        return cls([os.dup(each.fileno()) for each in sockets])

    def take(self, kind: Kind = "stream", asked: str = "") -> socket.socket | None:
        """Take the next socket, or the one for the requested address; return None if there is none."""
        index = 0
        if self._asked is not None:
            if (kind, asked) not in self._asked:
                return None
            index = self._asked.index((kind, asked))
            del self._asked[index]
        if not self._descriptors:
            return None
        # A child process that inherits it would keep the port open.
        descriptor = self._descriptors.pop(index)
        os.set_inheritable(descriptor, False)
        self._taken.add(os.fstat(descriptor).st_ino)
        return socket.socket(fileno=descriptor)

    def has_given(self, port: Any) -> bool:
        """Return whether a port uses one of the taken sockets."""
        bound = getattr(port, "socket", None)
        return bound is not None and os.fstat(bound.fileno()).st_ino in self._taken

    def close_beside(self) -> None:
        """Close the sockets for further workers."""
        for number in self.beside or ():
            os.close(number)
        self.beside = None

    def close(self) -> None:
        """Close the sockets that were not taken: their clients would wait for ever."""
        self.close_beside()
        while self._descriptors:
            os.close(self._descriptors.pop())


def asked_of(port: Any) -> str:
    """Return the requested address of an open port: `INTERFACE PORT`, where 0 is any port, or an absolute path."""
    bound = port.socket.getsockname()
    if not isinstance(bound, tuple):
        return asked_path(bound)
    number = getattr(port, "port", None)
    return asked_port(port.interface, bound[1] if number is None else number)


def asked_port(interface: str, number: int) -> str:
    """Return the requested address of a port as `INTERFACE PORT`."""
    return f"{interface or '0.0.0.0'} {number}"


def asked_path(path: str | bytes) -> str:
    """Return the requested address of a UNIX socket: its absolute path, or a name in the abstract namespace."""
    text = os.fsdecode(path)
    return text if text.startswith("\0") else os.path.abspath(text)
