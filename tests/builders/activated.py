"""Starts programs as systemd does: with sockets that are open already, and with one to say how they are."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.builders.processes import PATIENCE, TWISTD, Server

#: systemd passes descriptors from 3 on, to the process that it names.
_AS_SYSTEMD = """\
import os, sys
for place, number in enumerate(filter(None, sys.argv.pop(1).split(","))):
    os.dup2(int(number), 3 + place)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""
#: Beyond those that the program is to find.
_HIGH = 40


class Manager:
    """A socket that somebody may tell how it is. Use it in a `with`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(str(self.path))
        # Whoever the program has become.
        self.path.chmod(0o666)
        self.heard: list[str] = []

    def hear(self, start: str) -> str:
        """Wait for a message that begins so."""
        while True:
            self.heard.append(self.socket.recv(4096).decode())
            if self.heard[-1].startswith(start):
                return self.heard[-1]

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def activated(
    passed: Sequence[tuple[str, socket.socket]],
    *arguments: str,
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Server:
    """Start `twistd -n netsvc ARGUMENTS…` with named sockets; `before` are options of twistd itself."""
    high = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, _HIGH) for _, each in passed]
    command = [sys.executable, "-c", _AS_SYSTEMD, ",".join(map(str, high)), TWISTD, "-n", "--pidfile=", *before]
    listen = {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
    try:
        return Server([*command, "netsvc", *arguments], cwd, {**listen, **(environment or {})}, high)
    finally:
        for number in high:
            os.close(number)


@contextmanager
def bound(kind: socket.SocketKind, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Open a socket at a free port of an address, or at a path."""
    family = socket.AF_UNIX if "/" in address else socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as made:
        made.bind(address if family == socket.AF_UNIX else (address, 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made
