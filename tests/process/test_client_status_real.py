"""Real processes that are asked what they do, and to end: found, watched, and not mistaken for others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders.client_peer import OnTerminal
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, free_port, run

#: Real processes, many of them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's"),
]

NETSVC = (sys.executable, "-m", "netsvc")


@contextmanager
def server(*words: str, cwd: Path | None = None) -> Iterator[Server]:
    """Run it; it may end by itself."""
    started = Server([TWISTD, "-n", "--pidfile=", "netsvc", *words], cwd=cwd)
    started.wait_for("ready$")
    try:
        yield started
    finally:
        if started.process.returncode is None:
            started.stop()
        assert "Traceback" not in started.log + started.stderr


def status(*words: str, cwd: Path | None = None) -> Any:
    ended = run(*NETSVC, "status", "--json", *words, cwd=cwd)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return json.loads(ended.stdout)


def pid_of(running: Server) -> str:
    return str(running.process.pid)


def test_a_connection_is_seen_and_searched_for() -> None:
    with server("--tcp", "127.0.0.1:0") as running, connect(running.port("echo tcp")) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        seen = status("--pid", pid_of(running))
        [process] = seen["processes"]
        assert (process["pid"], process["worker"], process["state"]) == (running.process.pid, 0, "ready")
        [connection] = process["connections"]
        name = "{}:{}".format(*client.getsockname())
        assert (connection["peer"], connection["bytes_in"], connection["bytes_out"]) == (name, 5, 5)
        assert (seen["totals"]["open"], seen["totals"]["accepted"]) == (1, 1)
        assert seen["listeners"][0]["place"] == f"127.0.0.1:{running.port('echo tcp')}"
        text = run(*NETSVC, "status", "--pid", pid_of(running)).stdout
        assert name in text
        [process] = status("--pid", pid_of(running), "nowhere")["processes"]
        assert process["connections"] == []


def test_workers_are_seen_together() -> None:
    with server("--workers", "2", "--tcp", "127.0.0.1:0") as running:
        clients = [connect(running.port("echo tcp")) for _ in range(8)]
        for client in clients:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        seen = status("--pid", pid_of(running))
        # The first is the one that holds the ports.
        assert sorted(process["worker"] for process in seen["processes"]) == [0, 1, 2]
        assert seen["totals"]["accepted"] == 8
        assert sum(len(process["connections"]) for process in seen["processes"]) == 8
        assert len(seen["listeners"]) == 1
        for client in clients:
            client.close()


def write(place: Path) -> int:
    port = free_port()
    (place / "netsvc.toml").write_text(f'drain = 1\n[services.echo]\ntcp = "127.0.0.1:{port}"\n')
    return port


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drain_waits_and_names_who_held_it_up(tmp_path: Path, workers: int) -> None:
    port = write(tmp_path)
    with (
        server("--config", "netsvc.toml", "--workers", str(workers), cwd=tmp_path) as running,
        connect(port) as client,
    ):
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        ended = run(*NETSVC, "drain", cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "{}:{}".format(*client.getsockname()) in ended.stdout
        assert ended.stdout.splitlines()[-1] == f"stopped pid {running.process.pid}"
        # It has ended when the command says so, if its parent has not waited for it yet.
        assert running.process.poll() is not None
        assert running.wait() in (0, -signal.SIGTERM)
    # By its file, whose absence is to be reported: without one, it would be that no process runs here.
    ended = run(*NETSVC, "drain", "--config", "netsvc.toml", cwd=tmp_path)
    assert ended.returncode == 1
    assert f"--config {tmp_path}/netsvc.toml" in ended.stderr


def test_without_a_file_it_is_found_from_its_directory_and_drained_from_no_other(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with server("--tcp", "127.0.0.1:0", cwd=tmp_path / "here") as running:
        for command in ("drain", "reload", "upgrade"):
            assert run(*NETSVC, command, cwd=tmp_path / "there").returncode == 1
        [process] = status(cwd=tmp_path / "here")["processes"]
        assert (process["pid"], process["state"]) == (running.process.pid, "ready")
        assert run(*NETSVC, "drain", cwd=tmp_path / "here").returncode == 0
        assert running.wait() in (0, -signal.SIGTERM)


def test_a_second_process_of_a_file_is_asked_by_its_pid_and_takes_the_file_later(tmp_path: Path) -> None:
    write(tmp_path)
    with server("--config", "netsvc.toml", cwd=tmp_path) as first:
        write(tmp_path)
        with server("--config", "netsvc.toml", cwd=tmp_path) as second:
            assert status(cwd=tmp_path)["processes"][0]["pid"] == first.process.pid
            assert status("--pid", pid_of(second))["processes"][0]["pid"] == second.process.pid
            assert run(*NETSVC, "reload", "--pid", pid_of(second)).returncode == 0
            second.wait_for(rf"netsvc.toml: process {first.process.pid}\b.*--pid {second.process.pid}$")
            first.stop()
            deadline = time.monotonic() + PATIENCE
            # Until it has the file, it is none, or the only one there is and named with a note.
            while (ended := run(*NETSVC, "status", "--json", cwd=tmp_path)).returncode or ended.stderr:
                assert time.monotonic() < deadline
            assert status(cwd=tmp_path)["processes"][0]["pid"] == second.process.pid


def test_the_live_view_goes_on_with_the_next_process_of_its_file(tmp_path: Path) -> None:
    write(tmp_path)
    with OnTerminal("status", "--config", "netsvc.toml", cwd=tmp_path) as terminal:
        terminal.read_until("--config")
        assert terminal.end() == 1
    with server("--config", "netsvc.toml", cwd=tmp_path) as first:
        with OnTerminal("status", cwd=tmp_path) as terminal:
            terminal.read_until(f"pid {first.process.pid}")
            first.stop()
            terminal.read_until("trying again")
            with server("--config", "netsvc.toml", cwd=tmp_path) as second:
                terminal.read_until(f"pid {second.process.pid}")
            terminal.type("\x03")
            assert terminal.end() == 130
            assert "Traceback" not in terminal.seen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_learns_nothing_and_ends_nothing(tmp_path: Path) -> None:
    # Python itself may lie where only root may read: everything is imported before.
    program = (
        "import os, sys, netsvc.cli.drain, netsvc.cli.reload, netsvc.cli.status\n"
        "from netsvc.cli.command import main\n"
        "os.setuid(65534)\n"
        "main(sys.argv[1:])"
    )
    with server("--tcp", "127.0.0.1:0") as running:
        for command in ("status", "reload", "drain"):
            ended = run(sys.executable, "-c", program, command, "--pid", pid_of(running))
            assert (ended.returncode, ended.stdout) == (1, "")
            assert re.fullmatch(r"netsvc: .*user 0\b.*root.*\n", ended.stderr)
        assert status("--pid", pid_of(running))["totals"]["open"] == 0


def test_a_shell_that_started_it_names_it_as_well() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    started = Server([shell, "-c", f"{TWISTD} -n --pidfile= netsvc --tcp 127.0.0.1:0; exit 0"])
    with started:
        started.wait_for("ready$")
        [process] = status("--pid", pid_of(started))["processes"]
        assert process["pid"] != started.process.pid
        assert run(*NETSVC, "drain", "--pid", pid_of(started)).returncode == 0
        started.wait()
