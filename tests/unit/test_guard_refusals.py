"""Refusals are remembered, and logged at most once a second for each limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.base.text import UNKNOWN_PEER
from netsvc.guard.refusals import Refusals
from tests.builders.facts import states
from tests.builders.logs import Lines, collected

logged = pytest.fixture(collected)


def refused() -> tuple[Refusals, Clock]:
    clock = Clock()
    return Refusals(clock), clock


def test_the_first_is_logged_at_once(logged: Lines) -> None:
    refusals, clock = refused()
    refusals.add("echo tcp", "perip", "192.0.2.1")
    [line] = logged
    assert states(line, "perip", "refused", "192.0.2.1", "echo tcp")
    assert logged.levels == ["warn"]
    clock.advance(1)
    assert clock.getDelayedCalls() == []
    assert len(logged) == 1


def test_then_there_is_a_line_a_second_with_how_many_there_were(logged: Lines) -> None:
    refusals, clock = refused()
    for number in range(121):
        refusals.add("echo tcp", "perip", f"192.0.2.{number}")
    assert len(logged) == 1
    clock.advance(0.99)
    assert len(logged) == 1
    clock.advance(0.01)
    [line] = logged[1:]
    assert states(line, "perip", "refused 120 ", " 1 s", "192.0.2.120", "echo tcp")
    refusals.add("echo tcp", "perip", "192.0.2.7")
    assert len(logged) == 2
    clock.advance(1)
    [line] = logged[2:]
    assert states(line, "perip", "refused", "192.0.2.7", "echo tcp")
    clock.advance(1)
    refusals.add("echo tcp", "perip", "192.0.2.8")
    [line] = logged[3:]
    assert states(line, "perip", "refused", "192.0.2.8", "echo tcp")
    refusals.close()


def test_listeners_share_a_line(logged: Lines) -> None:
    refusals, clock = refused()
    for label in ("echo tcp", "echo udp", "chat line"):
        refusals.add(label, "rate", "192.0.2.1")
    clock.advance(1)
    first, others = logged
    assert states(first, "rate", "refused", "192.0.2.1", "echo tcp")
    assert states(others, "rate", "refused 2 ", "192.0.2.1", "chat line")
    refusals.close()
    assert [(each.label, each.limit) for each in refusals.last] == [
        ("echo tcp", "rate"),
        ("echo udp", "rate"),
        ("chat line", "rate"),
    ]


def test_each_limit_and_what_it_did_has_a_line_of_its_own(logged: Lines) -> None:
    refusals, _ = refused()
    refusals.add("echo tcp", "perip", "192.0.2.1")
    refusals.add("echo tcp", "rate", "192.0.2.1")
    refusals.add("echo tcp", "perip", "192.0.2.1", dry=True)
    refusals.add("echo tcp", "idle", "192.0.2.1", ended=True)
    refusals.add("echo tcp", "idle", "192.0.2.1", ended=True, dry=True)
    refusals.close()
    assert [
        states(line, refusal.limit, f" {refusal.action} ", refusal.peer, refusal.label)
        for line, refusal in zip(logged, refusals.last, strict=True)
    ] == [True] * 5
    assert logged.levels == ["warn", "warn", "warn", "info", "info"]
    assert [(each.limit, each.action) for each in refusals.last] == [
        ("perip", "refused"),
        ("rate", "refused"),
        ("perip", "would have refused"),
        ("idle", "ended"),
        ("idle", "would have ended"),
    ]


def test_a_peer_without_a_name_is_unknown_and_others_are_escaped(logged: Lines) -> None:
    refusals, _ = refused()
    refusals.add("chat line", "perip", "")
    refusals.add("chat line", "rate", "\x1b[2J{limit}\n")
    refusals.close()
    unknown, escaped = logged
    assert states(unknown, "perip", UNKNOWN_PEER, "chat line")
    assert states(escaped, "rate", r" \x1b[2J{limit}\n ", "chat line")


def test_close_logs_what_is_pending_and_leaves_no_timer(logged: Lines) -> None:
    refusals, clock = refused()
    for _ in range(3):
        refusals.add("echo tcp", "deny", "192.0.2.1")
    refusals.add("echo tcp", "hours", "192.0.2.1")
    refusals.close()
    refusals.close()
    [line] = logged[2:]
    assert states(line, "deny", "refused 2 ", "192.0.2.1", "echo tcp")
    assert clock.getDelayedCalls() == []


@given(st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from(["perip", "rate"]), st.booleans()), max_size=80))
def test_every_refusal_is_in_some_line_and_no_second_has_two(events: list[tuple[float, str, bool]]) -> None:
    refusals, clock = refused()
    times: dict[tuple[str, str], list[float]] = {}
    told = 0
    for lines in collected():
        for pause, limit, dry in events:
            clock.advance(pause)
            refusals.add("echo tcp", limit, "192.0.2.1", dry=dry)
            assert len(clock.getDelayedCalls()) <= 4
            while told < len(lines):
                words = lines[told].split()
                times.setdefault((words[1], words[2]), []).append(clock.seconds())
                told += 1
        refusals.close()
        counted = sum(int(line.partition(" in 1 s")[0].split()[-1]) if " in 1 s" in line else 1 for line in lines)
    assert counted == len(events) == len(refusals.last)
    # What a timer logs is seen here up to one step of the clock later.
    assert all(later - earlier >= 0.5 for seen in times.values() for earlier, later in pairwise(seen))
