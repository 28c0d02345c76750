"""The load generators and peers in C: compiled on demand into a cache, run on one core, bounded in time."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.process import on_cores

__all__ = ["SOURCES", "compiled", "compiler", "generate"]

SOURCES = Path(__file__).parent / "c"
_FLAGS = ("-O2", "-std=gnu11")
#: Seconds beyond what was asked for: ten thousand connections or a room of a thousand take their time to set up.
PATIENCE = 90.0


def compiler() -> str | None:
    """Return the C compiler's path, if there is one."""
    return shutil.which(os.environ.get("CC") or "cc")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netsvc-benchmarks"


@cache
def compiled(name: str) -> str:
    """Return the path of a program of `benchmarks/c`, compiled if its source is not what it was.

    Raises `BenchError`.
    """
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(
        b"\0".join([source.read_bytes(), (SOURCES / "common.h").read_bytes(), repr(_FLAGS).encode()])
    )
    program = _cache() / f"{name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return str(program)
    command = compiler()
    if command is None:
        raise BenchError("there is no C compiler, and the load generators are written in C: install cc or set CC")
    program.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of its own first: another run may compile the same at the same time.
    fresh = program.with_suffix(f".{os.getpid()}")
    ended = subprocess.run(
        [command, *_FLAGS, "-o", str(fresh), str(source)], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if ended.returncode:
        raise BenchError(f"{command} does not compile {source.name}: {ended.stderr.strip().splitlines()[-1:]}")
    fresh.replace(program)
    return str(program)


class _Lines:
    """Reads a generator's lines, each within a deadline."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._name = name
        self._process = process
        self._rest = b""

    def next(self, patience: float) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise BenchError(f"the generator {self._name} took longer than {patience:.0f} s")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                assert self._process.stderr is not None
                words = self._process.stderr.read().decode("utf-8", "replace").strip()
                raise BenchError(f"the generator {self._name} gave up: {words or 'without a word'}")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def generate(
    name: str,
    words: Sequence[str],
    *,
    cores: Sequence[int],
    seconds: float,
    warm_up: float = 0.3,
    phases: int = 1,
    before: Callable[[], None] = lambda: None,
    after: Callable[[dict[str, Any]], None] = lambda _report: None,
) -> None:
    """Run a generator through its phases.

    `before` is called when it is warm and waits, `after` with its report when the phase is over and the server at
    rest again. Raises `BenchError` with what it or its silence says; it is not running any more then.
    """
    program = compiled(name)
    with on_cores(cores):
        process = subprocess.Popen(
            [program, "--seconds", f"{seconds:g}", "--warm-up", f"{warm_up:g}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
    lines = _Lines(name, process)
    try:
        assert process.stdin is not None
        for _ in range(phases):
            if (line := lines.next(PATIENCE)) != "ready":
                raise BenchError(f"the generator {name} said {line!r} and not that it is ready")
            before()
            process.stdin.write(b"\n")
            after(json.loads(lines.next(PATIENCE + 4 * seconds)))
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
