"""Rows of results as cells of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import CASES, Case, Measure, Phase
from benchmarks.results import Results, Row, Spread

__all__ = ["GENERATOR_BOUND", "Table", "cpu_per", "figure", "tables"]

#: From here on a core counts as full.
_FULL = 0.9
#: What marks a row whose server had time left while the generator had none.
GENERATOR_BOUND = "†"


@dataclass(frozen=True)
class Table:
    """The results of one phase of a case; `control` compares a server with its own second copy, where there is one."""

    case: Case
    phase: Phase
    rows: list[Row]
    control: str | None

    @property
    def headings(self) -> list[str]:
        """The heads of the columns."""
        measured = ["", "ratio", "range", self.phase.unit]
        if self.phase.measure in (Measure.MEMORY, Measure.START):
            return [*measured, "MiB in all"]
        cpu = f"CPU s/{self.phase.per_name}"
        common = ["p50", "p99", cpu, "CPU ratio", "generator's", "busy", "MiB"]
        if self.phase.measure is Measure.TAIL:
            return [*measured, "p50", "downloads/s", "beside them GiB/s", "busy", "MiB"]
        return [*measured, *common]

    def cells(self, row: Row) -> list[str]:
        """The text of one row."""
        measured = [_name(row), _ratio(row.ratio), _range(row.ratio), figure(row.value.median)]
        memory = figure(row.memory / 2**20)
        if self.phase.measure in (Measure.MEMORY, Measure.START):
            return [*measured, memory]
        busy = f"{row.server_busy:.0%} / {row.generator_busy:.0%}"
        if self.phase.measure is Measure.TAIL:
            served = row.rate.median
            return [*measured, _time(row.p50_us), figure(served), figure(row.background / 2**30), busy, memory]
        return [
            *measured,
            _time(row.p50_us),
            _time(row.p99_us),
            figure(cpu_per(row, self.phase)),
            _ratio(row.cpu_ratio),
            figure(row.generator_cpu * self.phase.per),
            busy,
            memory,
        ]

    @property
    def notes(self) -> list[str]:
        """The notes below the table."""
        lost = [f"{row.peer} lost {row.lost:,} datagrams in all" for row in self.rows if row.lost]
        return [*lost, *([self.control] if self.control else [])]


def cpu_per(row: Row, phase: Phase) -> float:
    """Return the server's CPU seconds for as many operations as the phase counts by."""
    return row.server_cpu.median * phase.per


def tables(results: Results) -> Iterator[Table]:
    """Sum up every phase that was measured."""
    measured = set(results.cases())
    for case in CASES:
        for phase in case.phases:
            if phase.key in measured:
                peers = results.peers(phase.key)
                # In the order of the case, as a round begins with another peer each time; a netsvc of another
                # checkout is none of the case's.
                known = {server.peer: number for number, server in enumerate(case.servers)}
                order = sorted(peers, key=lambda peer: known.get(peer, 0.5))
                rows = [results.row(phase.key, peer, case.base) for peer in order]
                yield Table(case, phase, rows, _control(case, phase, results))


def _control(case: Case, phase: Phase, results: Results) -> str | None:
    for server in case.servers:
        if server.control and (ratio := results.ratio(phase.key, server.peer, server.control)):
            return f"{server.control} against itself: {_ratio(ratio)} ({_range(ratio)})"
    return None


def _name(row: Row) -> str:
    bound = row.generator_busy >= _FULL > row.server_busy
    return f"{row.peer} {GENERATOR_BOUND}" if bound else row.peer


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}" if ratio else ""


def _range(ratio: Spread | None) -> str:
    return f"{ratio.lowest:.2f} to {ratio.highest:.2f}" if ratio else ""


def figure(number: float) -> str:
    """Write a number with three digits that count, or all of a large one."""
    if number >= 100 or number == 0:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _time(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{figure(microseconds / 1e6)} s"
    if microseconds >= 1e3:
        return f"{figure(microseconds / 1e3)} ms"
    return f"{figure(microseconds)} µs"
