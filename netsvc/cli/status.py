"""`netsvc status`: shows the state of a running netsvc, live in a terminal, or once as text or JSON."""

from __future__ import annotations

import io
import json
import locale
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from netsvc.base.text import plain
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import CommandTarget, SentCommand, by_pid, find_successor, which_process
from netsvc.control.protocol import query_words, read_statuses
from netsvc.plan.answer import Answer
from netsvc.plan.status import (
    DURATIONS,
    MOST_SHOWN,
    ORDERS,
    ConnectionQuery,
    ConnectionStatus,
    Counts,
    ListenerStatus,
    ProcessStatus,
    Vitals,
    merge,
)

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

__all__ = [
    "STATUS_FIELDS",
    "Follower",
    "Rate",
    "Rates",
    "Snapshot",
    "command",
    "page",
    "show_live",
    "take_snapshot",
    "text_page",
]

#: Seconds between two updates of the live view, and for an answer.
INTERVAL, PATIENCE = 1.0, 5.0
#: Rates that are kept, one for each update: five minutes.
MOST_RATES = 300
#: Seconds. The rate over a shorter time says little.
SHORTEST = 0.5
#: Connections that the live view asks for, and those that text shows.
LIVE_ROWS, TEXT_ROWS = 200, 20
#: What a rate is drawn with, from nothing to the highest, where the terminal has these characters, and where not.
BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"

#: What each name in the JSON is. New names may be added.
STATUS_FIELDS: Mapping[str, str] = {
    "processes": "all processes: one, or with `--workers` the one that holds the ports, and each worker",
    "processes[].version": "version of netsvc",
    "processes[].pid": "process id",
    "processes[].started": "start time, in seconds since the epoch",
    "processes[].worker": "number of the worker; 0 for the only process, or the one that holds the ports",
    "processes[].state": "`starting`, `ready`, `draining` or `stopped`",
    "processes[].not_ready": "a line for each reason why it is not ready",
    "processes[].vitals.delay": "delay of the event loop, last measured",
    "processes[].vitals.worst_delay": "longest delay in the last minute",
    "processes[].vitals.descriptors": "open file descriptors",
    "processes[].vitals.descriptors_limit": "maximum number of file descriptors",
    "processes[].vitals.memory": "resident memory, in bytes",
    "processes[].vitals.cpu": "processor time",
    "processes[].vitals.calls": "pending delayed calls",
    "processes[].listeners": "listeners of this process, as below",
    "processes[].connections": "connections, and sessions of datagram peers",
    "processes[].connections[].id": "identifier of the connection",
    "processes[].connections[].service": "service",
    "processes[].connections[].protocol": "protocol",
    "processes[].connections[].place": "address of the listener",
    "processes[].connections[].kind": "`stream` or `datagram`",
    "processes[].connections[].peer": "address of the peer",
    "processes[].connections[].age": "age",
    "processes[].connections[].bytes_in": "bytes received",
    "processes[].connections[].bytes_out": "bytes sent",
    "processes[].connections[].rate_in": "receive rate since the previous status",
    "processes[].connections[].rate_out": "send rate",
    "processes[].refusals": "last connections refused or ended by a limit, newest last",
    "processes[].refusals[].time": "time, in seconds since the epoch",
    "processes[].refusals[].service": "service",
    "processes[].refusals[].protocol": "protocol",
    "processes[].refusals[].place": "address of the listener",
    "processes[].refusals[].peer": "address of the peer",
    "processes[].refusals[].limit": "name of the limit",
    "processes[].refusals[].action": "`refused` or `ended`; `would have …` for a dry-run limit",
    "processes[].metrics": "metrics of services",
    "processes[].looked": "when the byte counters were last read, by the clock of the process",
    "listeners": "the listeners of all processes, merged",
    "listeners[].service": "service",
    "listeners[].protocol": "protocol",
    "listeners[].place": "address, with the real port",
    "listeners[].kind": "`stream` or `datagram`",
    "listeners[].address": "address as configured",
    "listeners[].up": "whether it is open",
    "listeners[].problem": "reason why it is not open",
    "listeners[].tls": "whether it uses TLS",
    "listeners[].proxy": "whether it requires a PROXY header",
    "listeners[].counts": "counters, as in `totals`",
    "listeners[].limits": "limits in force",
    "listeners[].limits[].name": "name",
    "listeners[].limits[].value": "value, as on the command line",
    "listeners[].limits[].level": "what shares it: `process`, a service, or a listener",
    "listeners[].limits[].chosen": "false for a default",
    "listeners[].limits[].reports": "whether it is a dry-run limit",
    "totals": "counters of all listeners, including processes that have ended",
    "totals.accepted": "accepted connections and sessions",
    "totals.open": "open connections and sessions",
    "totals.bytes_in": "bytes received",
    "totals.bytes_out": "bytes sent",
    "totals.datagrams_in": "datagrams received",
    "totals.datagrams_out": "datagrams sent",
    "totals.dropped": "answers dropped because a buffer of the system was full",
    "totals.errors": "exceptions of protocols",
    "totals.ended": "ended connections, by reason",
    "totals.refused": "refused connections, by limit",
    "totals.reported": "connections that dry-run limits would have refused, by limit",
    "totals.durations": "ended connections, by duration: up to "
    f"{', '.join(f'{each:g}' for each in DURATIONS)} s, and longer",
    "totals.seconds": "sum of these durations",
}

