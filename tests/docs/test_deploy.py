"""The Procfile under honcho, and a checkout that is not installed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import sysconfig
import threading

import pytest

from netsvc.plan.plan import DEFAULT_DRAIN
from tests.builders.facts import drained
from tests.builders.processes import PATIENCE, ROOT, Server, connect, free_port

#: honcho, which gives a process on a busy machine all the time to end after its drain.
PATIENT_HONCHO = (
    sys.executable,
    "-c",
    f"import honcho.command, honcho.manager\nhoncho.manager.KILL_WAIT = {PATIENCE}\nhoncho.command.main()",
)


def test_a_drain_is_over_before_honcho_kills() -> None:
    manager = pytest.importorskip("honcho.manager")
    assert "--drain" not in (ROOT / "Procfile").read_text()
    assert DEFAULT_DRAIN < manager.KILL_WAIT


@pytest.mark.slow
def test_the_procfile_serves_and_stops_in_time_with_nothing_lost_in_flight() -> None:
    scripts = sysconfig.get_path("scripts")
    port = free_port()
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PORT": str(port)}
    with Server([*PATIENT_HONCHO, "-f", str(ROOT / "Procfile"), "start"], cwd=ROOT, env=environment) as server:
        server.wait_for("ready")
        sent = 4 * 1024 * 1024
        received = 0

        def read() -> None:
            nonlocal received
            while chunk := client.recv(65536):
                received += len(chunk)

        with connect(port) as client:
            reader = threading.Thread(target=read)
            reader.start()
            client.sendall(b"x" * (sent // 2))
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            client.sendall(b"x" * (sent // 2))
            client.shutdown(socket.SHUT_WR)
            reader.join(PATIENCE)
        assert received == sent
        server.wait()
        # honcho kills after a while, and says so.
        assert "SIGKILL" not in server.log
        assert any("stopped: " in line and drained(line)[0] == 1 for line in server.lines)


@pytest.mark.slow
def test_an_idle_connection_does_not_keep_the_procfile_from_stopping_in_time() -> None:
    scripts = sysconfig.get_path("scripts")
    port = free_port()
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PORT": str(port)}
    with Server([*PATIENT_HONCHO, "-f", str(ROOT / "Procfile"), "start"], cwd=ROOT, env=environment) as server:
        server.wait_for("ready")
        with connect(port) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(5) == b""
        server.wait()
        assert "SIGKILL" not in server.log
        assert any("stopped: " in line and drained(line)[1] == {"echo tcp": 1} for line in server.lines)


@pytest.mark.slow
def test_a_bare_checkout_serves_without_an_installation() -> None:
    for command in (
        [sys.executable, "-m", "netsvc", "run", "--tcp", "127.0.0.1:0"],
        [f"{sysconfig.get_path('scripts')}/twistd", "-n", "--pidfile=", "netsvc", "--tcp", "127.0.0.1:0"],
    ):
        with Server(command, cwd=ROOT, env={"PYTHONPATH": "."}) as server:
            server.wait_for("ready$")
