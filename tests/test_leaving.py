"""A process says from when on it is not ready, drains when it is told to, and tells what came of it before it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sysconfig
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.host.control import Answer
from netsvc.host.difference import as_started, compare, describe_changes
from netsvc.host.host import Host
from netsvc.host.summary import MOST_LINES
from netsvc.plan import AdminUse, Plan
from tests.conftest import LoggedErrors
from tests.logs import Lines, collected
from tests.processes import PATIENCE, ROOT, TWISTD, Server, connect, read_all
from tests.reloaded import ONE, TWO, plan, world
from tests.test_workers import World as Workers

lines = pytest.fixture(collected, name="lines")


def with_drains(made: Plan, **drains: float) -> Plan:
    return replace(made, uses={key: replace(use, drain=drains.get(key, use.drain)) for key, use in made.uses.items()})


def test_a_host_is_ready_from_the_moment_that_all_is_open_until_it_drains() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        host = made.host
        assert (host.state, host.not_ready()) == ("ready", [])
        [_, listener] = host.running_plan.listeners
        listening, listener.listening = listener.listening, None
        assert host.not_ready() == ["two udp is not open yet"]
        host._is_open = False
        assert host.not_ready() == ["starting: two udp is not open yet"]
        listener.listening = listening
        assert (host.state, host.not_ready()) == ("starting", ["starting: nothing is open yet"])
        host._is_open = True
        assert listening is not None
        listening.file = SimpleNamespace(problem="its file is gone")
        assert host.not_ready() == ["two udp: its file is gone"]
        listening.file = None
        host._held = True
        assert host.not_ready() == ["starting: another process serves still"]
        host._held = False
        assert host.places()[0] == ("one", "tcp", f"127.0.0.1:{made.port()}")
        client, _ = made.greeting(made.port())
        stopped: list[object] = []
        host.stopService().addCallback(stopped.append)
        assert (host.state, host.not_ready(), host.places()) == ("draining", ["draining"], [])
        client.close()
        made.turn(6)
        assert stopped == [None]
        assert (host.state, host.not_ready()) == ("stopped", ["stopped"])


def test_who_has_it_drain_is_told_who_held_it_up() -> None:
    with world(with_drains(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"), two=1)) as made:
        clients = [made.greeting(made.port(place))[0] for place in range(2)]
        answers: list[Answer] = []
        made.host.drain().addCallback(answers.append)
        made.host.stopService()
        made.host.drain(["please"]).addCallback(answers.append)
        made.advance(1)
        assert made.receive(clients[1]) == b""
        clients[1].close()
        made.turn()
        made.advance(2.9)
        assert made.echoes(clients[0])
        assert answers == []
        made.advance(0.1)
        assert made.receive(clients[0]) == b""
        clients[0].close()
        made.turn(6)
        first, second = answers
        assert first.status == 0
        assert first.lines[0] == (
            "0 connections ended by themselves; closed at the end of 1 s: 1 two tcp; "
            "closed at the end of 4 s: 1 one tcp"
        )
        assert [re.sub(r":\d+ ", " ", line) for line in first.lines[1:]] == [
            "held up by one tcp 127.0.0.1 (there for 4 s)".replace("tcp ", "tcp: "),
            "held up by two tcp: 127.0.0.1 (there for 1 s)",
        ]
        assert second == Answer(0, ["a drain was under way already", *first.lines])


def test_one_service_that_fails_to_drain_is_named_and_the_others_drain_all_the_same(
    logged_errors: LoggedErrors, lines: Lines
) -> None:
    with world(
        plan({**ONE, "two": {"text": "two", "fail": "drain"}}, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")
    ) as made:
        client, _ = made.greeting(made.port())
        made.host.stopService()
        [failure] = logged_errors.flush()
        assert str(failure.value) == "drain fails"
        # With the line of the author's file that raised it.
        assert "tests/reloaded.py" in failure.getTraceback()
        assert any(line.startswith("two failed to drain") for line in lines)
        assert made.core("one").calls[-1] == "drain"
        assert made.echoes(client)
        client.close()
        made.turn(6)
        assert [core.calls[-1] for core in (made.core("one"), made.core("two"))] == ["stop", "stop"]


def test_what_a_reload_lets_go_has_the_time_of_its_service(lines: Lines) -> None:
    first = with_drains(plan(TWO, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0", "two tcp 127.0.0.1:0"), one=1, two=3)
    with world(first) as made:
        clients = [made.greeting(made.port(place))[0] for place in range(3)]
        made.reload(with_drains(plan(ONE, "one tcp 127.0.0.1:0", drain=100), one=2))
        made.advance(1.9)
        assert made.echoes(clients[1])
        made.advance(0.1)
        assert made.receive(clients[1]) == b""
        clients[1].close()
        assert made.echoes(clients[2])
        made.advance(1)
        assert made.receive(clients[2]) == b""
        clients[2].close()
        made.turn()
        assert made.echoes(clients[0])
        report = [re.sub(r":\d+ ", " ", line) for line in lines if "held up" in line]
        assert report == [
            "held up by one loud: 127.0.0.1 (there for 2 s)",
            "held up by two tcp: 127.0.0.1 (there for 3 s)",
        ]
        # Not the time of the plan, which nobody has who is there.
        clients[0].close()


def test_what_cannot_change_while_it_runs_stays_and_is_named() -> None:
    old = plan(ONE, "one tcp 9001")
    new = replace(old, log="json", access="/x", state="/y", drain=9.0)
    kept, hint = as_started(old, new)
    assert kept == replace(old, drain=9.0)
    assert hint == "; as before, until it is started anew or netsvc upgrade: log, access, state"
    assert as_started(old, old) == (old, "")


def test_a_reload_tells_of_drains_and_of_the_admin_page() -> None:
    old = plan(TWO, "one tcp 9001", "two tcp 9002")
    new = replace(with_drains(old, one=1.5), admin=AdminUse(old.listeners[0].address))
    assert describe_changes(old, new, compare(old, new)) == (
        "2 listeners kept; changed: drain of one 1.5 s, the admin page"
    )
    assert "drain of one 4 s" in describe_changes(new, old, compare(new, old))


def test_a_host_goes_on_with_what_a_reload_cannot_change() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        changed = replace(plan(ONE, "one tcp 127.0.0.1:0"), log="json")
        expected = "1 listener kept; as before, until it is started anew or netsvc upgrade: log"
        assert made.reload(changed) == expected
        # As often as it is asked for.
        assert made.reload(changed) == expected
        assert made.host.plan.log == "text"


def test_workers_are_ready_when_every_one_of_them_is() -> None:
    made = Workers()
    assert (made.workers.state, made.workers.not_ready()) == ("starting", ["starting"])
    made.start(ready=False)
    made.processes[1].say("ready")
    assert made.workers.not_ready() == ["worker 1 (pid 1000) is starting"]
    made.processes[0].say("ready")
    assert (made.workers.state, made.workers.not_ready()) == ("ready", [])
    assert [place[:2] for place in made.workers.places()] == [("one", "tcp")]
    made.processes[0].end(signal=9)
    assert made.workers.not_ready() == ["worker 1 is gone, and the next starts soon"]
    made.stop()
    assert (made.workers.state, made.workers.not_ready(), made.workers.places()) == ("draining", ["draining"], [])
    made.processes[1].end()
    assert (made.workers.state, made.workers.not_ready()) == ("stopped", ["stopped"])


def asked(made: Workers) -> list[Answer]:
    """Have the workers drain, in the place of a reactor that stops."""
    answers: list[Answer] = []
    reactor: Any = made.reactor
    reactor.stop = made.stop
    made.workers.drain().addCallback(answers.append)
    made.workers.drain().addCallback(answers.append)
    return answers


def test_every_worker_tells_who_held_it_up() -> None:
    made = Workers().start()
    answers = asked(made)
    for number, process in enumerate(made.processes):
        process.say("drained", f"summary {number}", "held up by somebody")
        assert answers == []
        process.end()
    report = [
        "2 workers ended",
        *("worker 1 (pid 1000): summary 0", "worker 1 (pid 1000): held up by somebody"),
        *("worker 2 (pid 1001): summary 1", "worker 2 (pid 1001): held up by somebody"),
    ]
    assert answers == [Answer(0, report), Answer(0, ["a drain was under way already", *report])]


def test_one_that_has_to_be_killed_is_named_and_there_are_no_more_lines_than_that() -> None:
    made = Workers().start()
    answers = asked(made)
    made.processes[0].say("drained", *(f"line {number}" for number in range(MOST_LINES + 20)))
    made.processes[0].end()
    made.reactor.advance(100)
    made.processes[1].end(signal=9)
    report = list(answers[0].lines)
    assert report[0] == "2 workers ended, 1 of them killed"
    assert report[-1] == "and 21 more lines like these, in the log"
    assert len(report) == MOST_LINES + 2


def test_workers_are_killed_after_the_longest_drain_of_a_service() -> None:
    made = Workers()
    made.workers.plan = with_drains(made.workers.plan, one=50)
    made.start()
    made.stop()
    made.reactor.advance(50)
    assert [process.signals for process in made.processes] == [["TERM"], ["TERM"]]
    made.reactor.advance(1)
    assert [process.signals for process in made.processes] == [["TERM", "KILL"]] * 2
    for process in made.processes:
        process.end(signal=9)
    assert made.stopped == [None]


def test_a_host_that_is_asked_has_its_reactor_stopped() -> None:
    class Reactor:
        calls: list[Any] = []

        def callFromThread(self, call: Any) -> None:
            self.calls.append(call)

    host = Host(plan(ONE), lambda use: None, Reactor())  # type: ignore[arg-type, return-value]
    answer: Deferred[Answer] = host.drain()
    assert len(Reactor.calls) == 1
    assert not answer.called


CLIENT = str(Path(sysconfig.get_path("scripts"), "netsvc"))


def drain_by_command(server: Server, config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [CLIENT, "drain", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_prints_the_report_and_each_service_had_its_time(workers: int, tmp_path: Path) -> None:
    config = tmp_path / "netsvc.toml"
    config.write_text(
        f"drain = 30\nworkers = {workers}\n[services.echo]\ntcp = '127.0.0.1:0'\ndrain = 0.2\n"
        "[services.files]\nclassic = '127.0.0.1:0'\nroot = '.'\n"
    )
    command = [TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(config)]
    with Server(command) as server:
        server.wait_for("ready$")
        echo, files = connect(server.port("echo tcp")), connect(server.port("files classic"))
        with echo, files:
            # So that whoever takes them has taken them.
            echo.sendall(b"x")
            assert echo.recv(1) == b"x"
            address = "{}:{}".format(*echo.getsockname())
            draining = drain_by_command(server, config)
            assert read_all(echo) == b""
            # files ends its own when it is asked to; who has not asked for a file has none to wait for.
            files.shutdown(socket.SHUT_WR)
            assert read_all(files) == b""
        out, err = draining.communicate(timeout=PATIENCE)
        assert (draining.returncode, err) == (0, "")
        assert "closed at the end of 0.2 s: 1 echo tcp" in out
        assert f"held up by echo tcp: {address} (there for " in out
        assert server.wait() == 0
        assert "held up by echo tcp" in server.log


@pytest.mark.slow
def test_one_who_asks_and_reads_no_answer_keeps_nobody(tmp_path: Path) -> None:
    from netsvc.host.control import control_names

    config = tmp_path / "netsvc.toml"
    config.write_text("[services.echo]\ntcp = '127.0.0.1:0'\n")
    server = Server([TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(config)])
    server.wait_for("ready$")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(control_names(str(config))[0])
        asking.sendall(b"drain\n")
        assert server.wait() == 0
    assert "Traceback" not in server.log + server.stderr


@pytest.mark.slow
def test_a_signal_while_it_drains_changes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "netsvc.toml"
    config.write_text("drain = 1\n[services.echo]\ntcp = '127.0.0.1:0'\n")
    server = Server([TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(config)])
    server.wait_for("ready$")
    with connect(server.port("echo tcp")) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        draining = drain_by_command(server, config)
        server.wait_for("draining: 1 connection")
        server.process.send_signal(signal.SIGTERM)
        reader = threading.Thread(target=read_all, args=[client])
        reader.start()
        out, _ = draining.communicate(timeout=PATIENCE)
        reader.join(PATIENCE)
    assert "closed at the end of 1 s: 1 echo tcp" in out
    # Whoever started it may be told either: that it has ended, or that it was a signal.
    assert server.wait() in (0, -signal.SIGTERM)
