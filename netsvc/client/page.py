"""Lays a look at a running netsvc out as text: the lines at the top, and the tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from netsvc.client.figures import BLOCKS, Column, count, delay, fit, row, size, span, sparkline, titles
from netsvc.client.summary import Look, Rate, Rates
from netsvc.status import ConnectionStatus, ListenerStatus, ProcessStatus, RefusalStatus

__all__ = ["GOOD", "HEAD", "PLAIN", "PROBLEM", "Styled", "Table", "head", "listener_line", "page", "tables"]

#: How a line looks, in words of prompt_toolkit's. None needs a colour to be understood.
PLAIN, HEAD, GOOD, PROBLEM = "", "bold", "bold ansigreen", "bold ansired"
#: A style, and a line.
Styled = tuple[str, str]
#: Columns, and the row that each thing in the list is.
Table = tuple[Sequence[Column[Any]], Sequence[Any]]

#: Connections, and refusals, that a page shows at most.
MOST_ROWS = 20
#: What a page without a terminal is wide.
_WIDTH = 100


def head(look: Look, rates: Rates, width: int, blocks: str = BLOCKS) -> list[Styled]:
    """Say how it is, how much comes and goes, and who was refused: five lines, and one for each want."""
    processes, totals, vitals = look.processes, look.totals, look.vitals
    first = min(processes, key=lambda process: process.worker)
    # The process that holds their ports is no worker.
    number = sum(process.worker > 0 for process in processes)
    workers = f"  {number} workers" if number else ""
    up = span(time.time() - min(process.started for process in processes))
    wanting = dict.fromkeys(line for process in processes for line in process.not_ready)
    state = "not ready" if wanting and look.state == "ready" else look.state
    title = f"netsvc {first.version}  {state}  pid {first.pid}{workers}  up {up}"
    numbers = f"open {count(totals.open)}  accepted {count(totals.accepted)}  refused {_reasons(totals.refused)}"
    numbers += _unless_zero(would_be_refused=totals.reported.total(), errors=totals.errors, dropped=totals.dropped)
    own = f"event loop late {delay(vitals.delay)}, worst {delay(vitals.worst_delay)}"
    own += f"  memory {size(vitals.memory)}  files {count(vitals.descriptors)} of {count(vitals.descriptors_limit)}"
    own += f"  cpu {rates.cpu:.0%}" if rates.totals else ""
    return [
        (GOOD if state == "ready" else PROBLEM, title),
        (PLAIN, numbers),
        *(
            (PLAIN, _flow(name, amount, [rate[place] for rate in rates.totals], width, blocks))
            for place, (name, amount) in enumerate((("in ", totals.bytes_in), ("out", totals.bytes_out)))
        ),
        (PLAIN, own),
        *((PROBLEM, f"not ready: {line}") for line in wanting),
    ]


def _flow(name: str, amount: int, rates: Sequence[float], width: int, blocks: str) -> str:
    now = f"{size(rates[-1])}/s" if rates else ""
    return f"{name} {size(amount):>7}  {now:>9}  {sparkline(rates, min(60, width - 26), blocks)}"


def _reasons(refused: Counter[str]) -> str:
    shown = ", ".join(f"{limit} {count(number)}" for limit, number in refused.most_common(6))
    return f"{count(refused.total())}{f' ({shown})' if shown else ''}"


def _unless_zero(**numbers: int) -> str:
    return "".join(f"  {name.replace('_', ' ')} {count(number)}" for name, number in numbers.items() if number)


def _listeners(rates: Rates) -> Sequence[Column[ListenerStatus]]:
    def rate(each: ListenerStatus) -> Rate:
        return rates.listeners.get(each.key, Rate())

    return (
        Column("LISTENER", 14, lambda each: f"{each.service} {each.protocol}"),
        Column("PLACE", 0, _place),
        Column("OPEN", 7, lambda each: count(each.counts.open), right=True),
        Column("ACCEPTED", 10, lambda each: count(each.counts.accepted), right=True),
        Column("REFUSED", 9, lambda each: count(each.counts.refused.total()), right=True),
        Column("IN/s", 7, lambda each: size(rate(each).received), right=True),
        Column("OUT/s", 7, lambda each: size(rate(each).sent), right=True),
    )


def _place(each: ListenerStatus) -> str:
    marks = "".join(f" {name}" for name, there in (("tls", each.tls), ("proxy", each.proxy)) if there)
    return f"{each.place}{marks}{'' if each.up else ' is down'}"


def listener_line(columns: Sequence[Column[ListenerStatus]], each: ListenerStatus, width: int) -> Styled:
    """Write the row of a listener, or what is wrong with it."""
    if each.up:
        return PLAIN, row(columns, each, width)
    return PROBLEM, fit(f"{each.service} {each.protocol} {_place(each)}: {each.problem}", width)


def _connections(look: Look) -> Sequence[Column[ConnectionStatus]]:
    # An id begins with the number of the process.
    workers = {str(process.pid): str(process.worker) for process in look.processes}
    worker = Column[ConnectionStatus]("W", 3, lambda each: workers.get(each.id.partition("-")[0], "-"), right=True)
    return (
        Column("PEER", 0, lambda each: each.peer),
        Column("SERVICE", 12, lambda each: f"{each.service} {each.protocol}"),
        Column("AGE", 6, lambda each: span(each.age), right=True),
        Column("IN", 7, lambda each: size(each.bytes_in), right=True),
        Column("OUT", 7, lambda each: size(each.bytes_out), right=True),
        Column("IN/s", 7, lambda each: size(each.rate_in), right=True),
        Column("OUT/s", 7, lambda each: size(each.rate_out), right=True),
        *([worker] if len(look.processes) > 1 else []),
    )


_REFUSALS: Sequence[Column[RefusalStatus]] = (
    Column("TIME", 8, lambda each: time.strftime("%H:%M:%S", time.localtime(each.time))),
    Column("LISTENER", 14, lambda each: f"{each.service} {each.protocol}"),
    Column("PEER", 0, lambda each: each.peer),
    Column("WHAT", 20, lambda each: each.action),
    Column("LIMIT", 12, lambda each: each.limit),
)

_PROCESSES: Sequence[Column[ProcessStatus]] = (
    Column("WORKER", 6, lambda each: str(each.worker) if each.worker else "-", right=True),
    Column("PID", 7, lambda each: str(each.pid), right=True),
    Column("STATE", 0, lambda each: each.state),
    Column("OPEN", 9, lambda each: count(each.open), right=True),
    Column("LATE", 7, lambda each: delay(each.vitals.delay), right=True),
    Column("WORST", 7, lambda each: delay(each.vitals.worst_delay), right=True),
    Column("MEMORY", 7, lambda each: size(each.vitals.memory), right=True),
    Column("FILES", 9, lambda each: count(each.vitals.descriptors), right=True),
    Column("CPU", 8, lambda each: span(each.vitals.cpu), right=True),
)


def tables(look: Look, rates: Rates, order: str) -> Mapping[str, Table]:
    """Make the tables by their names: `connections` in an order, `listeners`, `refusals` newest first, `processes`."""
    refusals = [each for process in look.processes for each in process.refusals]
    return {
        "connections": (_connections(look), look.connections(order)),
        "listeners": (_listeners(rates), look.listeners),
        "refusals": (_REFUSALS, sorted(refusals, key=lambda each: -each.time)),
        "processes": (_PROCESSES, sorted(look.processes, key=lambda each: each.worker)),
    }


def page(look: Look, order: str, width: int = _WIDTH) -> str:
    """Lay all of it out once."""
    shown = tables(look, Rates(), order)
    columns, listeners = shown["listeners"]
    lines = [line for _, line in head(look, Rates(), width)]
    lines += ["", titles(columns, width), *(listener_line(columns, each, width)[1] for each in listeners)]
    for name in ("connections", "refusals", *(["processes"] if len(look.processes) > 1 else [])):
        columns, rows = shown[name]
        if rows:
            lines += ["", titles(columns, width), *(row(columns, each, width) for each in rows[:MOST_ROWS])]
        if name == "connections" and (more := look.totals.open - len(rows[:MOST_ROWS])) > 0:
            lines.append(f"… {count(more)} more")
    return "\n".join(map(str.rstrip, lines))