#: `ListenerStatus.key`.
_Key = tuple[str, str, str]


@click.command(name="status", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and exit.")
@click.option("--once", is_flag=True, help="Print text and exit, as without a terminal.")
@click.option(
    "--sort", "order", type=click.Choice(list(ORDERS)), default="rate", show_default=True, help="Order of connections."
)
@click.option(
    "--most",
    type=click.IntRange(0, MOST_SHOWN),
    default=100,
    show_default=True,
    metavar="N",
    help=f"Connections listed in JSON, at most {MOST_SHOWN}.",
)
@which_process(acts=False)
def command(*, target: CommandTarget, words: tuple[str, ...], as_json: bool, once: bool, order: str, most: int) -> None:
    """Show the state of a running process.

    Shows the process, its listeners, connections, traffic and refusals. In a terminal the view is live until Ctrl-C.
    With WORDs, only connections are listed whose peer, service or address contains all of them.

    The JSON object has `processes` (several with --workers), `listeners` of all of them, and `totals`;
    docs/reference/status.md describes each field. The exit status is 1 if no process answers.

    \b
    Examples:
      netsvc status                          live
      netsvc status --once 192.0.2.          connections from this network
      netsvc status --json | jq .totals.open
    """
    if not as_json and not once and _is_terminal():
        show_live(Follower(target), ConnectionQuery(LIVE_ROWS, order, words))
    snapshot, _ = take_snapshot(target, ConnectionQuery(most, order, words))
    if as_json:
        click.echo(json.dumps(snapshot.to_json()))
    else:
        text = text_page(snapshot, order, shutil.get_terminal_size((100, 24)).columns)
        click.echo(text.encode(locale.getencoding(), "backslashreplace"))


def _is_terminal() -> bool:
    return os.environ.get("TERM", "dumb") != "dumb" and sys.stdout is not None and sys.stdout.isatty()


@dataclass(frozen=True)
class Snapshot:
    """The state of all processes of a netsvc at `time`, in seconds of any monotonic clock.

    `listeners` are the listeners of all processes, merged. `totals` includes what ended processes had counted.
    """

    time: float
    processes: list[ProcessStatus]
    listeners: list[ListenerStatus]
    totals: Counts

    @classmethod
    def read(cls, answer: Answer, time: float) -> Snapshot:
        """Read the answer to the command `status`. Raises `ValueError` if it is anything else."""
        processes, departed = read_statuses(answer)
        present = {listener.key for process in processes for listener in process.listeners}
        merged = merge([*processes, ProcessStatus("", 0, 0.0, listeners=departed)])
        totals = Counts()
        for listener in merged:
            totals.add(listener.counts)
        return cls(time, processes, [listener for listener in merged if listener.key in present], totals)

    @property
    def state(self) -> str:
        """The state of all processes, or the least ready one."""
        states = {process.state for process in self.processes}
        return next((state for state in ("draining", "starting", "stopped") if state in states), "ready")

    @property
    def vitals(self) -> Vitals:
        """The vitals of all processes: the longest delays, the fullest descriptor table, the sums of the rest."""
        each = [process.vitals for process in self.processes] or [Vitals()]
        fullest = max(each, key=lambda one: one.descriptors / (one.descriptors_limit or 1))
        return Vitals(
            delay=max(one.delay for one in each),
            worst_delay=max(one.worst_delay for one in each),
            descriptors=fullest.descriptors,
            descriptors_limit=fullest.descriptors_limit,
            memory=sum(one.memory for one in each),
            cpu=sum(one.cpu for one in each),
        )

    def connections(self, order: str) -> list[ConnectionStatus]:
        """List the connections of all processes, in an order of `netsvc.plan.status.ORDERS`."""
        query = ConnectionQuery(sys.maxsize, order)
        return query.pick(each for process in self.processes for each in process.connections)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `netsvc status --json` prints; its names are the same as in `netsvc.plan.status`."""
        whole = ProcessStatus("", 0, 0.0, listeners=[*self.listeners, ListenerStatus("", "", "", "", "")])
        whole.listeners[-1].counts = self.totals
        *listeners, totals = whole.to_json()["listeners"]
        processes = [process.to_json() for process in self.processes]
        return {"processes": processes, "listeners": listeners, "totals": totals["counts"]}


def take_snapshot(target: CommandTarget, query: ConnectionQuery, patience: float = PATIENCE) -> tuple[Snapshot, int]:
    """Ask a process for its status. Return it, and the pid of the process that answered. Raises `ClientError`."""
    with SentCommand(target, f"status {query_words(query)}", patience) as request:
        answer = request.answer(patience)
    if answer.status:
        raise ClientError("\n".join(answer.lines))
    try:
        return Snapshot.read(answer, time.monotonic()), request.pid
    except ValueError:
        raise ClientError(f"{target.shown} reports its status in an unknown form; is it of another version?") from None


class Follower:
    """Takes snapshots of a process, and of the process that replaces it."""

    def __init__(
        self,
        target: CommandTarget,
        *,
        by_pid: Callable[[int], CommandTarget] = by_pid,
        find_successor: Callable[[Set[_Key]], CommandTarget | None] = find_successor,
    ) -> None:
        self._target = target
        self._keys: Set[_Key] = frozenset()
        #: The process of a file that answered last, by its pid.
        self._last: CommandTarget | None = None
        self._by_pid = by_pid
        self._find_successor = find_successor

    def snapshot(self, query: ConnectionQuery) -> Snapshot:
        """Take a snapshot. Raises `ClientError` if no process answers."""
        try:
            snapshot, pid = take_snapshot(self._target, query)
        except ClientError as error:
            other = self._find_other()
            if other is None:
                raise
            try:
                return take_snapshot(other, query)[0]
            except ClientError:
                raise error from None
        if self._target.config is not None and pid:
            self._last = self._by_pid(pid)
        self._keys = {listener.key for listener in snapshot.listeners} or self._keys
        return snapshot

    def _find_other(self) -> CommandTarget | None:
        if self._target.config is not None:
            # A process that drains gives the name of its file to its successor, and answers by its pid.
            return self._last
        # A process that was named by its pid may have given its ports to another one.
        other = self._find_successor(self._keys)
        if other is not None:
            self._target = other
        return other


class Rate(NamedTuple):
    """Bytes a second, in each direction."""

    received: float = 0.0
    sent: float = 0.0


class Rates:
    """The rates between snapshots: the last `MOST_RATES` of all traffic, and the last one of each listener.

    `cpu` is the share of one core that was used.
    """

    def __init__(self) -> None:
        self.totals: deque[Rate] = deque(maxlen=MOST_RATES)
        self.listeners: Mapping[_Key, Rate] = {}
        self.cpu = 0.0
        self._before: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        before = self._before
        if before is None:
            self._before = snapshot
            return
        seconds = snapshot.time - before.time
        if seconds < SHORTEST:
            return
        self._before = snapshot
        self.totals.append(_rate(before.totals, snapshot.totals, seconds))
        counts = {listener.key: listener.counts for listener in before.listeners}
        self.listeners = {
            listener.key: _rate(counts[listener.key], listener.counts, seconds)
            for listener in snapshot.listeners
            if listener.key in counts
        }
        self.cpu = max(0.0, snapshot.vitals.cpu - before.vitals.cpu) / seconds


def _rate(before: Counts, after: Counts, seconds: float) -> Rate:
    # A new process counts from zero.
    return Rate(
        max(0, after.bytes_in - before.bytes_in) / seconds,
        max(0, after.bytes_out - before.bytes_out) / seconds,
    )


def show_live(
    follower: Follower, query: ConnectionQuery, console: Console | None = None, interval: float = INTERVAL
) -> None:
    """Show the state in the terminal, updated every `interval` seconds, until an exception (Ctrl-C) ends it.

    Raises `ClientError` if no process answers at first; later that is shown, and tried again.
    """
    from rich.console import Console
    from rich.live import Live

    if console is None:
        console = Console(highlight=False, emoji=False)
        # An address may have characters that the terminal's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    rates = Rates()
    blocks = BLOCKS if console.encoding.startswith("utf") else ASCII_BLOCKS
    snapshot, problem = follower.snapshot(query), ""
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            rates.add(snapshot)
            live.update(
                page(snapshot, rates, query.order, height=console.height, problem=problem, blocks=blocks), refresh=True
            )
            time.sleep(interval)
            try:
                snapshot, problem = follower.snapshot(query), ""
            except ClientError as error:
                [problem, *_] = str(error).splitlines()


def text_page(snapshot: Snapshot, order: str, width: int) -> str:
    """Return the state as text without control sequences."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(page(snapshot, Rates(), order))
    return "\n".join(map(str.rstrip, capture.get().splitlines()))


def page(
    snapshot: Snapshot,
    rates: Rates,
    order: str,
    *,
    height: int | None = None,
    problem: str = "",
    blocks: str = BLOCKS,
) -> Group:
    """Lay out the state: a summary, and tables of listeners, connections, refusals and processes.

    The tables are shortened to fit into `height` lines. `problem` says why there is no newer snapshot.
    """
    from rich.console import Group
    from rich.text import Text

    def line(text: str, style: str = "") -> Text:
        return Text(plain(text), style, no_wrap=True, overflow="ellipsis")

    head = [line(text, style) for text, style in _head(snapshot, rates, blocks)]
    if problem:
        head.insert(0, line(f"trying again: {problem}", "bold red"))
    connections = snapshot.connections(order)
    refusals = sorted(
        (each for process in snapshot.processes for each in process.refusals), key=lambda each: -each.time
    )
    several = len(snapshot.processes) > 1
    if height is None:
        listeners, most = snapshot.listeners, TEXT_ROWS
        refusals = refusals[:TEXT_ROWS]
        processes = snapshot.processes if several else []
    else:
        # Listeners that are down, and those with the most connections.
        busiest = sorted(snapshot.listeners, key=lambda each: (each.up, -each.counts.open))[: max(1, height // 5)]
        listeners = [each for each in snapshot.listeners if each in busiest]
        # Each table has a blank line and its titles above it; one line is for what is left out below.
        refusals = refusals[: height // 8] if height >= 24 else []
        processes = snapshot.processes[: height // 8] if height >= 30 and several else []
        used = sum(len(rows) + 2 for rows in (listeners, refusals, processes) if rows)
        used += sum(not each.up for each in listeners) + 1
        most = max(1, height - len(head) - used - 3)
    parts: list[Any] = [*head, Text(), _listener_table(listeners, rates)]
    for each in listeners:
        if not each.up:
            parts.append(line(f"{each.service} {each.protocol} {each.place} is down: {each.problem}", "bold red"))
    if len(snapshot.listeners) > len(listeners):
        parts.append(line(f"and {len(snapshot.listeners) - len(listeners)} more listeners"))
    if connections:
        parts += [Text(), _connection_table(snapshot, connections[:most])]
        if (more := snapshot.totals.open - len(connections[:most])) > 0:
            parts.append(line(f"and {more:,} more"))
    if refusals:
        parts += [Text(), _refusal_table(refusals)]
    if processes:
        parts += [Text(), _process_table(processes)]
    return Group(*parts)


def _head(snapshot: Snapshot, rates: Rates, blocks: str) -> Iterable[tuple[str, str]]:
    """Return the lines of the summary, each with its style."""
    processes, totals, vitals = snapshot.processes, snapshot.totals, snapshot.vitals
    if not processes:
        yield "no process reports its state yet", ""
        return
    first = min(processes, key=lambda process: process.worker)
    # Number 0 is not a worker.
    number = sum(process.worker > 0 for process in processes)
    workers = f"  {number} workers" if number else ""
    up = _span(time.time() - min(process.started for process in processes))
    wanting = dict.fromkeys(line for process in processes for line in process.not_ready)
    state = "not ready" if wanting and snapshot.state == "ready" else snapshot.state
    yield (
        f"netsvc {first.version}  {state}  pid {first.pid}{workers}  up {up}",
        "bold green" if state == "ready" else "bold red",
    )
    others = {"would be refused": totals.reported.total(), "errors": totals.errors, "dropped": totals.dropped}
    yield (
        f"open {totals.open:,}  accepted {totals.accepted:,}  refused {_by_limit(totals.refused)}"
        + "".join(f"  {name} {count:,}" for name, count in others.items() if count),
        "",
    )
    for place, (name, amount) in enumerate((("in ", totals.bytes_in), ("out", totals.bytes_out))):
        history = [rate[place] for rate in rates.totals]
        now = f"{_size(history[-1])}/s" if history else ""
        yield f"{name} {_size(amount):>9}  {now:>11}  {_sparkline(history, 60, blocks)}", ""
    cpu = f"  cpu {rates.cpu:.0%}" if rates.totals else ""
    yield (
        f"event loop delay {_milliseconds(vitals.delay)}, worst {_milliseconds(vitals.worst_delay)}"
        f"  memory {_size(vitals.memory)}  files {vitals.descriptors:,} of {vitals.descriptors_limit:,}{cpu}",
        "",
    )
    for line in wanting:
        yield f"not ready: {line}", "bold red"


def _by_limit(refused: Counter[str]) -> str:
    shown = ", ".join(f"{limit} {number:,}" for limit, number in refused.most_common(6))
    return f"{refused.total():,}{f' ({shown})' if shown else ''}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> Table:
    """Make a table. A title with `>` before it has numbers below, one with `*` takes the width that is left."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in titles:
        name = title.lstrip(">*")
        table.add_column(
            name,
            justify="right" if title[0] == ">" else "left",
            ratio=1 if title[0] == "*" else None,
            min_width=8 if title[0] == ">" else len(name),
            no_wrap=True,
            overflow="ellipsis",
        )
    for place, row in enumerate(rows):
        # Never as markup: peers choose a part of it.
        table.add_row(*(Text(plain(cell)) for cell in row), style=styles[place] if styles else None)
    return table


def _listener_table(listeners: Sequence[ListenerStatus], rates: Rates) -> Table:
    def row(each: ListenerStatus) -> Sequence[str]:
        rate = rates.listeners.get(each.key, Rate())
        marks = "".join(f" {name}" for name, has in (("tls", each.tls), ("proxy", each.proxy)) if has)
        return (
            f"{each.service} {each.protocol}",
            f"{each.place}{marks}{'' if each.up else ' is down'}",
            *(f"{number:,}" for number in (each.counts.open, each.counts.accepted, each.counts.refused.total())),
            _size(rate.received),
            _size(rate.sent),
        )

    titles = ("LISTENER", "*ADDRESS", ">OPEN", ">ACCEPTED", ">REFUSED", ">IN/s", ">OUT/s")
    return _table(titles, map(row, listeners), ["" if each.up else "bold red" for each in listeners])


def _connection_table(snapshot: Snapshot, connections: Sequence[ConnectionStatus]) -> Table:
    # An id begins with the pid of the process.
    workers = {str(process.pid): str(process.worker) for process in snapshot.processes}
    several = len(workers) > 1
    titles = ("*PEER", "SERVICE", ">AGE", ">IN", ">OUT", ">IN/s", ">OUT/s", *([">WORKER"] if several else []))
    return _table(
        titles,
        (
            (
                each.peer,
                f"{each.service} {each.protocol}",
                _span(each.age),
                *map(_size, (each.bytes_in, each.bytes_out, each.rate_in, each.rate_out)),
                *([workers.get(each.id.partition("-")[0], "-")] if several else []),
            )
            for each in connections
        ),
    )


def _refusal_table(refusals: Sequence[Any]) -> Table:
    return _table(
        ("TIME", "LISTENER", "*PEER", "ACTION", "LIMIT"),
        (
            (
                time.strftime("%H:%M:%S", time.localtime(each.time)),
                f"{each.service} {each.protocol}",
                each.peer,
                each.action,
                each.limit,
            )
            for each in refusals
        ),
    )


def _process_table(processes: Sequence[ProcessStatus]) -> Table:
    titles = (">WORKER", ">PID", "*STATE", ">OPEN", ">DELAY", ">WORST", ">MEMORY", ">FILES", ">CPU")
    return _table(
        titles,
        (
            (
                str(each.worker) if each.worker else "-",
                str(each.pid),
                each.state,
                f"{each.open:,}",
                _milliseconds(each.vitals.delay),
                _milliseconds(each.vitals.worst_delay),
                _size(each.vitals.memory),
                f"{each.vitals.descriptors:,}",
                _span(each.vitals.cpu),
            )
            for each in sorted(processes, key=lambda each: each.worker)
        ),
    )


def _size(amount: float) -> str:
    from rich.filesize import decimal

    return decimal(int(amount)).replace("bytes", "B").replace("byte", "B")


def _span(seconds: float) -> str:
    """Write a duration with its two largest units: `59s`, `1m00s`, `23h59m`, `99d23h`."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    return f"{minute}m{second:02}s" if minutes else f"{second}s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _sparkline(values: Sequence[float], width: int, blocks: str) -> str:
    """Draw numbers, the newest on the right, in at most `width` characters: each the highest of as many numbers."""
    if not values:
        return ""
    step = -(-len(values) // width)
    # Counted from the newest, so that a column keeps its height.
    heights = [max(values[max(0, end - step) : end]) for end in range(len(values), 0, -step)][::-1]
    highest, steps = max(heights), len(blocks) - 1
    return "".join(blocks[-int(-value * steps // highest)] if value else blocks[0] for value in heights)
