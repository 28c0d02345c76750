"""A process says from when on it is not ready, drains when it is told to, and tells what came of it before it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sysconfig
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred

from netsvc.cli.processes import ask, by_config
from netsvc.control.protocol import read_statuses
from netsvc.plan.answer import Answer
from netsvc.plan.plan import AdminUse, Plan
from netsvc.server import server as server_module
from netsvc.server.difference import as_started, compare, describe_changes
from netsvc.server.drain_report import MOST_LINES
from tests.builders.facts import lacks, states
from tests.builders.logs import Lines, collected
from tests.builders.looks import connected
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, connect, read_all
from tests.builders.reloaded import ONE, TWO, plan, world
from tests.builders.several import until
from tests.builders.workers import FakeWorkers
from tests.conftest import LoggedErrors

lines = pytest.fixture(collected, name="lines")


def with_drains(made: Plan, **drains: float) -> Plan:
    return replace(made, uses={key: replace(use, drain=drains.get(key, use.drain)) for key, use in made.uses.items()})


def test_a_host_is_ready_from_the_moment_that_all_is_open_until_it_drains() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        host = made.host
        assert (host.state, host.not_ready()) == ("ready", [])
        [_, listener] = host.running_plan.listeners
        listening, listener.listening = listener.listening, None
        [closed] = host.not_ready()
        assert lacks(closed, "two udp") == []
        host._is_open = False
        assert host.not_ready() == [f"starting: {closed}"]
        listener.listening = listening
        [line] = host.not_ready()
        assert host.state == "starting"
        assert line.startswith("starting: ")
        assert closed not in line
        host._is_open = True
        assert listening is not None
        listening.file = cast(Any, SimpleNamespace(problem="its file is gone"))
        assert host.not_ready() == ["two udp: its file is gone"]
        listening.file = None
        host._held = True
        [line] = host.not_ready()
        assert line.startswith("starting: ")
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
        assert states(first.lines[0], "0 ", " 1 s: 1 two tcp", " 4 s: 1 one tcp")
        held_up = [("one tcp", " 127.0.0.1:", " 4 s"), ("two tcp", " 127.0.0.1:", " 1 s")]
        assert all(states(line, *facts) for line, facts in zip(first.lines[1:], held_up, strict=True))
        assert (second.status, list(second.lines[1:])) == (0, list(first.lines))


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
        assert "tests/builders/reloaded.py" in failure.getTraceback()
        assert any(line.startswith("two ") and "drain" in line for line in lines)
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
        report = [line for line in lines if " 127.0.0.1:" in line and " s)" in line]
        held_up = [("one loud", " 127.0.0.1:", " 2 s"), ("two tcp", " 127.0.0.1:", " 3 s")]
        assert all(states(line, *facts) for line, facts in zip(report, held_up, strict=True))
        # Not the time of the plan, which nobody has who is there.
        clients[0].close()


def test_what_cannot_change_while_it_runs_stays_and_is_named() -> None:
    old = plan(ONE, "one tcp 9001")
    new = replace(old, log="json", access="/x", state="/y", drain=9.0)
    kept, hint = as_started(old, new)
    assert kept == replace(old, drain=9.0)
    assert states(hint, "netsvc upgrade", "log", "access", "state")
    assert "drain" not in hint
    assert as_started(old, old) == (old, "")


def test_a_reload_tells_of_drains_and_of_the_admin_page() -> None:
    old = plan(TWO, "one tcp 9001", "two tcp 9002")
    new = replace(with_drains(old, one=1.5), admin=AdminUse(old.listeners[0].address))
    assert states(describe_changes(old, new, compare(old, new)), "2 ", " kept", "one 1.5 s", "admin")
    assert states(describe_changes(new, old, compare(new, old)), "2 ", " kept", "one 4 s", "admin")


def test_a_host_goes_on_with_what_a_reload_cannot_change() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        changed = replace(plan(ONE, "one tcp 127.0.0.1:0"), log="json")
        # As often as it is asked for.
        for _ in range(2):
            summary = made.reload(changed)
            assert states(summary, "1 ", " kept", "netsvc upgrade", "log")
        assert made.host.plan.log == "text"


def test_workers_are_ready_when_every_one_of_them_is() -> None:
    made = FakeWorkers()
    assert (made.workers.state, made.workers.not_ready()) == ("starting", ["starting"])
    made.start(ready=False)
    made.processes[1].say("ready")
    [starting] = made.workers.not_ready()
    assert lacks(starting, "worker 1 ", "pid 1000") == []
    # Whoever reads the line `ready` may ask at once.
    found: list[list[str]] = []
    made.workers.became_ready = lambda: found.append(made.workers.not_ready())
    made.processes[0].say("ready")
    assert found == [[]]
    assert (made.workers.state, made.workers.not_ready()) == ("ready", [])
    assert [place[:2] for place in made.workers.places()] == [("one", "tcp")]
    made.processes[0].end(signal=9)
    [line] = made.workers.not_ready()
    assert lacks(line, "worker 1 ") == []
    assert line != starting
    made.stop()
    assert (made.workers.state, made.workers.not_ready(), made.workers.places()) == ("draining", ["draining"], [])
    made.processes[1].end()
    assert (made.workers.state, made.workers.not_ready()) == ("stopped", ["stopped"])


def asked(made: FakeWorkers) -> list[Answer]:
    """Have the workers drain, in the place of a reactor that stops."""
    answers: list[Answer] = []
    reactor: Any = made.reactor
    reactor.stop = made.stop
    made.workers.drain().addCallback(answers.append)
    made.workers.drain().addCallback(answers.append)
    return answers


def test_every_worker_tells_who_held_it_up() -> None:
    made = FakeWorkers().start()
    answers = asked(made)
    for number, process in enumerate(made.processes):
        process.say("drained", f"summary {number}", "another line")
        assert answers == []
        process.end()
    first, late = answers
    facts = [
        ("2 workers",),
        *(("worker 1 (pid 1000)", "summary 0"), ("worker 1 (pid 1000)", "another line")),
        *(("worker 2 (pid 1001)", "summary 1"), ("worker 2 (pid 1001)", "another line")),
    ]
    assert all(states(line, *each) for line, each in zip(first.lines, facts, strict=True))
    assert "killed" not in first.lines[0]
    assert (first.status, late.status, list(late.lines[1:])) == (0, 0, list(first.lines))


def test_one_that_has_to_be_killed_is_named_and_there_are_no_more_lines_than_that() -> None:
    made = FakeWorkers().start()
    answers = asked(made)
    made.processes[0].say("drained", *(f"line {number}" for number in range(MOST_LINES + 20)))
    made.processes[0].end()
    made.reactor.advance(100)
    made.processes[1].end(signal=9)
    report = list(answers[0].lines)
    assert states(report[0], "2 workers", "1 ", "killed")
    assert states(report[-1], " 21 ", "log")
    assert len(report) == MOST_LINES + 2


def test_workers_are_killed_after_the_longest_drain_of_a_service() -> None:
    made = FakeWorkers()
    made.workers.plan = with_drains(made.workers.plan, one=50)
    made.start()
    made.stop()
    made.reactor.advance(50)
    assert all(process.is_told_to_stop and process.signals == [] for process in made.processes)
    made.reactor.advance(1)
    assert [process.signals for process in made.processes] == [["KILL"]] * 2
    for process in made.processes:
        process.end(signal=9)
    assert made.stopped == [None]


def test_a_host_that_is_asked_has_its_reactor_stopped() -> None:
    class Reactor:
        calls: list[Any] = []

        def callFromThread(self, call: Any) -> None:
            self.calls.append(call)

    host = server_module.Server(plan(ONE), lambda use: None, Reactor())  # type: ignore[arg-type, return-value]
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


def opened(config: Path) -> int:
    """Ask how many connections are open."""
    processes, _ = read_statuses(ask(by_config(str(config)), "status {}"))
    return sum(process.open for process in processes)


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
            until(lambda: opened(config) == 2)
            address = "{}:{}".format(*echo.getsockname())
            draining = drain_by_command(server, config)
            assert read_all(echo) == b""
            # files ends its own when it is asked to; who has not asked for a file has none to wait for.
            files.shutdown(socket.SHUT_WR)
            assert read_all(files) == b""
        out, err = draining.communicate(timeout=PATIENCE)
        assert (draining.returncode, err) == (0, "")
        assert any(states(line, " 0.2 s: 1 echo tcp") for line in out.splitlines())
        assert any(states(line, "echo tcp", address, " s)") for line in out.splitlines())
        assert server.wait() == 0
        assert any(states(line, "echo tcp", address, " s)") for line in server.log.splitlines())


@pytest.mark.slow
def test_one_who_asks_and_reads_no_answer_keeps_nobody(tmp_path: Path) -> None:
    config = tmp_path / "netsvc.toml"
    config.write_text("[services.echo]\ntcp = '127.0.0.1:0'\n")
    server = Server([TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(config)])
    server.wait_for("ready$")
    asking = connected(by_config(str(config)))
    assert asking is not None
    with asking:
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
        server.wait_for(r"draining: .*\b1\b")
        server.process.send_signal(signal.SIGTERM)
        reader = threading.Thread(target=read_all, args=[client])
        reader.start()
        out, _ = draining.communicate(timeout=PATIENCE)
        reader.join(PATIENCE)
    assert any(states(line, " 1 s: 1 echo tcp") for line in out.splitlines())
    # Whoever started it may be told either: that it has ended, or that it was a signal.
    assert server.wait() in (0, -signal.SIGTERM)
