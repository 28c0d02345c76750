"""What limits refuse is counted, and logged without drowning the log."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.guard.refusals import Refusals
from tests.logs import Lines, collected

logged = pytest.fixture(collected)


def refused() -> tuple[Refusals, Clock]:
    clock = Clock()
    return Refusals(clock), clock


def test_the_first_is_logged_at_once(logged: Lines) -> None:
    refusals, clock = refused()
    refusals.count("echo tcp", "perip", "192.0.2.1")
    assert logged == ["limit perip refused 192.0.2.1 at echo tcp"]
    assert logged.levels == ["warn"]
    clock.advance(1)
    assert clock.getDelayedCalls() == []
    assert len(logged) == 1


def test_then_there_is_a_line_a_second_with_how_many_there_were(logged: Lines) -> None:
    refusals, clock = refused()
    for number in range(121):
        refusals.count("echo tcp", "perip", f"192.0.2.{number}")
    assert len(logged) == 1
    clock.advance(0.99)
    assert len(logged) == 1
    clock.advance(0.01)
    assert logged[1:] == ["limit perip refused 120 in 1 s, the last 192.0.2.120 at echo tcp"]
    refusals.count("echo tcp", "perip", "192.0.2.7")
    assert len(logged) == 2
    clock.advance(1)
    assert logged[2:] == ["limit perip refused 192.0.2.7 at echo tcp"]
    clock.advance(1)
    refusals.count("echo tcp", "perip", "192.0.2.8")
    assert logged[3:] == ["limit perip refused 192.0.2.8 at echo tcp"]
    refusals.close()


def test_listeners_share_a_line(logged: Lines) -> None:
    refusals, clock = refused()
    for label in ("echo tcp", "echo udp", "chat line"):
        refusals.count(label, "rate", "192.0.2.1")
    clock.advance(1)
    assert logged == [
        "limit rate refused 192.0.2.1 at echo tcp",
        "limit rate refused 2 in 1 s, the last 192.0.2.1 at chat line",
    ]
    refusals.close()
    assert refusals.counts == {("echo tcp", "rate"): 1, ("echo udp", "rate"): 1, ("chat line", "rate"): 1}


def test_each_limit_and_what_it_did_has_a_line_of_its_own(logged: Lines) -> None:
    refusals, _ = refused()
    refusals.count("echo tcp", "perip", "192.0.2.1")
    refusals.count("echo tcp", "rate", "192.0.2.1")
    refusals.count("echo tcp", "perip", "192.0.2.1", dry=True)
    refusals.count("echo tcp", "idle", "192.0.2.1", ended=True)
    refusals.count("echo tcp", "idle", "192.0.2.1", ended=True, dry=True)
    refusals.close()
    assert logged == [
        "limit perip refused 192.0.2.1 at echo tcp",
        "limit rate refused 192.0.2.1 at echo tcp",
        "limit perip would have refused 192.0.2.1 at echo tcp",
        "limit idle ended 192.0.2.1 at echo tcp",
        "limit idle would have ended 192.0.2.1 at echo tcp",
    ]
    assert logged.levels == ["warn", "warn", "warn", "info", "info"]
    assert refusals.counts == {("echo tcp", "perip"): 1, ("echo tcp", "rate"): 1, ("echo tcp", "idle"): 1}
    assert refusals.reported == {("echo tcp", "perip"): 1, ("echo tcp", "idle"): 1}


def test_a_peer_without_a_name_is_somebody_and_others_are_escaped(logged: Lines) -> None:
    refusals, _ = refused()
    refusals.count("chat line", "perip", "")
    refusals.count("chat line", "rate", "\x1b[2J{limit}\n")
    refusals.close()
    assert logged == [
        "limit perip refused somebody at chat line",
        r"limit rate refused \x1b[2J{limit}\n at chat line",
    ]


def test_close_logs_what_is_pending_and_leaves_no_timer(logged: Lines) -> None:
    refusals, clock = refused()
    for _ in range(3):
        refusals.count("echo tcp", "deny", "192.0.2.1")
    refusals.count("echo tcp", "hours", "192.0.2.1")
    refusals.close()
    refusals.close()
    assert logged[2:] == ["limit deny refused 2 in 1 s, the last 192.0.2.1 at echo tcp"]
    assert clock.getDelayedCalls() == []


@given(st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from(["perip", "rate"]), st.booleans()), max_size=80))
def test_every_refusal_is_in_some_line_and_no_second_has_two(events: list[tuple[float, str, bool]]) -> None:
    refusals, clock = refused()
    times: dict[tuple[str, str], list[float]] = {}
    told = 0
    for lines in collected():
        for pause, limit, dry in events:
            clock.advance(pause)
            refusals.count("echo tcp", limit, "192.0.2.1", dry=dry)
            assert len(clock.getDelayedCalls()) <= 4
            while told < len(lines):
                words = lines[told].split()
                times.setdefault((words[1], words[2]), []).append(clock.seconds())
                told += 1
        refusals.close()
        counted = sum(int(line.partition(" in 1 s")[0].split()[-1]) if " in 1 s" in line else 1 for line in lines)
    assert counted == len(events) == refusals.counts.total() + refusals.reported.total()
    # What a timer logs is seen here up to one step of the clock later.
    assert all(later - earlier >= 0.5 for seen in times.values() for earlier, later in pairwise(seen))
