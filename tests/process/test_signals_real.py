"""Signals that come while a real process starts, and those that a whole process group gets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server
from tests.builders.several import children, make, start, until

pytestmark = pytest.mark.slow

NETSVC = str(Path(TWISTD).with_name("netsvc"))

#: A service whose start takes as long as the file `hold` is there.
HELD = """
import os, time
from twisted.internet.protocol import Protocol
from netsvc.service import Service

class Core:
    def __init__(self, options, context):
        pass
    def start(self):
        while os.path.exists("hold"):
            time.sleep(0.01)

service = Service("held", "Starts late", core=Core, streams={"tcp": Protocol})
"""
PLUGIN = """
from netsvc.service import ServicePlugin
held = ServicePlugin("held", "held_service:service", "Starts late")
"""


@pytest.fixture
def held(tmp_path: Path) -> Path:
    (tmp_path / "twisted/plugins").mkdir(parents=True)
    (tmp_path / "twisted/plugins/held_plugin.py").write_text(PLUGIN)
    (tmp_path / "held_service.py").write_text(HELD)
    (tmp_path / "hold").touch()
    return tmp_path


@pytest.mark.parametrize("command", [[TWISTD, "-n", "--pidfile=pid", "netsvc"], [NETSVC, "run", "--state", "state"]])
def test_signals_that_come_during_the_start_are_acted_on_when_it_is_ready(held: Path, command: list[str]) -> None:
    server = Server([*command, "--held", "127.0.0.1:0"], cwd=held, env={"PYTHONPATH": f"{ROOT}:{held}"})
    with server:
        if "run" not in command:
            # The pid file is there long before it can act on anything.
            until(lambda: (held / "pid").exists() and (held / "pid").read_text() != "")
            assert int((held / "pid").read_text()) == server.process.pid
        else:
            until(lambda: is_caught(server.process.pid, signal.SIGUSR2))
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            server.process.send_signal(number)
        (held / "hold").unlink()
        server.wait_for("ready$")
        server.wait_for("reloaded: ")
        pid = int(server.wait_for(r"upgraded: process (\d+) serves")[1])
        assert server.log.count("reloaded: ") == 1
        os.kill(pid, signal.SIGTERM)
        server.wait()


def is_caught(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal (proc(5), SigCgt)."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return bool(int(found[1], 16) >> (number - 1) & 1)


def test_netsvc_run_takes_signals_over_before_its_imports() -> None:
    program = (
        "import sys, signal; sys.argv = ['netsvc', 'run', '--help']\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('click', 'twisted'):\n"
        "            print(name.partition('.')[0], signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL)\n"
        "            raise SystemExit\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from netsvc.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.stdout == "click False\n", ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        ([NETSVC, "run"], signal.SIGTERM, 0),
        ([NETSVC, "run"], signal.SIGINT, -signal.SIGINT),
        ([TWISTD, "-n", "--pidfile=", "netsvc"], signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_how_it_ends(command: list[str], number: int, status: int, workers: str) -> None:
    with Server([*command, "--tcp", "127.0.0.1:0", "--workers", workers]) as server:
        server.wait_for("ready$")
        assert server.stop(number) == status
        assert server.log.endswith("Server Shut Down.")
        assert server.stderr == ""


def test_the_first_process_ends_as_the_one_that_has_replaced_it() -> None:
    with Server([NETSVC, "run", "--tcp", "127.0.0.1:0"]) as server:
        server.wait_for("ready$")
        server.process.send_signal(signal.SIGUSR2)
        server.wait_for(r"upgraded: process \d+ serves")
        server.wait_for("Server Shut Down")
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_workers_ignore_what_is_meant_for_their_parent(tmp_path: Path, number: int) -> None:
    with start(make(tmp_path), "--who", "127.0.0.1:0") as server:
        workers = children(server.process.pid)
        if number == signal.SIGUSR2:
            server.signal_group(number)
            pid = int(server.wait_for(r"upgraded: process (\d+) serves")[1])
            assert "ended by signal" not in server.log
            os.kill(pid, signal.SIGTERM)
            server.wait()
        else:
            for _ in range(2):
                server.signal_group(number)
                if number == signal.SIGHUP:
                    # Others follow the workers.
                    server.wait_for("reloaded: ")
                else:
                    assert children(server.process.pid) == workers
            server.stop()
        assert "ended by signal" not in server.log


def test_processes_that_have_just_been_started_survive_a_signal_to_the_group(tmp_path: Path) -> None:
    server = Server(
        [TWISTD, "-n", "--pidfile=", "netsvc", "--workers", "2", "--who", "127.0.0.1:0"],
        cwd=make(tmp_path),
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    with server:
        seen: list[int] = []

        def both() -> bool:
            seen[:] = children(server.process.pid)
            if seen:
                server.signal_group(signal.SIGUSR1)
            return len(seen) == 2 and all(is_ready(pid) for pid in seen)

        until(both)
        server.wait_for("ready$")
        assert children(server.process.pid) == seen
        server.stop()
        assert "ended by signal" not in server.log


def is_ready(pid: int) -> bool:
    """Return whether a worker ignores SIGUSR2, as it does from the first line of its program."""
    found = re.search(r"^SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return bool(int(found[1], 16) >> (signal.SIGUSR2 - 1) & 1)
