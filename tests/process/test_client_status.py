"""What `netsvc status` writes once, and how rates come of looks."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from netsvc.cli import processes
from netsvc.cli import status as client
from netsvc.cli.errors import ClientError
from netsvc.cli.status import (
    ASCII_BLOCKS,
    MOST_RATES,
    TEXT_ROWS,
    Follower,
    Rate,
    Rates,
    Snapshot,
    page,
    show_live,
    take_snapshot,
    text_page,
)
from netsvc.plan.answer import Answer
from netsvc.plan.status import ConnectionQuery, Counts, ProcessStatus, Vitals
from tests.builders.client_peer import OnTerminal
from tests.builders.looks import ECHO, answering, connection, control_names, process, status, unused_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")

ALL = ConnectionQuery()


def seen(*processes: ProcessStatus, time: float = 0.0, **answer: Any) -> Snapshot:
    return Snapshot.read(status(*processes, **answer), time)


def counted(bytes_in: int, bytes_out: int, **fields: Any) -> ProcessStatus:
    return process(listeners=[replace(ECHO, counts=Counts(bytes_in=bytes_in, bytes_out=bytes_out))], **fields)


class TestSnapshot:
    def test_listeners_of_all_processes_are_one(self) -> None:
        one = seen(process(1), process(2))
        assert [(each.service, each.counts.accepted, each.up) for each in one.listeners] == [
            ("echo", 24690, True),
            ("chat", 0, False),
        ]
        assert one.totals.refused == Counter(rate=6, peer=2)

    def test_totals_have_what_processes_that_ended_have_counted(self) -> None:
        gone = replace(ECHO, place="127.0.0.1:9")
        one = seen(process(), departed=[ECHO, gone])
        assert one.totals.accepted == 3 * 12345
        assert [each.counts.accepted for each in one.listeners] == [2 * 12345, 0]

    @pytest.mark.parametrize(
        ("states", "state"),
        [
            (["ready", "ready"], "ready"),
            (["ready", "draining"], "draining"),
            (["starting", "ready"], "starting"),
            ([], "ready"),
        ],
    )
    def test_its_state_is_the_one_that_matters(self, states: list[str], state: str) -> None:
        assert seen(*(process(n, state=each) for n, each in enumerate(states))).state == state

    def test_vitals_are_the_worst_or_the_sum(self) -> None:
        one = seen(process(1), process(2, vitals=Vitals(0.5, 0.6, 900, 1000, 1, 2.0)))
        assert one.vitals == Vitals(0.5, 0.6, 900, 1000, 54_000_001, 12.0)
        assert seen().vitals == Vitals()

    def test_as_json_it_has_processes_listeners_and_totals(self) -> None:
        one = seen(process(1, [connection(1, 1)]), departed=[ECHO])
        written = json.loads(json.dumps(one.to_json()))
        assert list(written) == ["processes", "listeners", "totals"]
        assert written["processes"][0]["connections"][0]["peer"] == "192.0.2.1:5000"
        assert written["listeners"][0]["counts"]["refused"] == {"rate": 6, "peer": 2}
        assert written["totals"]["accepted"] == 24690

    def test_connections_of_all_are_in_one_order(self) -> None:
        one = seen(process(1, [connection(1, 1), connection(4, 1)]), process(2, [connection(3, 2)]))
        assert [each.id for each in one.connections("age")] == ["4243-4", "4244-3", "4243-1"]
        assert [each.id for each in one.connections("new")] == ["4243-1", "4244-3", "4243-4"]


class TestRates:
    def test_are_what_came_between_two_looks(self) -> None:
        rates = Rates()
        rates.add(seen(counted(100, 0), time=10.0))
        assert not rates.totals
        rates.add(seen(counted(300, 50, vitals=Vitals(cpu=11.0)), time=12.0))
        assert list(rates.totals) == [Rate(100.0, 25.0)]
        assert rates.listeners == {ECHO.key: Rate(100.0, 25.0)}
        assert rates.cpu == 0.5

    def test_of_a_new_process_are_not_below_zero(self) -> None:
        rates = Rates()
        rates.add(seen(counted(1000, 1000), time=1.0))
        rates.add(seen(counted(10, 10, vitals=Vitals()), time=2.0))
        assert list(rates.totals) == [Rate()]
        assert rates.cpu == 0.0

    def test_of_a_moment_are_not_counted(self) -> None:
        rates = Rates()
        rates.add(seen(counted(0, 0), time=1.0))
        rates.add(seen(counted(10**9, 0), time=1.001))
        rates.add(seen(counted(200, 0), time=2.0))
        assert list(rates.totals) == [Rate(200.0, 0.0)]

    def test_of_a_new_listener_are_unknown(self) -> None:
        rates = Rates()
        rates.add(seen(process(listeners=[]), time=1.0))
        rates.add(seen(counted(10, 10), time=2.0))
        assert rates.listeners == {}

    def test_are_kept_for_some_minutes(self) -> None:
        rates, one = Rates(), seen(process())
        for second in range(MOST_RATES + 10):
            rates.add(replace(one, time=float(second)))
        assert len(rates.totals) == MOST_RATES


def text(snapshot: Snapshot, width: int = 80, **options: Any) -> list[str]:
    """Draw a page as it is on a terminal of this width, without its styles."""
    console = Console(file=io.StringIO(), width=width)
    console.print(page(snapshot, options.pop("rates", Rates()), "rate", **options))
    return cast(io.StringIO, console.file).getvalue().splitlines()


def table(lines: list[str], *titles: str) -> list[list[str]]:
    """Return the rows, in words, below the line with these titles."""
    start = [line.split() for line in lines].index([*titles])
    return [line.split() for line in itertools.takewhile(str.strip, lines[start + 1 :])]


LISTENERS = ("LISTENER", "ADDRESS", "OPEN", "ACCEPTED", "REFUSED", "IN/s", "OUT/s")
CONNECTIONS = ("PEER", "SERVICE", "AGE", "IN", "OUT", "IN/s", "OUT/s")
REFUSALS = ("TIME", "LISTENER", "PEER", "ACTION", "LIMIT")
PROCESSES = ("WORKER", "PID", "STATE", "OPEN", "DELAY", "WORST", "MEMORY", "FILES", "CPU")


class TestPage:
    def test_has_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time", lambda: 1090.0)
        monkeypatch.setattr(time, "localtime", time.gmtime)
        shown = text_page(
            seen(process(0, [connection(1, rate_in=5), connection(2)], not_ready=["chat line is down"])), "rate", 100
        )
        lines = shown.splitlines()
        assert lines[0].split() == ["netsvc", "1.2", "not", "ready", "pid", "4242", "up", "1m30s"]
        assert lines[1] == "open 2  accepted 12,345  refused 4 (rate 3, peer 1)"
        assert [line.split() for line in lines[2:4]] == [["in", "5.0", "kB"], ["out", "7.0", "kB"]]
        for fact in ("0.3 ms", "12.0 ms", "54.0 MB", "40 of 1,024"):
            assert fact in lines[4]
        assert lines[5].endswith("chat line is down")
        assert table(lines, *LISTENERS) == [
            ["echo", "tcp", "127.0.0.1:9001", "2", "12,345", "4", "0", "B", "0", "B"],
            ["chat", "line", "[::]:9002", "tls", "proxy", "is", "down", "0", "0", "0", "0", "B", "0", "B"],
            ["chat", "line", "[::]:9002", "is", "down:", "it", "is", "\\x1b[2J", "gone"],
        ]
        assert table(lines, *CONNECTIONS) == [
            ["192.0.2.1:5000", "echo", "tcp", "1m00s", "10", "B", "20", "B", "5", "B", "0", "B"],
            ["192.0.2.2:5000", "echo", "tcp", "2m00s", "10", "B", "20", "B", "0", "B", "0", "B"],
        ]
        assert table(lines, *REFUSALS) == [["00:00:00", "echo", "tcp", "192.0.2.9:1", "refused", "rate"]]
        assert not any(line.split() == [*PROCESSES] for line in lines)
        assert shown == "\n".join(map(str.rstrip, lines))

    def test_of_several_processes_has_a_table_of_them(self) -> None:
        lines = text_page(
            seen(process(1, [connection(1, 1)]), process(2, [connection(2, 2)])), "rate", 100
        ).splitlines()
        assert lines[0].split()[:7] == ["netsvc", "1.2", "ready", "pid", "4243", "2", "workers"]
        assert [row[-1] for row in table(lines, *CONNECTIONS, "WORKER")][:2] == ["1", "2"]
        assert table(lines, *PROCESSES)[1] == [
            "2",
            "4244",
            "ready",
            "2",
            "0.3",
            "ms",
            "12.0",
            "ms",
            "54.0",
            "MB",
            "42",
            "10s",
        ]

    def test_says_how_many_connections_it_leaves_out(self) -> None:
        connections = [connection(number) for number in range(TEXT_ROWS + 5)]
        listener = replace(ECHO, counts=Counts(open=1000, errors=2, dropped=3, reported=Counter(rate=4)))
        one = seen(process(0, connections, listeners=[listener], refusals=[]))
        lines = text_page(one, "age", 100).splitlines()
        assert lines[-1] == "and 980 more"
        assert len(table(lines, *CONNECTIONS)) == TEXT_ROWS + 1
        assert "would be refused 4  errors 2  dropped 3" in lines[1]

    @settings(max_examples=20, deadline=None)
    @given(st.integers(40, 250), st.integers(16, 80), st.integers(0, 100), st.integers(1, 40), st.integers(0, 4))
    def test_fits_any_terminal(self, width: int, height: int, peers: int, listeners: int, workers: int) -> None:
        ports = [replace(ECHO, place=f"127.0.0.1:{port}") for port in range(1, listeners + 1)]
        connections = [connection(number) for number in range(peers)]
        snapshot = seen(*(process(number, connections, listeners=ports) for number in range(workers + 1)))
        lines = text(snapshot, width, height=height)
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width

    def test_a_listener_that_is_down_is_among_the_few_for_which_there_is_room(self) -> None:
        ports = [replace(ECHO, place=f"127.0.0.1:{port}") for port in range(1, 40)]
        ports[30] = replace(ports[30], up=False, problem="gone")
        lines = text(seen(process(0, [connection(1)], listeners=ports)), height=24)
        assert ["echo", "tcp", "127.0.0.1:31", "is", "down:", "gone"] in [line.split() for line in lines]
        assert any("35 more" in line for line in lines)
        assert table(lines, *CONNECTIONS)

    def test_nothing_that_a_peer_chose_is_markup_or_a_control_character(self) -> None:
        peer = "[red]\x1b[2J[/red]\u202e:smile:"
        lines = text(seen(process(0, [connection(1, peer=peer)])), 120)
        assert table(lines, *CONNECTIONS)[0][0] == "[red]\\x1b[2J[/red]\\x202e:smile:"

    def test_the_rates_of_the_last_minutes_are_drawn(self) -> None:
        rates = Rates()
        for second, amount in enumerate((0, 1000, 5000, 13000)):
            rates.add(seen(counted(amount, 0), time=float(second)))
        received, sent = (line.split() for line in text(seen(process()), rates=rates)[2:4])
        assert received == ["in", "5.0", "kB", "8.0", "kB/s", "▁▄█"]
        assert sent == ["out", "7.0", "kB", "0", "B/s"]
        assert text(seen(process()), rates=rates, blocks=ASCII_BLOCKS)[2].endswith(" .=@")

    def test_without_a_process_says_so(self) -> None:
        assert len(text(seen())[0]) > 10


class Script:
    """A follower whose snapshots, and errors, are listed; then the user presses Ctrl-C."""

    def __init__(self, *results: Snapshot | ClientError) -> None:
        self.results = [*results]
        self.asked: list[ConnectionQuery] = []

    def snapshot(self, query: ConnectionQuery) -> Snapshot:
        self.asked.append(query)
        if not self.results:
            raise KeyboardInterrupt
        result = self.results.pop(0)
        if isinstance(result, ClientError):
            raise result
        return result


class TestLive:
    def show(self, *results: Snapshot | ClientError) -> str:
        console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="standard")
        self.script = Script(*results)
        with pytest.raises(KeyboardInterrupt):
            show_live(cast(Follower, self.script), ConnectionQuery(7, "age", ("a",)), console, interval=0.0)
        return cast(io.StringIO, console.file).getvalue()

    def test_shows_each_snapshot_and_gives_the_terminal_back(self) -> None:
        first, second = (seen(process(0, [connection(number)])) for number in (1, 99))
        shown = self.show(first, second)
        assert shown.startswith("\x1b[?1049h")
        assert "\x1b[?1049l" in shown
        assert shown.index("192.0.2.1:5000") < shown.index("192.0.2.99:5000")
        assert self.script.asked == [ConnectionQuery(7, "age", ("a",))] * 3

    def test_the_last_snapshot_stays_while_there_is_no_answer(self) -> None:
        shown = self.show(seen(process(0, [connection(1)])), ClientError("no\x1b[2J answer\nnor here"))
        assert shown.count("192.0.2.1:5000") == 2
        assert "no\\x1b[2J answer" in shown
        assert "nor here" not in shown

    def test_where_nothing_answers_at_first_the_terminal_is_left_alone(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True)
        with pytest.raises(ClientError):
            show_live(cast(Follower, Script(ClientError("nobody"))), ConnectionQuery(), console)
        assert cast(io.StringIO, console.file).getvalue() == ""

    @pytest.mark.parametrize(("term", "terminal"), [("xterm", True), ("dumb", False), (None, False)])
    def test_needs_a_terminal_that_can_move_its_cursor(
        self, term: str | None, terminal: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stream:
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdout", Stream())
        monkeypatch.delenv("TERM", raising=False)
        if term is not None:
            monkeypatch.setenv("TERM", term)
        assert client._is_terminal() is terminal

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "ends"), [(2, 130), (15, 143), (1, 129)])
    def test_a_signal_gives_the_terminal_back(self, number: int, ends: int, tmp_path: Any) -> None:
        config = str(tmp_path / "n.toml")
        with (
            answering(lambda line: status(process(0, [connection(1)])), control_names(config)[0]),
            OnTerminal("status", "--config", config) as terminal,
        ):
            terminal.read_until("192.0.2.1:5000")
            terminal.process.send_signal(number)
            assert terminal.end() == ends
            assert "\x1b[?1049l" in terminal.seen
            assert "Traceback" not in terminal.seen


def invoke(process: Any, *words: str) -> tuple[int, str, str]:
    """Run the command for the process of a file."""
    result = CliRunner().invoke(client.command, ["--config", process, *words])
    return result.exit_code, result.stdout, result.stderr


class TestCommand:
    def test_where_there_is_no_terminal_it_writes_text_once(self, tmp_path: Any) -> None:
        config, asked = str(tmp_path / "n.toml"), []

        def reply(line: str) -> Answer:
            asked.append(line)
            return status(process(0, [connection(1)]))

        with answering(reply, control_names(config)[0]):
            exit_status, out, err = invoke(config, "--sort", "age", "192.0", "echo")
        assert (exit_status, err) == (0, "")
        assert out.startswith("netsvc 1.2  ready  pid 4242")
        assert asked == ['status {"most":100,"order":"age","words":["192.0","echo"]}']

    def test_as_json_it_is_one_object(self, tmp_path: Any) -> None:
        config = str(tmp_path / "n.toml")
        with answering(lambda line: status(process()), control_names(config)[0]):
            exit_status, out, _ = invoke(config, "--json", "--most", "0")
        assert exit_status == 0
        assert json.loads(out) == seen(process()).to_json()

    def test_nobody_is_one_line(self, tmp_path: Any) -> None:
        for words in ([], ["--json"], ["--once"]):
            exit_status, out, err = invoke(str(tmp_path / "n.toml"), *words)
            assert (exit_status, out, err.count("\n")) == (1, "", 1)
            assert re.match(f"netsvc: .*--config {tmp_path}/n.toml", err)

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (Answer(1, ["status: there is no such command; there are reload"]), "status: there is no such command"),
            (Answer(0, ["nonsense"]), "version"),
        ],
    )
    def test_who_cannot_tell_is_one_line(self, tmp_path: Any, answer: Answer, says: str) -> None:
        config = str(tmp_path / "n.toml")
        with answering(lambda line: answer, control_names(config)[0]):
            exit_status, out, err = invoke(config)
        assert (exit_status, out) == (1, "")
        assert says in err

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("words", "unwanted"),
        [
            (["status", "--json"], {"twisted", "zope.interface", "prompt_toolkit", "rich", "asyncio"}),
            (["status", "--once"], {"twisted", "zope.interface", "prompt_toolkit", "asyncio"}),
            (["reload"], {"twisted", "zope.interface", "prompt_toolkit", "rich", "asyncio"}),
            (["drain"], {"twisted", "zope.interface", "prompt_toolkit", "rich", "asyncio"}),
            (["upgrade"], {"twisted", "zope.interface", "prompt_toolkit", "rich", "asyncio"}),
        ],
    )
    def test_imports_no_more_than_it_needs(self, words: list[str], unwanted: set[str], tmp_path: Any) -> None:
        config = str(tmp_path / "n.toml")
        program = (
            "import sys\n"
            "from netsvc.cli.command import main\n"
            "try:\n"
            "    main(sys.argv[1:])\n"
            "finally:\n"
            "    print(*sys.modules, file=sys.stderr)"
        )
        with answering(lambda line: status(process()), control_names(config)[0]):
            done = subprocess.run(
                [sys.executable, "-c", program, *words, "--config", config], capture_output=True, text=True
            )
        assert (done.returncode, done.stdout != "") == (0, True)
        assert not unwanted & set(done.stderr.split())


class TestFollower:
    def test_a_process_that_drains_is_seen_by_its_pid_when_it_has_left_its_file(self, tmp_path: Any) -> None:
        config = str(tmp_path / "n.toml")
        with answering(lambda line: status(process(state="draining"))) as by_pid:
            follower = Follower(processes.by_config(config), by_pid=lambda pid: by_pid)
            with answering(lambda line: status(process()), control_names(config)[0]):
                assert follower.snapshot(ALL).state == "ready"
            assert follower.snapshot(ALL).state == "draining"
            with answering(lambda line: status(process(state="starting")), control_names(config)[0]):
                assert follower.snapshot(ALL).state == "starting"

    def test_one_that_was_named_by_its_pid_is_followed_to_the_process_that_has_its_ports(self) -> None:
        after: list[processes.CommandTarget] = []

        def find_successor(keys: Any) -> processes.CommandTarget | None:
            return after[0] if ECHO.key in keys else None

        with answering(lambda line: status(process())) as old:
            follower = Follower(old, find_successor=find_successor)
            pids = [follower.snapshot(ALL).processes[0].pid]
        with answering(lambda line: status(process(7))) as new:
            after.append(new)
            pids += [follower.snapshot(ALL).processes[0].pid for _ in range(2)]
        assert pids == [4242, 4249, 4249]

    def test_no_process_is_an_error(self, tmp_path: Any) -> None:
        for target in (processes.by_config(str(tmp_path / "n.toml")), processes.by_pid(unused_pids(1))):
            with pytest.raises(ClientError) as failed:
                Follower(target, find_successor=lambda keys: None).snapshot(ALL)
            assert str(failed.value) == target.missing


def test_a_snapshot_has_the_pid_of_the_process_that_answered() -> None:
    with answering(lambda line: status(process())) as target:
        assert take_snapshot(target, ALL)[1] == target.pid
