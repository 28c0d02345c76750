"""Server processes: started on given cores, awaited, weighed by CPU time and memory, and stopped by their pid."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.errors import BenchError

__all__ = ["ROOT", "Running", "free_port", "on_cores"]

ROOT = Path(__file__).parent.parent
#: Seconds that a server has to answer for the first time, and to end.
PATIENCE = 20.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Let what is started in here run on these cores only: a process inherits its parent's cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Find a port that is free for streams and datagrams, and that the system does not give to clients.

    A service at a port for clients mutes a local client now and then: it could be another service.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram, suppress(OSError):
            stream.bind(("127.0.0.1", port))
            datagram.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, path.read_text().split())


#: An installed package is compiled once, and not at each start.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Running:
    """A running server: `words` are its command, what it prints goes to `log`.

    Raises `BenchError` for a command that cannot be run.
    """

    def __init__(self, name: str, words: Sequence[str], log: Path, cores: Sequence[int], env: dict[str, str]) -> None:
        self.name = name
        self._log = log
        self.began = time.monotonic()
        with log.open("wb") as out, on_cores(cores):
            try:
                self._process = subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env={**_ENVIRONMENT, "PYTHONPATH": str(ROOT), **env},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"{name}: {words[0]}: {error.strerror}") from None

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def tree(self) -> list[int]:
        """List the pids of the server and of all below it."""
        pids = [self._process.pid]
        for pid in pids:
            pids += _children(pid)
        return pids

    def cpu(self) -> float:
        """Return the CPU seconds used so far, in nanosecond steps, by the server and its living children."""
        total = 0.0
        for pid in self.tree():
            # The CPU clock of another process: see clock_getcpuclockid(3), which Python does not offer.
            with suppress(OSError):
                total += time.clock_gettime((~pid << 3) | 2)
        return total

    def memory(self) -> int:
        """Return the resident bytes of the server and its children."""
        total = 0
        for pid in self.tree():
            with suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return total

    def await_answer(self, answers: Callable[[], bool]) -> float:
        """Ask until it answers; return the seconds since it was started. Raises `BenchError`."""
        while not answers():
            if not self.alive:
                raise BenchError(f"{self.name} ended with status {self._process.returncode}: {self.last_words()}")
            if time.monotonic() - self.began > PATIENCE:
                raise BenchError(f"{self.name} did not answer within {PATIENCE:.0f} s: {self.last_words()}")
            time.sleep(0.001)
        return time.monotonic() - self.began

    def last_words(self) -> str:
        """Return the last line that it printed."""
        with suppress(OSError):
            lines = self._log.read_text("utf-8", "replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return line.strip()[:300]
        return "it printed nothing"

    def stop(self) -> None:
        """End it and everything below it."""
        pids = self.tree()
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in {*pids, *self.tree()}:
                with suppress(OSError):
                    os.kill(pid, 9)
            self._process.wait(PATIENCE)
