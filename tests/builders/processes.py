"""Runs real server processes for tests: bounded in time, on loopback, ended by their pid."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import socket
import subprocess
import sysconfig
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).parents[2]
TWISTD = str(Path(sysconfig.get_path("scripts"), "twistd"))
#: Seconds that any one step of a real process may take on a loaded machine; no test waits so long for what happens.
PATIENCE = 120.0


class Server:
    """A server process whose log is read line by line."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.lines: list[str] = []
        self.stderr = ""
        self._rest = b""
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
        )

    @classmethod
    def twistd(cls, *arguments: str, plugin: str = "netsvc", before: Sequence[str] = ()) -> Server:
        """Start `twistd -n netsvc ARGUMENTS…` and wait until it is ready; `before` are options of twistd itself."""
        server = cls([TWISTD, "-n", "--pidfile=", *before, plugin, *arguments])
        server.wait_for("ready$")
        return server

    @property
    def _stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Read the log up to the first line, not read before, that matches."""
        deadline = time.monotonic() + patience
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                self.lines.append(line.decode("utf-8", "replace"))
                if match := re.search(pattern, self.lines[-1]):
                    return match
            readable, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._stdout.fileno(), 65536) if readable else b""
            if not chunk:
                self.process.kill()
                self.wait()
                raise AssertionError(f"no line matches {pattern!r} in:\n{self.log}\n{self.stderr}")
            self._rest += chunk

    def read_log(self) -> None:
        """Read what there is of the log: a server whose log nobody reads waits for that."""
        while select.select([self._stdout], [], [], 0)[0] and (chunk := os.read(self._stdout.fileno(), 65536)):
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        self.lines += (line.decode("utf-8", "replace") for line in lines)

    def port(self, label: str, place: int = 0) -> int:
        """Tell the real port of a listener, `echo tcp`; `place` counts those of the same label."""
        pattern = re.compile(rf"{label} listens on \S*:(\d+)(?: \(.*\))?$")
        return [int(match[1]) for line in self.lines if (match := pattern.search(line))][place]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, read the rest of the log, and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def signal_group(self, number: int) -> None:
        """Send a signal to every process of the server's session, for one that a shell started."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        """Wait for the end, read the rest of the log, and return the exit status."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
        self.lines += (self._rest + out).decode("utf-8", "replace").splitlines()
        self.stderr = err.decode("utf-8", "replace")
        return self.process.returncode

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return "\n".join(self.lines)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            status = self.stop()
            # A server that was told to drain may have ended by itself, before or while the signal came. A supervisor
            # ends as a shell does.
            assert kind is not None or status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), self.log + self.stderr
        assert kind is not None or "Traceback" not in self.log + self.stderr, self.log + self.stderr


#: The first of the ports for tests, and how many processes of pytest-xdist have some of their own: a server opens its
#: port a while after it was found to be free.
_FIRST_PORT, _SHARES = 10_000, 8
#: Hypothesis gives every process the same sequence of random numbers.
_chosen = random.SystemRandom()
#: The last ports given: a test may ask for several before a server opens the first one.
_given: deque[int] = deque(maxlen=50)


def free_port() -> int:
    """Find a port that is free for streams and datagrams, and that the system gives nobody who asks for any.

    It is none of the last 50 that were given.
    """
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    share = max(100, (first_given - _FIRST_PORT) // _SHARES)
    first = _FIRST_PORT + share * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _SHARES)
    while True:
        port = _chosen.randrange(first, first + share)
        if port in _given:
            continue
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram, suppress(OSError):
            stream.bind(("127.0.0.1", port))
            datagram.bind(("127.0.0.1", port))
            _given.append(port)
            return port


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Open a TCP connection to a server on loopback, with a deadline on everything."""
    return socket.create_connection((host, port), timeout=PATIENCE)


def datagrams(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Open a UDP socket that talks to one server on loopback, with a deadline on everything."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(PATIENCE)
    opened.connect((host, port))
    return opened


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Read `count` bytes, or what came before the end."""
    data = b""
    while len(data) < count:
        chunk = connection.recv(min(65536, count - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def is_reset(connection: socket.socket) -> bool:
    """Return whether a connection is reset before anything comes."""
    try:
        connection.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_refused(port: int) -> bool:
    """Return whether a new connection is reset before anything comes: so early that `connect` finds it, or later."""
    try:
        with connect(port) as connection:
            return is_reset(connection)
    except ConnectionResetError:
        return True


def read_all(connection: socket.socket) -> bytes:
    """Read to the end."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def run(
    *words: str, cwd: Path | None = None, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        words,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )


def twistd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `twistd ARGUMENTS…` to its end, for commands that end by themselves."""
    return run(TWISTD, *arguments)
