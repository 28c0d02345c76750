"""A level keeps its limits, whatever they become."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.base.errors import UserError
from netsvc.guard.admission import Ledger, Level
from netsvc.plan.limits import DEFAULTS, LIMITS, parse_limits

HOST = "192.0.2.1"
NOON = time.strptime("2024 1 3 12:00", "%Y %m %d %H:%M")


def level(**limits: object) -> Level:
    return Level("echo", parse_limits(limits), Clock(), localtime=lambda: NOON)


def tried(ledger: Ledger, now: float = 0.0, host: str | None = HOST, peer: str | None = None) -> str:
    """Let one in, as a gate does; return what is in the way."""
    key = host or "" if peer is None else peer
    name = ledger.breach(host, key, now) or ledger.overrun(now)
    if not name:
        ledger.enter(key, now)
    return name


def several(count: int, *arguments: Any, **named: Any) -> list[str]:
    return [tried(*arguments, **named) for _ in range(count)]


def test_without_limits_anybody_may_come() -> None:
    free = level()
    assert several(1000, free.ledger("stream")) == [""] * 1000
    assert free.live == 1000


def test_so_many_may_be_there_at_a_time() -> None:
    ledger = level(connections=2, sessions=1).ledger("stream")
    assert several(3, ledger) == ["", "", "connections"]
    ledger.leave(HOST)
    assert several(2, ledger) == ["", "connections"]


def test_sessions_are_counted_apart_from_connections() -> None:
    both = level(connections=2, sessions=1, perip=2, rate=2)
    assert several(2, both.ledger("datagram")) == ["", "sessions"]
    assert several(3, both.ledger("stream")) == ["", "", "connections"]
    assert both.live == 3


def test_so_many_of_one_peer_may_be_there_at_a_time() -> None:
    ledger = level(perip=2).ledger("stream")
    assert several(3, ledger) == ["", "", "perip"]
    assert several(3, ledger, host="192.0.2.2") == ["", "", "perip"]
    ledger.leave(HOST)
    assert several(2, ledger) == ["", "perip"]
    assert ledger.peers == {HOST: 2, "192.0.2.2": 2}


def test_users_of_unix_sockets_are_peers_and_unknown_ones_are_not() -> None:
    ledger = level(perip=1, periprate=1).ledger("stream")
    assert several(2, ledger, host=None, peer="uid 7") == ["", "perip"]
    assert several(50, ledger, host=None, peer="") == [""] * 50


def test_so_many_may_come_a_second() -> None:
    ledger = level(rate=2).ledger("stream")
    assert several(3, ledger) == ["", "", "rate"]
    assert several(2, ledger, 0.5) == ["", "rate"]
    assert several(3, ledger, 9.0) == ["", "", "rate"]


def test_a_burst_may_come_at_once() -> None:
    ledger = level(rate=0.5, burst=3).ledger("stream")
    assert several(4, ledger) == ["", "", "", "rate"]
    assert several(2, ledger, 2.0) == ["", "rate"]


def test_a_burst_is_one_at_least() -> None:
    ledger = level(rate=0.1, periprate=0.1).ledger("stream")
    assert several(2, ledger) == ["", "periprate"]
    assert several(2, ledger, 10.0) == ["", "periprate"]


def test_so_many_of_one_peer_may_come_a_second() -> None:
    ledger = level(periprate=1, peripburst=2).ledger("stream")
    assert several(3, ledger) == ["", "", "periprate"]
    assert several(3, ledger, host="192.0.2.2") == ["", "", "periprate"]
    assert several(2, ledger, 1.0) == ["", "periprate"]


def test_once_the_rate_is_exceeded_nobody_may_come_for_a_while() -> None:
    ledger = level(rate=10, pause=30).ledger("stream")
    assert several(12, ledger) == [""] * 10 + ["rate", "pause"]
    assert tried(ledger, 29.9) == "pause"
    assert several(11, ledger, 30.0) == [""] * 10 + ["rate"]
    assert tried(ledger, 59.9) == "pause"


def test_what_another_limit_refuses_begins_no_pause() -> None:
    ledger = level(rate=1, pause=30, perip=1).ledger("stream")
    assert several(3, ledger) == ["", "perip", "perip"]
    assert tried(ledger, 1.0, host="192.0.2.2") == ""


def test_a_clock_set_back_does_not_prolong_a_pause() -> None:
    ledger = level(rate=1, pause=30).ledger("stream")
    assert several(2, ledger, 1_000_000.0) == ["", "rate"]
    assert tried(ledger, 5.0) == "pause"
    assert tried(ledger, 35.0) == ""


def test_datagrams_know_no_pause() -> None:
    ledger = level(rate=1, pause=30).ledger("datagram")
    assert several(2, ledger) == ["", "rate"]
    assert tried(ledger, 1.0) == ""


def test_lists_of_networks_judge_hosts_and_not_users() -> None:
    ledger = level(allow="192.0.2.0/24", deny="192.0.2.128/25").ledger("stream")
    assert [tried(ledger, host=host) for host in (HOST, "192.0.2.200", "10.0.0.1")] == ["", "deny", "allow"]
    assert tried(ledger, host=None, peer="uid 7") == ""


def test_a_host_is_only_let_in_at_its_hours() -> None:
    assert tried(level(hours="wed 12:00-12:01").ledger("stream")) == ""
    assert tried(level(hours="wed 12:01-12:00").ledger("stream")) == "hours"
    assert tried(level(hours="wed 12:01-12:00").ledger("datagram"), host=None) == "hours"


def test_the_local_time_is_that_of_the_system_where_nothing_else_is_said() -> None:
    day = time.strftime("%a").lower()
    open_now = Level("echo", parse_limits({"hours": "00:00-24:00"}), Clock())
    assert tried(open_now.ledger("stream")) == "", day


def test_a_waived_limit_is_not_looked_at() -> None:
    limits = {
        "connections": 1,
        "perip": 1,
        "rate": 1,
        "periprate": 1,
        "pause": 5,
        "allow": "::1",
        "hours": "sun 1:00-2:00",
    }
    ledger = level(**limits).ledger("stream")
    ledger.enter(HOST, 0.0)
    waived: list[str] = []
    while name := ledger.breach(HOST, HOST, 0.0, waived):
        waived.append(name)
    assert waived == ["allow", "hours", "connections", "perip", "periprate"]
    assert ledger.overrun(0.0) == "rate"
    assert ledger.overrun(0.0) == "pause"
    assert ledger.overrun(0.0, ["pause"]) == "rate"
    assert ledger.overrun(0.0, ["pause", "rate"]) == ""


def test_a_rate_that_only_reports_is_never_in_debt_and_begins_no_pause() -> None:
    ledger = level(rate=1, pause=30, dryrun="rate").ledger("stream")
    for _ in range(100):
        ledger.enter(HOST, 0.0)
    assert ledger.overrun(0.0) == "rate"
    assert ledger.overrun(0.5) == "rate"
    assert ledger.overrun(1.0) == ""


@pytest.mark.parametrize("dryrun", ["rate,pause", "all"])
def test_a_pause_that_only_reports_is_begun_by_a_rate_that_does(dryrun: str) -> None:
    ledger = level(rate=1, pause=30, dryrun=dryrun).ledger("stream")
    ledger.enter(HOST, 0.0)
    assert ledger.overrun(0.0) == "rate"
    assert ledger.overrun(0.0, ["rate"]) == ""
    assert ledger.overrun(29.0) == "pause"
    # As one that is kept is not prolonged by those who come in it.
    ledger.enter(HOST, 29.0)
    assert ledger.overrun(29.0, ["pause"]) == "rate"
    assert ledger.overrun(30.0) == ""


def test_a_limit_that_only_reports_says_so() -> None:
    dry = level(connections=1, dryrun="connections")
    dry.ledger("stream").enter(HOST, 0.0)
    assert dry.ledger("stream").breach(HOST, HOST, 0.0) == "connections"
    assert [dry.reports(name) for name in ("connections", "perip")] == [True, False]
    assert level(dryrun="all").reports("perip")
    assert not level().reports("perip")


def test_who_was_not_let_in_cannot_leave() -> None:
    ledger = level().ledger("stream")
    ledger.enter(HOST, 0.0)
    ledger.leave(HOST)
    with pytest.raises(KeyError):
        ledger.leave(HOST)
    assert (ledger.live, ledger.peers) == (0, {})


def test_defaults_hold_where_nothing_is_set() -> None:
    process = Level("process", parse_limits({"connections": 5, "idle": "none"}), Clock(), DEFAULTS)
    assert process.limits == {**DEFAULTS, "connections": 5, "idle": None}


def test_a_lifted_limit_is_none() -> None:
    lifted = parse_limits(dict.fromkeys((name for name in LIMITS if name != "dryrun"), "none"))
    process = Level("process", lifted, Clock(), DEFAULTS)
    ledger = process.ledger("stream")
    assert several(1000, ledger) == [""] * 1000
    assert process.bucket("readall") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
def test_the_defaults_for_one_peer_do_not_hold_for_this_machine(host: str | None) -> None:
    peer = host or "uid 7"
    defaults = {"perip": 2, "periprate": 1, "peripburst": 3}
    spared = Level("process", {}, Clock(), defaults).ledger("stream")
    assert several(100, spared, host=host, peer=peer) == [""] * 100
    assert several(3, spared, host=HOST) == ["", "", "perip"]
    for given_limits, limit, most in (({"perip": 2}, "perip", 2), ({"periprate": 1}, "periprate", 1)):
        held = Level("process", given_limits, Clock(), defaults).ledger("stream")
        assert several(most + 1, held, host=host, peer=peer) == [""] * most + [limit]
    held = Level("process", {"peripburst": 4}, Clock(), defaults).ledger("stream")
    assert several(5, held, host=host, peer=peer) == ["", "", "", "", "periprate"]


def test_a_change_to_a_default_spares_this_machine_at_once() -> None:
    defaults = {"perip": 1, "periprate": 1, "peripburst": 2}
    process = Level("process", defaults, Clock(), defaults)
    ledger = process.ledger("stream")
    process.change({"perip": None, "periprate": 1, "peripburst": 2})
    assert several(3, ledger, host="127.0.0.1") == ["", "", "periprate"]
    process.change({})
    assert several(3, ledger, host="127.0.0.1") == ["", "", ""]


def test_a_rate_that_is_set_has_no_default_burst() -> None:
    process = Level("process", parse_limits({"periprate": 2}), Clock(), DEFAULTS)
    assert "peripburst" not in process.limits
    assert several(3, process.ledger("stream")) == ["", "", "periprate"]
    both = Level("process", parse_limits({"periprate": 2, "peripburst": 3}), Clock(), DEFAULTS)
    assert both.limits["peripburst"] == 3


def test_a_client_that_is_merely_fast_is_served_by_default() -> None:
    process = Level("process", parse_limits({"perip": "none"}), Clock(), DEFAULTS)
    for kind in ("stream", "datagram"):
        assert several(10_001, process.ledger(kind)) == [""] * 10_000 + ["periprate"]
        assert several(1001, process.ledger(kind), 1.0) == [""] * 1000 + ["periprate"]


def test_all_take_their_bytes_from_one_bucket() -> None:
    echo = level(readall="1K")
    bucket = echo.bucket("readall")
    assert bucket is not None
    assert (bucket.rate, bucket.burst) == (1024, 1024)
    assert echo.bucket("writeall") is None
    echo.change(parse_limits({"readall": "1K", "writeall": "2K"}))
    assert echo.bucket("readall") is bucket
    echo.change(parse_limits({"readall": "2K"}))
    assert echo.bucket("readall") is not bucket
    assert echo.bucket("writeall") is None


def test_a_change_keeps_what_is_there() -> None:
    echo = level(connections=5)
    ledger = echo.ledger("stream")
    several(3, ledger)
    echo.change(parse_limits({"connections": 2, "perip": 4}))
    assert tried(ledger) == "connections"
    echo.change(parse_limits({"perip": 3}))
    assert echo.ledger("stream") is ledger
    assert tried(ledger) == "perip"
    assert (echo.live, ledger.live) == (3, 3)


def test_a_change_keeps_what_is_left_of_a_rate_that_stays_the_same() -> None:
    same = {"rate": 1, "burst": 2, "pause": 10, "periprate": 1, "peripburst": 9}
    echo = level(**same)
    ledger = echo.ledger("stream")
    assert several(3, ledger) == ["", "", "rate"]
    echo.change(parse_limits({**same, "connections": 50}))
    assert several(1, ledger) == ["pause"]
    echo.change(parse_limits({**same, "pause": "none"}))
    assert several(1, ledger) == ["rate"]
    echo.change(parse_limits({**same, "pause": "none", "rate": 5}))
    assert several(3, ledger) == ["", "", "rate"]
    echo.change(parse_limits({"periprate": 1, "peripburst": 9}))
    assert several(6, ledger) == [""] * 5 + ["periprate"]
    echo.change(parse_limits({"periprate": 1, "peripburst": 1}))
    assert several(2, ledger) == ["", "periprate"]


def test_a_change_ends_a_pause_of_a_rate_that_is_no_more() -> None:
    echo = level(rate=1, pause=1000)
    ledger = echo.ledger("stream")
    assert several(2, ledger) == ["", "rate"]
    echo.change({})
    assert not ledger.paced
    echo.change(parse_limits({"rate": 1, "pause": 1000}))
    assert tried(ledger) == ""


def test_a_change_reads_files_again(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_text("192.0.2.0/24\n")
    limits = parse_limits({"deny": f"@{file}"})
    echo = Level("echo", limits, Clock())
    assert tried(echo.ledger("stream")) == "deny"
    file.write_text("10.0.0.0/8\n")
    assert tried(echo.ledger("stream")) == "deny"
    echo.change(limits)
    assert tried(echo.ledger("stream")) == ""
    echo.change({})
    assert tried(echo.ledger("stream"), host="10.0.0.1") == ""


def test_a_change_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_text("192.0.2.0/24\n")
    limits = parse_limits({"deny": f"@{file}"})
    echo = Level("echo", limits, Clock())
    file.write_text("192.0.2.0/24\nnonsense\n")
    with pytest.raises(UserError, match=r"banned:2: nonsense \(deny\)"):
        echo.change(parse_limits({"deny": f"@{file}", "connections": 1}))
    assert echo.limits == limits
    assert tried(echo.ledger("stream")) == "deny"
    assert several(2, echo.ledger("stream"), host="10.0.0.1") == ["", ""]
    with pytest.raises(UserError, match=r"banned:2: nonsense"):
        Level("echo", limits, Clock())


def test_several_levels_change_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = level(), level()
    ready = one.prepare(parse_limits({"connections": 1}))
    with pytest.raises(UserError, match="No such file"):
        other.prepare(parse_limits({"deny": f"@{tmp_path}/gone"}))
    assert several(2, one.ledger("stream")) == ["", ""]
    ready()
    assert tried(one.ledger("stream")) == "connections"


@given(
    rate=st.floats(0.01, 1000),
    burst=st.none() | st.integers(1, 20),
    pause=st.none() | st.floats(0.1, 10),
    gaps=st.lists(st.floats(0, 3), max_size=100),
)
def test_no_more_than_burst_and_rate_are_let_in(
    rate: float, burst: int | None, pause: float | None, gaps: list[float]
) -> None:
    ledger = level(rate=rate, burst=burst or "none", pause=pause or "none").ledger("stream")
    now, entered, quiet_until = 0.0, 0, -1.0
    for gap in gaps:
        now += gap
        name = tried(ledger, now)
        entered += not name
        assert entered <= (burst or max(1, rate)) + rate * now + 1e-3
        assert (name == "pause") == (now < quiet_until)
        if name == "rate" and pause:
            quiet_until = now + pause
