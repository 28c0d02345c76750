"""The first process of a container reaps what nothing else reaps, and no child that other code waits for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.process import reapProcessHandlers
from twisted.internet.task import Clock

from netsvc.server.orphans import LOOK_INTERVAL, Orphans, children


def ended() -> int:
    """Return the pid of a child that has ended, and for which nothing waits."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def never() -> bool:
    return False


def is_reaped(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return True


@pytest.fixture
def zombies() -> Iterator[list[int]]:
    pids = [ended(), ended()]
    yield pids
    for pid in pids:
        if not is_reaped(pid):
            os.waitpid(pid, 0)


def test_every_zombie_is_reaped_at_the_second_look(zombies: list[int]) -> None:
    clock = Clock()
    Orphans(clock, never, lambda: zombies).start()
    clock.advance(LOOK_INTERVAL)
    # Its own code may wait for it.
    assert not any(map(is_reaped, zombies))
    clock.advance(LOOK_INTERVAL)
    assert all(map(is_reaped, zombies))
    zombies.append(ended())
    clock.pump([LOOK_INTERVAL] * 2)
    assert all(map(is_reaped, zombies))


def test_one_that_twisted_has_started_is_left_to_it(zombies: list[int]) -> None:
    clock = Clock()
    left: Any = object()
    reapProcessHandlers[zombies[0]] = left
    try:
        Orphans(clock, never, lambda: zombies).start()
        clock.pump([LOOK_INTERVAL] * 5)
        assert [is_reaped(pid) for pid in zombies] == [False, True]
    finally:
        del reapProcessHandlers[zombies[0]]


def test_after_its_end_nothing_is_reaped(zombies: list[int]) -> None:
    clock = Clock()
    over: list[None] = []
    Orphans(clock, lambda: bool(over), lambda: zombies).start()
    clock.advance(LOOK_INTERVAL)
    over.append(None)
    clock.pump([LOOK_INTERVAL] * 5)
    assert not any(map(is_reaped, zombies))
    assert clock.getDelayedCalls() == []


def test_a_child_that_runs_is_left_alone(zombies: list[int]) -> None:
    clock = Clock()
    with subprocess.Popen(["sh", "-c", "read _; exit 7"], stdin=subprocess.PIPE) as process:
        Orphans(clock, never, lambda: [process.pid, *zombies]).start()
        clock.pump([LOOK_INTERVAL] * 5)
        process.communicate(b"\n")
        assert process.returncode == 7


def test_without_a_zombie_the_children_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    listed: list[None] = []

    def none(*_: object) -> None:
        return None

    monkeypatch.setattr(os, "waitid", none)
    Orphans(clock, never, lambda: listed.append(None) or []).start()  # type: ignore[func-returns-value]
    clock.pump([LOOK_INTERVAL] * 3)

    def fails(*_: object) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", fails)
    clock.pump([LOOK_INTERVAL] * 3)
    assert listed == []


def test_the_children_are_known(zombies: list[int]) -> None:
    assert set(zombies) <= set(children())
