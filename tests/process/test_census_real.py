"""What several processes have counted stays right while one of them is killed, and while one does not answer."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from netsvc.cli.processes import ask, by_pid
from netsvc.control.protocol import read_statuses
from netsvc.plan.status import Counts
from tests.builders.processes import connect
from tests.builders.several import ask as ask_who
from tests.builders.several import children, make, start

pytestmark = pytest.mark.slow


def total(pid: int) -> tuple[Counts, dict[int, int]]:
    """Return what all have counted together, and who is there with how many connections."""
    processes, departed = read_statuses(ask(by_pid(pid), 'status {"most":0}'))
    counts = Counts()
    for listener in (*(each for process in processes for each in process.listeners), *departed):
        counts.add(listener.counts)
    return counts, {process.pid: process.open for process in processes}


def test_a_worker_that_is_killed_while_it_is_asked_counts_once_and_on(tmp_path: Path) -> None:
    with start(make(tmp_path), "--access", "off", "--who", "127.0.0.1:0") as server, ExitStack() as stack:
        pid = server.process.pid
        streams = [stack.enter_context(connect(server.port("who tcp"))) for _ in range(30)]
        served = [ask_who(stream) for stream in streams]
        victim, other = children(pid)
        counts, there = total(pid)
        assert (counts.accepted, counts.open) == (30, 30)
        assert there == {pid: 0, victim: served.count(victim), other: served.count(other)}
        # It takes the question in, and is killed before it answers; the other one answers when it has gone on.
        seen: list[tuple[Counts, dict[int, int]]] = []
        for stopped in (victim, other):
            os.kill(stopped, signal.SIGSTOP)
        asking = [threading.Thread(target=lambda: seen.append(total(pid))) for _ in range(3)]
        for thread in asking:
            thread.start()
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"worker 1 \(pid {victim}\) ended by signal 9")
        os.kill(other, signal.SIGCONT)
        for thread in asking:
            thread.join()
        assert len(seen) == 3
        for counts, there in [*seen, total(pid)]:
            # Of the one that was killed, what was known.
            assert counts.accepted == 30
            assert counts.open == sum(there.values()) and there[other] == served.count(other)
        server.wait_for(r"worker 1 \(pid \d+\) is ready")
        late = [stack.enter_context(connect(server.port("who tcp"))) for _ in range(10)]
        for stream in late:
            ask_who(stream)
        counts, there = total(pid)
        assert counts.accepted == 40 and counts.open == 10 + served.count(other)
        assert set(there) == {pid, *children(pid)}
        for stream in (*streams, *late):
            stream.close()
