"""A worker is told the very plan."""

from __future__ import annotations

from netsvc.address import parse_address
from netsvc.limits import parse_limits
from netsvc.plan import Listener, Plan, ServiceUse
from netsvc.workers.briefing import Briefing, Retirement


def test_what_is_told_is_what_is_understood() -> None:
    plan = Plan(
        {
            "echo": ServiceUse("echo"),
            "a:b": ServiceUse(
                "a:b",
                {"size": "7", "loud": True, "x": "é\udcff"},
                adhoc=True,
                limits=parse_limits({"hours": "mon 8:00-9:00"}),
            ),
        },
        (
            Listener("echo", "tcp", parse_address("[::1]:9", "stream")),
            Listener("a:b", "datagram", parse_address("unixgram:/x:mode=600", "datagram")),
        ),
        2.5,
        3,
        parse_limits({"allow": "10.0.0.0/8", "dryrun": "all", "idle": "none"}),
    )
    briefing = Briefing(plan, "netsvc.reactor", ("", "/a b"), None, ((5,), (6, 7)), ({}, {"privateKey": "\xff\n"}))
    line = briefing.to_line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert Briefing.from_line(line) == briefing


def test_a_retirement_is_one_line_and_read_as_it_was_written() -> None:
    retirement = Retirement((0, 3), (3,), 2.5)
    line = retirement.to_line()
    assert line.startswith(b"retire ")
    assert line.index(b"\n") == len(line) - 1
    assert Retirement.from_words(line.removeprefix(b"retire ").rstrip()) == retirement
