"""What a process is told by the one whose place it takes: one line of JSON, as their versions may differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netsvc.interfaces import Kind

__all__ = ["FIRST_SOCKET", "STDERR", "STDOUT", "VARIABLE", "Briefing", "PassedPort"]

#: Names the environment's variable that has the descriptor of the briefing.
VARIABLE = "NETSVC_UPGRADE"
#: Descriptors of the new process beside those of `netsvc.workers.briefing`: the real stdout and stderr, for until it
#: has been read what it prints goes to the old process, and the first of what else is passed.
STDOUT, STDERR, FIRST_SOCKET = 5, 6, 7
#: Of the form below. Unknown keys are ignored; it changes when old keys get another meaning.
VERSION = 1


@dataclass(frozen=True)
class PassedPort:
    """An open port of the old process; see `netsvc.listeners.handed.HandedPort`. Sockets are descriptors."""

    role: str
    name: str
    kind: Kind
    address: str
    sockets: Sequence[Sequence[int]]
    files: Sequence[str] = ()
    key_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Briefing:
    """Everything that the new process cannot find out for itself.

    `standin` is a descriptor: the way to the process that stands in for the first one, if there is one. `systemd` has
    pairs of the names and descriptors of what systemd has passed. `detached` says that the old one is a daemon, and
    `ignored` are the signals that it was started to ignore.
    """

    pid: int
    ports: Sequence[PassedPort]
    standin: int | None = None
    systemd: Sequence[tuple[str, int]] = ()
    detached: bool = False
    ignored: Sequence[int] = ()

    def to_line(self) -> bytes:
        """Write it as one line."""
        ports = [vars(port) | {"key_files": dict(port.key_files)} for port in self.ports]
        return json.dumps({"version": VERSION} | vars(self) | {"ports": ports}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Briefing:
        """Read what `to_line` of this or another version wrote. Raises `ValueError` if it makes no sense."""
        try:
            read: Any = json.loads(line)
            if read["version"] != VERSION:
                raise ValueError(f"its version is {read['version']}, and not {VERSION}")
            return cls(
                int(read["pid"]),
                [_read_port(port) for port in read["ports"]],
                read.get("standin"),
                [(str(name), int(number)) for name, number in read.get("systemd", ())],
                bool(read.get("detached", False)),
                [int(number) for number in read.get("ignored", ())],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is none: {error!r}") from error

    def descriptors(self) -> list[int]:
        """List everything that was passed."""
        passed = [number for port in self.ports for sockets in port.sockets for number in sockets]
        passed += [number for _, number in self.systemd]
        return passed + ([] if self.standin is None else [self.standin])


def _read_port(read: Any) -> PassedPort:
    kind: Kind = "datagram" if read["kind"] == "datagram" else "stream"
    return PassedPort(
        str(read["role"]),
        str(read["name"]),
        kind,
        str(read["address"]),
        [[int(number) for number in sockets] for sockets in read["sockets"]],
        [str(file) for file in read.get("files", ())],
        {str(name): str(content) for name, content in read.get("key_files", {}).items()},
    )
