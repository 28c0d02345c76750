"""A peer comes in past all levels, or past none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.guard.admission import Gate, Level
from netsvc.guard.refusals import Refusals
from netsvc.interfaces import Kind
from netsvc.plan.limits import parse_limits

HOST = "192.0.2.1"
SUNDAY = time.strptime("2024 1 7 12:00", "%Y %m %d %H:%M")


class Bench:
    """A gate over levels of these limits."""

    def __init__(self, *limits: dict[str, Any], kind: Kind = "stream") -> None:
        self.clock = Clock()
        self.refusals = Refusals(self.clock)
        self.levels = [
            Level(f"level {number}", parse_limits(each), self.clock, localtime=lambda: SUNDAY)
            for number, each in enumerate(limits)
        ]
        self.gate = Gate(self.levels, self.refusals, "echo tcp", kind, self.clock)

    def live(self) -> list[int]:
        return [level.live for level in self.levels]

    def refused(self) -> dict[str, int]:
        return dict(self.gate.tally.counts.refused)

    def reported(self) -> dict[str, int]:
        return dict(self.gate.tally.counts.reported)


benches: list[Bench] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while benches:
        bench = benches.pop()
        bench.refusals.close()
        assert bench.clock.getDelayedCalls() == []


def gated(*limits: dict[str, Any], kind: Kind = "stream") -> Bench:
    benches.append(Bench(*limits, kind=kind))
    return benches[-1]


def test_who_is_admitted_is_counted_at_every_level_until_he_leaves() -> None:
    bench = gated({}, {}, {})
    assert bench.gate.admit("::ffff:192.0.2.1") == HOST
    assert bench.gate.admit("2001:db8::1") == "2001:db8::/64"
    assert bench.gate.admit(None, "uid 7") == "uid 7"
    assert bench.gate.admit(None) == ""
    assert bench.live() == [4, 4, 4]
    for peer in (HOST, "2001:db8::/64", "uid 7", ""):
        bench.gate.leave(peer)
    assert bench.live() == [0, 0, 0]
    assert bench.refused() == {} and not bench.refusals.last


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"connections": 1}, "connections"),
        ({"perip": 1}, "perip"),
        ({"rate": 1}, "rate"),
        ({"periprate": 1}, "periprate"),
    ],
)
def test_a_refusal_leaves_no_trace_at_any_level(place: int, limits: dict[str, Any], name: str) -> None:
    levels: list[dict[str, Any]] = [{"rate": 1, "burst": 2}, {"rate": 1, "burst": 2}, {"rate": 1, "burst": 2}]
    levels[place] |= {"burst": 1 if name == "rate" else 2, **limits}
    bench = gated(*levels)
    assert bench.gate.admit(HOST) == HOST
    assert [bench.gate.admit(HOST) for _ in range(5)] == [None] * 5
    assert bench.live() == [1, 1, 1]
    assert bench.refused() == {name: 5}
    # Nothing was taken from the rates of the others: one may come yet.
    bench.levels[place].change(parse_limits({}))
    assert bench.gate.admit(HOST) == HOST
    assert bench.gate.admit(HOST) is None
    assert bench.live() == [2, 2, 2]


def test_a_service_shares_its_limits_among_its_listeners() -> None:
    bench = gated({}, {"connections": 1})
    other = Gate([bench.levels[0], bench.levels[1]], bench.refusals, "echo tcp 2", "stream", bench.clock)
    assert bench.gate.admit(HOST)
    assert other.admit(HOST) is None
    bench.gate.leave(HOST)
    assert other.admit(HOST) == HOST
    assert (bench.refused(), other.tally.counts.refused) == ({}, {"connections": 1})
    assert [each.label for each in bench.refusals.last] == ["echo tcp 2"]


def test_datagrams_are_limited_by_sessions() -> None:
    bench = gated({"connections": 1, "sessions": 2}, kind="datagram")
    assert [bench.gate.admit(HOST) for _ in range(3)] == [HOST, HOST, None]
    assert bench.refused() == {"sessions": 1}


class Table:
    """Some who have come by a gate, and will leave when they are asked to."""

    def __init__(self, gate: Gate, count: int) -> None:
        self.gate = gate
        self.peers = [gate.admit(HOST) for _ in range(count)]
        gate.add_table(self)

    def __len__(self) -> int:
        return len(self.peers)

    def count(self, peer: str) -> int:
        return self.peers.count(peer)

    def forget_one(self) -> None:
        self.gate.leave(self.peers.pop() or "")

    def forget_one_of(self, peer: str) -> None:
        self.peers.remove(peer)
        self.gate.leave(peer)


@pytest.mark.parametrize("limit", ["sessions", "perip"])
def test_where_a_level_is_full_the_largest_of_its_tables_makes_room(limit: str) -> None:
    bench = gated({limit: 3}, kind="datagram")
    other = Gate(bench.levels, bench.refusals, "chat udp", "datagram", bench.clock)
    large, small = Table(bench.gate, 2), Table(other, 1)
    assert other.admit(HOST)
    assert (len(large), len(small)) == (1, 1) and bench.live() == [3]
    # One that is gone is not asked.
    bench.gate.remove_table(large)
    assert other.admit(HOST)
    assert (len(large), len(small)) == (1, 0) and bench.live() == [3]
    # None has to leave where there is room.
    other.leave(HOST)
    assert other.admit(HOST) and bench.live() == [3]
    # Without a table there is nothing to make room in.
    other.remove_table(small)
    assert other.admit(HOST) is None
    assert (bench.refused(), other.tally.counts.refused) == ({}, {limit: 1})


@pytest.mark.parametrize("refusing", [{"deny": "192.0.2.0/24"}, {"periprate": 1}, {"rate": 1}])
@pytest.mark.parametrize("limit", ["sessions", "perip"])
def test_no_session_makes_room_for_one_that_is_refused(limit: str, refusing: dict[str, Any]) -> None:
    bench = gated({limit: 1}, {}, kind="datagram")
    table = Table(bench.gate, 1)
    bench.levels[1].change(parse_limits(refusing))
    while bench.gate.admit(HOST):
        table.peers.append(HOST)
    assert len(table) == 1
    assert bench.refused() == dict.fromkeys(refusing, 1)


@pytest.mark.parametrize("limit", ["sessions", "perip"])
def test_a_dry_run_of_a_limit_on_sessions_evicts_none(limit: str) -> None:
    bench = gated({limit: 1, "dryrun": limit}, kind="datagram")
    table = Table(bench.gate, 1)
    assert bench.gate.admit(HOST)
    assert (len(table), bench.live(), bench.reported()) == (1, [2], {limit: 1})


def test_the_first_limit_in_the_way_is_the_one_that_is_counted() -> None:
    limits = {"deny": "192.0.2.0/24", "hours": "mon 8:00-9:00", "connections": 1, "perip": 1, "rate": 1, "periprate": 1}
    bench = gated(limits)
    assert bench.gate.admit(HOST) is None
    assert bench.gate.admit("10.0.0.1") is None
    assert bench.refused() == {"deny": 1, "hours": 1}


def test_who_is_refused_by_one_level_begins_no_pause_at_another() -> None:
    bench = gated({"rate": 1, "pause": 60}, {}, {"deny": HOST})
    assert bench.gate.admit("10.0.0.1")
    assert bench.gate.admit(HOST) is None
    bench.clock.advance(1)
    assert bench.gate.admit("10.0.0.1")
    assert bench.gate.admit("10.0.0.1") is None
    bench.clock.advance(1)
    assert bench.gate.admit("10.0.0.1") is None
    assert bench.refused() == {"deny": 1, "rate": 1, "pause": 1}


def test_a_limit_that_only_reports_lets_all_in_and_counts_them() -> None:
    bench = gated({"connections": 2, "dryrun": "connections"})
    assert [bench.gate.admit(HOST) for _ in range(5)] == [HOST] * 5
    assert bench.live() == [5]
    assert bench.refused() == {}
    assert bench.reported() == {"connections": 3}


def test_a_limit_only_reports_at_the_level_that_says_so() -> None:
    bench = gated({"connections": 2}, {"connections": 1, "dryrun": "all"})
    assert [bench.gate.admit(HOST) for _ in range(3)] == [HOST, HOST, None]
    assert bench.reported() == {"connections": 1}
    assert bench.refused() == {"connections": 1}


def test_every_limit_that_only_reports_is_reported() -> None:
    limits = {"allow": "10.0.0.0/8", "hours": "mon 8:00-9:00", "connections": 1, "perip": 1, "periprate": 1, "rate": 1}
    bench = gated({**limits, "pause": 5, "dryrun": "all"})
    assert bench.gate.admit(HOST)
    assert bench.reported() == {"allow": 1, "hours": 1}
    assert bench.gate.admit(HOST)
    second = {"allow": 2, "hours": 2, "connections": 1, "perip": 1, "periprate": 1, "rate": 1}
    assert bench.reported() == second
    assert bench.gate.admit(HOST)
    assert bench.reported() == {
        "allow": 3,
        "hours": 3,
        "connections": 2,
        "perip": 2,
        "periprate": 2,
        "pause": 1,
        "rate": 2,
    }
    assert bench.live() == [3]


def test_behind_a_limit_that_only_reports_the_others_are_kept() -> None:
    bench = gated({"allow": "10.0.0.0/8", "perip": 1, "dryrun": "allow"})
    assert [bench.gate.admit(HOST) for _ in range(2)] == [HOST, None]
    assert (bench.reported(), bench.refused()) == ({"allow": 2}, {"perip": 1})


def test_limits_that_change_hold_for_the_next_one() -> None:
    bench = gated({"connections": 1}, {})
    assert [bench.gate.admit(HOST) for _ in range(2)] == [HOST, None]
    bench.levels[0].change(parse_limits({"connections": 2}))
    bench.levels[1].change(parse_limits({"rate": 1}))
    assert [bench.gate.admit(HOST) for _ in range(2)] == [HOST, None]
    assert bench.live() == [2, 2]


LEVELS = st.fixed_dictionaries(
    {},
    optional={
        "connections": st.integers(1, 6),
        "perip": st.integers(1, 3),
        "rate": st.floats(0.1, 5),
        "burst": st.integers(1, 4),
        "periprate": st.floats(0.1, 5),
        "peripburst": st.integers(1, 4),
        "pause": st.floats(0.1, 3),
        "deny": st.just("192.0.2.3"),
        "allow": st.just("192.0.2.0/30"),
    },
)
HOSTS = st.sampled_from(["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "127.0.0.1"])
EVENTS = st.one_of(
    st.tuples(st.just("come"), HOSTS),
    st.tuples(st.just("go"), st.integers(0, 99)),
    st.tuples(st.just("wait"), st.floats(0, 2)),
    st.tuples(st.just("change"), st.tuples(st.integers(0, 2), LEVELS)),
)


@given(st.lists(LEVELS, min_size=3, max_size=3), st.lists(EVENTS, max_size=80))
def test_every_level_counts_who_is_there_and_keeps_its_limits(
    levels: list[dict[str, Any]], events: list[tuple[str, Any]]
) -> None:
    bench = Bench(*levels)
    inside: list[str] = []
    ledgers = [level.ledger("stream") for level in bench.levels]
    for event, value in events:
        if event == "come":
            before = [(ledger.live, dict(ledger.peers)) for ledger in ledgers]
            peer = bench.gate.admit(value)
            if peer is None:
                assert [(ledger.live, ledger.peers) for ledger in ledgers] == before
            else:
                inside.append(peer)
                for level in bench.levels:
                    assert level.live <= level.limits.get("connections", 99)
                    assert level.ledger("stream").peers[peer] <= level.limits.get("perip", 99)
                    assert "deny" not in level.limits or peer != "192.0.2.3"
                    assert "allow" not in level.limits or peer.startswith("192.0.2.")
        elif event == "go" and inside:
            bench.gate.leave(inside.pop(value % len(inside)))
        elif event == "wait":
            bench.clock.advance(value)
        elif event == "change":
            bench.levels[value[0]].change(parse_limits(value[1]))
        assert all(ledger.live == len(inside) and ledger.peers == Counter(inside) for ledger in ledgers)
    for peer in inside:
        bench.gate.leave(peer)
    assert all((ledger.live, ledger.peers) == (0, {}) for ledger in ledgers)
    bench.refusals.close()
    assert bench.clock.getDelayedCalls() == []
