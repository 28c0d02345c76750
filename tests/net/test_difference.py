"""Two plans are compared: by where they listen, and by what their services are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netsvc.interfaces import Kind
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Plan, TwistdUse
from netsvc.server.difference import compare, describe_changes, may_clash, same_port, same_socket
from tests.builders.reloaded import plan

ONE = {"one": {"text": "one"}}


@pytest.mark.parametrize(
    ("one", "other", "kind", "same"),
    [
        ("9001", "09001", "stream", True),
        ("9001", "9001", "stream", True),
        ("127.0.0.1:0", "127.0.0.1:0", "stream", True),
        ("guard:idle=3:9001", "9001", "stream", True),
        ("9001", "9002", "stream", False),
        ("9001", "127.0.0.1:9001", "stream", False),
        ("tcp:9001", "9001", "stream", False),
        ("tcp:9001", "tcp:9001:backlog=5", "stream", False),
        ("unix:/x", "unix:/x:mode=600", "stream", False),
        ("proxy:trust=unix:9001", "9001", "stream", False),
        ("tls:9001:directory=/a", "tls:9001:directory=/b", "stream", True),
        ("tls:9001:directory=/a", "9001", "stream", True),
        ("proxy:trust=unix:9001", "proxy:trust=10.0.0.0/8:timeout=1:9001", "stream", True),
        ("udp:9001:interface=127.0.0.1", "127.0.0.1:9001", "datagram", True),
        ("unixgram:/x", "unixgram:/x:mode=600", "datagram", False),
    ],
)
def test_a_port_is_the_same_whatever_is_behind_it(one: str, other: str, kind: Kind, same: bool) -> None:
    assert (same_port(parse_address(one, kind)) == same_port(parse_address(other, kind))) is same


def test_a_stream_is_no_datagram() -> None:
    assert same_port(parse_address("9001", "stream")) != same_port(parse_address("9001", "datagram"))
    assert not may_clash(parse_address("9001", "stream"), 9001, parse_address("9001", "datagram"))


def test_a_socket_is_the_same_with_tls_and_without() -> None:
    plain, tls = parse_address("9001", "stream"), parse_address("tls:9001:directory=/a", "stream")
    assert same_socket(plain, tls)
    assert not same_socket(plain, parse_address("127.0.0.1:9001", "stream"))
    free = parse_address("127.0.0.1:0", "stream")
    assert not same_socket(free, free)


@pytest.mark.parametrize(
    ("old", "number", "new", "clash"),
    [
        ("127.0.0.1:9001", 9001, "9001", True),
        ("127.0.0.1:9001", 9001, "9002", False),
        ("127.0.0.1:0", 4444, "4444", True),
        ("127.0.0.1:0", 4444, "127.0.0.1:0", False),
        ("haproxy:tcp:9001", 9001, "9001", True),
        ("unix:/x", 0, "unix:/x:mode=600", True),
        ("unix:/x", 0, "unix:/y", False),
        ("unix:address=/x", 0, "unix:/x", True),
        ("unix:/x", 0, "9001", False),
        ("haproxy:tcp:9001", 0, "haproxy:tcp:9001:interface=127.0.0.1", True),
    ],
)
def test_what_may_be_in_the_way(old: str, number: int, new: str, clash: bool) -> None:
    assert may_clash(parse_address(old, "stream"), number, parse_address(new, "stream")) is clash


def test_kept_opened_and_closed() -> None:
    old = plan(ONE, "one tcp 9001", "one udp 9001", "one tcp 9002")
    new = plan(ONE, "one tcp 9003", "one udp 9001", "one tcp 9001")
    difference = compare(old, new)
    assert difference.kept == ((1, 1), (0, 2))
    assert difference.closed == (2,)
    assert difference.opened == (0,)


def test_of_several_free_ports_each_stays_with_its_protocol_if_it_can() -> None:
    two = {**ONE, "two": {"text": "two"}}
    old = plan(two, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")
    new = plan(two, "two tcp 127.0.0.1:0", "two loud 127.0.0.1:0", "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")
    difference = compare(old, new)
    assert difference.kept == ((1, 0), (0, 2), (2, 3))
    assert difference.opened == (1,)
    assert compare(new, old).kept == ((2, 0), (0, 1), (3, 2))


def test_uses_are_the_same_changed_added_or_gone() -> None:
    old = plan({"a": {"text": "a"}, "b": {"text": "b"}, "c": {"text": "c"}, "d": {"text": "d"}})
    new = plan({"a": {"text": "a"}, "b": {"text": "x"}, "c": {"service": "adapts", "text": "c"}, "e": {"text": "e"}})
    difference = compare(old, new)
    assert difference.same == {"a"}
    assert difference.changed == {"b", "c"}
    assert difference.added == {"e"}
    assert difference.gone == {"d"}
    limited = plan({"a": {"text": "a", "limits": {"perip": 3}}})
    assert compare(plan({"a": {"text": "a"}}), limited).same == {"a"}


def changes(old: Plan, new: Plan) -> str:
    return describe_changes(old, new, compare(old, new))


def test_what_changed_is_said_in_one_line() -> None:
    old = plan(ONE, "one tcp 9001", "one udp 9001")
    assert changes(old, old) == "2 listeners kept"
    assert changes(Plan({}, ()), Plan({}, ())) == "no listeners"
    assert changes(old, Plan({}, ())) == "2 listeners closed"
    assert changes(Plan({}, ()), plan(ONE, "one tcp 9001")) == "1 listener opened"
    new = plan(
        {"one": {"text": "x", "limits": {"perip": 2}}},
        "one loud 9001 connections=3",
        "one tcp 9002",
        drain=1.5,
        idle=3,
    )
    new = replace(new, workers=3, twistd=(TwistdUse(("web",)),))
    assert changes(old, new) == (
        "1 listener kept, 1 opened, 1 closed; changed: options of one, limits of one, what listens on 9001, "
        "limits of the process, twistd plugins, drain 1.5 s, 3 workers"
    )
