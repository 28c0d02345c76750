"""Runs the cases: the servers of each in turn within a round, round after round."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Measure, Phase
from benchmarks.errors import BenchError
from benchmarks.files import BOOT, LARGE, MIDDLE, SMALL, make_file
from benchmarks.generators import generate
from benchmarks.process import Running, free_port
from benchmarks.results import Reading, Results
from benchmarks.servers import Server, Site, from_checkout, start

__all__ = ["Contest", "chosen_servers"]


def chosen_servers(case: Case, only: Sequence[str], against: Path | None = None) -> tuple[Server, ...]:
    """Return the servers of a case that were asked for; netsvc always, for there would be no ratio without it.

    `against` is another checkout: its netsvc comes next to this one.
    """
    first, *others = case.servers
    chosen = [server for server in others if not only or server.peer in only]
    return (first, *([from_checkout(first, against)] if against else []), *chosen)


@dataclass
class _Up:
    """A server that is up."""

    running: Running
    site: Site
    seconds: float


@dataclass
class Contest:
    """A run of `rounds` rounds, each measurement `seconds` long, with its files in `directory`.

    `say` gets a line for whatever is to be told while it runs.
    """

    directory: Path
    rounds: int
    seconds: float
    say: Callable[[str], None]
    results: Results = field(default_factory=Results)

    _numbers: Iterator[int] = field(default_factory=count)

    def run(self, case: Case, servers: Sequence[Server]) -> None:
        """Measure one case. What goes wrong is a line in `results.failures`, and the next peer goes on."""
        present = [server for server in servers if not self._skip(case, server)]
        with ExitStack() as stack:
            up: dict[str, _Up] = {}
            for number in range(self.rounds):
                shift = number % max(len(present), 1)
                # Who is first in one round is last in the next: none has always the same neighbour.
                for server in present[shift:] + present[:shift]:
                    self.say(f"{case.name}: round {number + 1} of {self.rounds}: {server.peer}")
                    try:
                        self._measure(case, server, number, up, stack)
                    except BenchError as error:
                        self._fail(f"{case.name}: {server.peer}: {error}")

    def _skip(self, case: Case, server: Server) -> bool:
        reason = server.absent()
        if reason and server.peer not in self.results.skipped:
            self.results.skipped[server.peer] = reason
            self.say(f"{case.name}: {server.peer} is skipped: {reason}")
        return bool(reason)

    def _fail(self, line: str) -> None:
        if line not in self.results.failures:
            self.results.failures.append(line)
        self.say(line)

    def _measure(self, case: Case, server: Server, number: int, up: dict[str, _Up], stack: ExitStack) -> None:
        if case.fresh:
            with self._started(case, server) as fresh:
                self._load(case, server, number, fresh)
            return
        if server.peer in up and not up[server.peer].running.alive:
            died = up.pop(server.peer).running
            self._fail(f"{case.name}: {server.peer} died: {died.last_words()}")
        if server.peer not in up:
            up[server.peer] = stack.enter_context(self._started(case, server))
        self._load(case, server, number, up[server.peer])

    @contextmanager
    def _started(self, case: Case, server: Server) -> Iterator[_Up]:
        directory = self.directory / f"{case.name}-{next(self._numbers)}"
        directory.mkdir()
        # Servers that give up root write here as another user.
        directory.chmod(0o777)
        site = Site(free_port(), directory, self._root(case))
        cores = sorted(os.sched_getaffinity(0))
        running, seconds = start(server, site, cores[: server.cores] if len(cores) > server.cores else cores[:1])
        try:
            yield _Up(running, site, seconds)
        finally:
            running.stop()

    def _root(self, case: Case) -> Path:
        root = self.directory / "root"
        root.mkdir(exist_ok=True)
        for name, size in (SMALL, MIDDLE, BOOT, LARGE):
            # The larger ones take their time: only for who asks for them.
            if not (root / name).exists() and (size == SMALL[1] or name in case.words):
                make_file(root / name, size)
        return root

    def _load(self, case: Case, server: Server, number: int, up: _Up) -> None:
        if not case.generator:
            [phase] = case.phases
            once = {"operations": 1, "seconds": up.seconds}
            self._note(phase, server, number, once, value=up.seconds, cpu=0.0, memory=up.running.memory())
            return
        idle_memory = up.running.memory()
        cpu = 0.0
        held = 0
        phases = iter(case.phases)

        def before() -> None:
            nonlocal cpu, held
            held = up.running.memory()
            cpu = up.running.cpu()

        def after(report: dict[str, Any]) -> None:
            used = up.running.cpu() - cpu
            phase = next(phases)
            value = {
                Measure.RATE: report["operations"] / max(report["seconds"], 1e-9),
                Measure.TAIL: report["p99_us"],
                Measure.MEMORY: (held - idle_memory) / max(report["operations"], 1),
            }[phase.measure]
            self._note(phase, server, number, report, value=value, cpu=used, memory=up.running.memory())

        try:
            generate(
                case.generator,
                ("--port", str(up.site.port), *case.words, *server.dialect),
                cores=sorted(os.sched_getaffinity(0))[-1:],
                seconds=self.seconds,
                warm_up=min(0.3, self.seconds),
                phases=len(case.phases),
                before=before,
                after=after,
            )
        except BenchError as error:
            dead = "" if up.running.alive else f"; the server is dead: {up.running.last_words()}"
            raise BenchError(f"{error}{dead}") from None

    def _note(
        self,
        phase: Phase,
        server: Server,
        number: int,
        report: dict[str, Any],
        *,
        value: float,
        cpu: float,
        memory: int,
    ) -> None:
        seconds = max(report["seconds"], 1e-9)
        self.results.readings.append(
            Reading(
                case=phase.key,
                peer=server.peer,
                round=number,
                value=value * phase.scale,
                operations=report["operations"],
                seconds=seconds,
                p50_us=report.get("p50_us", 0.0),
                p99_us=report.get("p99_us", 0.0),
                server_cpu=cpu,
                generator_cpu=report.get("cpu_s", 0.0),
                memory=memory,
                lost=report.get("lost", 0),
                background=report.get("background_bytes", 0) / seconds,
            )
        )
