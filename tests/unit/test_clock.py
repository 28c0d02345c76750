"""What waits goes by a clock that nobody sets, on every reactor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
from twisted.internet import base, task

from netsvc.reactor import clock as steady
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, connect, read_exactly

#: Runs a reactor whose system's clock is set, by what `jump` adds to it, between two turns. Prints the order of events.
SCRIPT = """
import sys, time
jumped, real = [0.0], time.time
time.time = lambda: real() + jumped[0]

from twisted.python.reflect import namedAny
namedAny(sys.argv[1]).install()
from twisted.internet import reactor
from netsvc.reactor.clock import use_monotonic_clock

use_monotonic_clock(reactor)
events = []

def jump():
    jumped[0] = float(sys.argv[2])
    events.append("jump")
    reactor.callLater(0.1, events.append, "soon")
    reactor.callLater(0.2, reactor.stop)

reactor.callLater(1000, events.append, "late")
reactor.callLater(0.05, events.append, "before")
reactor.callLater(0.1, jump)
reactor.callLater(0.15, events.append, "after")
reactor.run()
print(*events)
"""

#: Has the system's clock of a process go by what a file says that it is off. Python imports it at its start.
SET_BY_FILE = """
import time

real = time.time

def set_time():
    with open({path!r}) as file:
        return real() + float(file.read() or 0)

time.time = set_time
"""


def test_it_goes_on_evenly_and_looks_like_the_time_of_day() -> None:
    before, now, after = monotonic(), steady.seconds(), monotonic()
    assert before <= now - steady._OFFSET <= after
    # That they differ by what the clock has been set meanwhile is what it is for.
    assert abs(now - time()) < 3600


def test_a_reactor_of_twisted_s_is_kept_steady_and_a_clock_left_alone() -> None:
    reactor: Any = base.ReactorBase.__new__(base.ReactorBase)
    steady.use_monotonic_clock(reactor)
    assert reactor.seconds is steady.seconds
    clock = task.Clock()
    steady.use_monotonic_clock(clock)
    clock.advance(5)
    assert clock.seconds() == 5


def test_the_fast_reactor_is_steady_without_being_asked() -> None:
    from netsvc.reactor.epoll import NetsvcReactor

    assert NetsvcReactor.seconds is steady.seconds


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["86400", "-86400"])
@pytest.mark.parametrize(
    "reactor", ["netsvc.reactor.epoll", "twisted.internet.epollreactor", "twisted.internet.selectreactor"]
)
def test_a_clock_that_is_set_hurries_and_delays_nothing(reactor: str, seconds: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, reactor, seconds], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (run.stdout.split(), run.stderr) == (["before", "jump", "after", "soon"], "")


@pytest.mark.slow
@pytest.mark.parametrize("reactor", ["netsvc", "epoll"])
def test_limits_hold_while_the_clock_of_a_server_is_set(reactor: str, tmp_path: Path) -> None:
    off = tmp_path / "off"
    off.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(SET_BY_FILE.format(path=str(off)))
    chosen = [] if reactor == "netsvc" else ["--reactor", reactor]
    command = [TWISTD, "-n", "--pidfile=", *chosen, "netsvc", "--tcp", "127.0.0.1:0", "--limit", "idle=3"]
    with Server(command, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as server:
        server.wait_for("ready$")
        port = server.port("echo tcp")
        for seconds in (86400, -86400):
            with connect(port) as first:
                first.sendall(b"there?")
                assert read_exactly(first, 6) == b"there?"
                off.write_text(str(seconds))
                # By that it is not over its limit, and it will be when it is time.
                first.sendall(b"still?")
                assert read_exactly(first, 6) == b"still?"
                assert first.recv(1) == b""
            server.wait_for("limit idle ended")
            # A line has the time that it is by the system's clock.
            with connect(port) as second:
                second.sendall(b"x")
                assert second.recv(1) == b"x"
    years = [line[:10] for line in server.lines if "limit idle ended" in line]
    assert len(set(years)) == 2
