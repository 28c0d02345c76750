"""What `netsvc status` writes once, and how rates come of looks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from netsvc.client import asking
from netsvc.client import status as client
from netsvc.client.failure import ClientError
from netsvc.client.page import MOST_ROWS, page
from netsvc.client.summary import SAMPLES, Look, Rate, Rates, look
from netsvc.client.watch import Watch, take_look
from netsvc.host.control import Answer, control_names
from netsvc.status import Counts, ProcessStatus, Vitals
from tests.looks import ECHO, answering, connection, process, status, unused_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


def seen(*processes: ProcessStatus, time: float = 0.0, **answer: Any) -> Look:
    return look(status(*processes, **answer), time)


def counted(bytes_in: int, bytes_out: int, **fields: Any) -> ProcessStatus:
    return process(listeners=[replace(ECHO, counts=Counts(bytes_in=bytes_in, bytes_out=bytes_out))], **fields)


class TestLook:
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
        for second in range(SAMPLES + 10):
            rates.add(replace(one, time=float(second)))
        assert len(rates.totals) == SAMPLES


def test_a_page_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1090.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    shown = page(
        seen(process(0, [connection(1, rate_in=5), connection(2)], not_ready=["chat line is down"])), "rate", 80
    )
    assert shown.splitlines() == [
        "netsvc 1.2  not ready  pid 4242  up 1m30s",
        "open 2  accepted 12,345  refused 4 (rate 3, peer 1)",
        "in  5.00 kB",
        "out 7.00 kB",
        "event loop late 0.3 ms, worst 12 ms  memory 54.0 MB  files 40 of 1,024",
        "not ready: chat line is down",
        "",
        "LISTENER       PLACE                   OPEN   ACCEPTED   REFUSED    IN/s   OUT/s",
        "echo tcp       127.0.0.1:9001             2     12,345         4     0 B     0 B",
        "chat line [::]:9002 tls proxy is down: it is \\x1b[2J gone",
        "",
        "PEER                         SERVICE         AGE      IN     OUT    IN/s   OUT/s",
        "192.0.2.1:5000               echo tcp      1m00s    10 B    20 B     5 B     0 B",
        "192.0.2.2:5000               echo tcp      2m00s    10 B    20 B     0 B     0 B",
        "",
        "TIME     LISTENER       PEER                   WHAT                 LIMIT",
        "00:00:00 echo tcp       192.0.2.9:1            refused              rate",
    ]


def test_a_page_of_several_processes_has_a_table_of_them() -> None:
    shown = page(seen(process(1, [connection(1, 1)]), process(2, [connection(2, 2)])), "rate", 80)
    assert shown.splitlines()[0].startswith("netsvc 1.2  ready  pid 4243  2 workers  up ")
    assert "192.0.2.2:5000           echo tcp      2m00s    10 B    20 B     0 B     0 B   2" in shown
    assert "     2    4244 ready                2  0.3 ms   12 ms 54.0 MB        42      10s" in shown


def test_a_page_says_how_many_it_leaves_out() -> None:
    connections = [connection(number) for number in range(MOST_ROWS + 5)]
    listener = replace(ECHO, counts=Counts(open=1000, errors=2, dropped=3, reported=Counter(rate=4)))
    shown = page(seen(process(0, connections, listeners=[listener], refusals=[])), "age")
    assert shown.splitlines()[-1] == "… 980 more"
    assert "refused 0  would be refused 4  errors 2  dropped 3\n" in shown


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
            assert err.startswith("netsvc: no process runs with --config ")

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (Answer(1, ["status: there is no such command; there are reload"]), "status: there is no such command"),
            (Answer(0, ["nonsense"]), "tells its status in another way; is it of another version?"),
        ],
    )
    def test_who_cannot_tell_is_one_line(self, tmp_path: Any, answer: Answer, says: str) -> None:
        config = str(tmp_path / "n.toml")
        with answering(lambda line: answer, control_names(config)[0]):
            exit_status, out, err = invoke(config)
        assert (exit_status, out) == (1, "")
        assert says in err

    def test_json_needs_no_library_for_terminals(self) -> None:
        program = "import sys; from netsvc.client import status, watch; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "prompt_toolkit" not in done.stdout.split()


class TestWatch:
    def test_one_that_drains_is_seen_by_its_pid_when_it_has_left_its_file(self, tmp_path: Any) -> None:
        config = str(tmp_path / "n.toml")

        async def watch() -> list[str]:
            watching = Watch(asking.of_config(config), by_pid=lambda pid: by_pid)
            with answering(lambda line: status(process()), control_names(config)[0]):
                states = [(await watching.look("{}")).state]
            states.append((await watching.look("{}")).state)
            with answering(lambda line: status(process(state="starting")), control_names(config)[0]):
                states.append((await watching.look("{}")).state)
            return states

        with answering(lambda line: status(process(state="draining"))) as by_pid:
            assert asyncio.run(watch()) == ["ready", "draining", "starting"]

    def test_one_that_was_named_by_its_pid_is_followed_to_who_has_its_ports(self) -> None:
        after: list[asking.Process] = []

        async def successor(keys: Any) -> asking.Process | None:
            return after[0] if ECHO.key in keys else None

        async def watch() -> list[int]:
            with answering(lambda line: status(process())) as old:
                watching = Watch(old, successor=successor)
                pids = [(await watching.look("{}")).processes[0].pid]
            with answering(lambda line: status(process(7))) as new:
                after.append(new)
                pids += [(await watching.look("{}")).processes[0].pid for _ in range(2)]
            return pids

        assert asyncio.run(watch()) == [4242, 4249, 4249]

    def test_nobody_is_an_error(self, tmp_path: Any) -> None:
        async def nobody(keys: Any) -> None:
            return None

        async def watch(process: asking.Process) -> None:
            await Watch(process, successor=nobody).look("{}")

        with pytest.raises(ClientError, match="no process runs with"):
            asyncio.run(watch(asking.of_config(str(tmp_path / "n.toml"))))
        with pytest.raises(ClientError, match="is no netsvc that answers"):
            asyncio.run(watch(asking.of_pid(unused_pids(1))))

    def test_a_connection_is_closed_by_who_has_been_seen(self) -> None:
        asked = []

        def reply(line: str) -> Answer:
            asked.append(line)
            return Answer(1, ["it has ended already"])

        with answering(reply) as process:
            assert asyncio.run(Watch(process).close("1-7")) == "it has ended already"
        assert asked == ["close 1-7"]
        assert "is no netsvc that answers" in asyncio.run(Watch(asking.of_pid(unused_pids(1))).close("1-7"))


def test_a_look_has_the_pid_of_who_answered() -> None:
    with answering(lambda line: status(process())) as it:
        assert asyncio.run(take_look(it, "{}"))[1] == it.pid
