"""The results as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.results import Results
from benchmarks.tables import GENERATOR_BOUND, Table, tables

__all__ = ["report"]


def report(results: Results) -> str:
    """Return the tables, then what was skipped and what failed."""
    blocks = ["\n".join(_lines(table)) for table in tables(results)]
    if any(GENERATOR_BOUND in block for block in blocks):
        blocks.append(f"{GENERATOR_BOUND} the generator's limit, not the server's")
    ends = [f"skipped: {peer}: {reason}" for peer, reason in results.skipped.items()]
    ends += [f"failed: {line}" for line in results.failures]
    return "\n\n".join([*blocks, *(["\n".join(ends)] if ends else [])])


def _lines(table: Table) -> Iterator[str]:
    better = "more is better" if table.phase.higher_is_better else "less is better"
    yield f"{table.phase.title} ({better})"
    grid = [table.headings, *(table.cells(row) for row in table.rows)]
    widths = [max(len(line[place]) for line in grid) for place in range(len(table.headings))]
    for line in grid:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        yield "  " + "  ".join(cells).rstrip()
    for note in table.notes:
        yield f"  {note}"
