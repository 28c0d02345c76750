"""Draws the results as SVG: one file for each group of cases, a bar for each peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.results import Results, Row
from benchmarks.tables import Table, cpu_per, figure, tables

__all__ = ["GROUPS", "Group", "draw", "load_pyplot"]

_OURS = "#2f6db5"
_OTHERS = "#b8bec6"


@dataclass(frozen=True)
class Group:
    """One chart: its file's name, its title, its tables by their keys, and what the bars show."""

    name: str
    title: str
    keys: tuple[str, ...]
    cpu: bool = False

    def length(self, table: Table, row: Row) -> float:
        """Return how long the bar of a row is."""
        return cpu_per(row, table.phase) if self.cpu else row.value.median

    def axis(self, table: Table) -> str:
        """Return what the lengths are."""
        if self.cpu:
            return f"server CPU s/{table.phase.per_name}, less is better"
        return f"{table.phase.unit}, {'more' if table.phase.higher_is_better else 'less'} is better"


_CHAT = ("chat-100-1", "chat-100-64", "chat-1000-1", "chat-1000-64")

GROUPS = (
    Group("echo", "TCP echo", ("echo-64", "echo-1k", "echo-64k", "connect")),
    Group("datagrams", "UDP echo", ("udp-64", "udp-1400")),
    Group("files", "Downloads", ("file-1g", "file-4k", "file-mixed")),
    Group("http", "Downloads over HTTP", ("http-1g", "http-4k", "http-4k-new", "http-mixed", "https-16m")),
    Group("tftp", "TFTP", ("tftp-1428", "tftp-512")),
    Group("chat", "Chat", _CHAT),
    Group("chat-cpu", "Chat: what a delivery costs", _CHAT, cpu=True),
    Group("process", "Memory and start-up", ("idle", "http-stalled", "start")),
    Group("workers", "One worker and two", ("workers",), cpu=True),
)


def load_pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw files. Raises `BenchError` if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise BenchError("the charts need matplotlib: pip install 'netsvc[bench]'") from None
    # Draws to files: no display is needed. The salt makes the same results the same file.
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "netsvc"
    # Text as text: a third of the size, and it can be searched.
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def draw(results: Results, directory: Path, say: Callable[[str], None] = lambda _line: None) -> list[Group]:
    """Draw every group that has results; return those. Raises `BenchError` without matplotlib."""
    pyplot = load_pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    found = {table.phase.key: table for table in tables(results)}
    drawn = []
    for group in GROUPS:
        chosen = [found[key] for key in group.keys if key in found]
        if chosen:
            _draw_group(pyplot, group, chosen, directory / f"{group.name}.svg")
            say(f"drawn: {group.name}.svg")
            drawn.append(group)
    return drawn


def _draw_group(pyplot: Any, group: Group, chosen: Sequence[Table], path: Path) -> None:
    columns = min(2, len(chosen))
    lines = -(-len(chosen) // columns)
    tallest = max(len(table.rows) for table in chosen)
    shape, axes = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, (0.34 * tallest + 1.1) * lines), squeeze=False, layout="constrained"
    )
    for place, plot in enumerate(axes.flat):
        if place < len(chosen):
            _draw_table(plot, group, chosen[place])
        else:
            plot.set_axis_off()
    shape.suptitle(group.title, fontweight="bold")
    shape.savefig(path, metadata={"Date": None})
    pyplot.close(shape)


def _draw_table(plot: Any, group: Group, table: Table) -> None:
    rows = table.rows[::-1]
    lengths = [group.length(table, row) for row in rows]
    scale = table.phase.per if group.cpu else 1.0
    spreads = [row.server_cpu if group.cpu else row.value for row in rows]
    errors = [
        [max(0.0, length - spread.lowest * scale) for length, spread in zip(lengths, spreads, strict=True)],
        [max(0.0, spread.highest * scale - length) for length, spread in zip(lengths, spreads, strict=True)],
    ]
    colours = [_OURS if row.peer.startswith(table.case.base) else _OTHERS for row in rows]
    plot.barh([row.peer for row in rows], lengths, xerr=errors, color=colours, error_kw={"lw": 1, "capsize": 2})
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        end = max(length, (row.server_cpu if group.cpu else row.value).highest * scale)
        plot.annotate(figure(length), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    plot.set_xlim(0, max(1e-12, *(spread.highest * scale for spread in spreads), *lengths) * 1.18)
    plot.set_title(table.phase.title, fontsize=9, loc="left")
    plot.set_xlabel(group.axis(table), fontsize=8)
    plot.tick_params(labelsize=8)
    plot.locator_params(axis="x", nbins=5)
    plot.xaxis.set_major_formatter(lambda number, _place: f"{number:,.10g}")
    plot.spines[["top", "right"]].set_visible(False)
