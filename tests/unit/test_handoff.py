"""What one process tells another about ports and plan is read as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.listen.handoff import Handoff, PassedPort, WorkerStart
from netsvc.plan.address import parse_address
from netsvc.plan.encoding import decode, encode
from netsvc.plan.limits import parse_limits
from netsvc.plan.plan import AdminUse, Listener, Plan, ServiceUse, TwistdUse
from netsvc.workers.channel import Retirement

HANDOFF = Handoff(
    7,
    [
        PassedPort("listener", "echo tcp", "stream", "unix:/run/é", [8, 9], ["/run/é", "/run/é.lock"], {"k": "\xff\n"}),
        PassedPort("plugin", "web", "datagram", "0.0.0.0 53", [11], []),
    ],
    12,
    [("web", 13)],
    True,
    [1, 2],
)
PLAN = Plan(
    {
        "echo": ServiceUse("echo"),
        "a:b": ServiceUse(
            "a:b",
            {"size": "7", "loud": True, "x": "é\udcff", "many": ["a", 1, 2.5]},
            adhoc=True,
            limits=parse_limits({"hours": "mon 8:00-9:00"}),
            drain=1.5,
        ),
    },
    (
        Listener("echo", "tcp", parse_address("[::1]:9", "stream")),
        Listener("echo", "tcp", parse_address("proxy:trust=10.0.0.1:tls:9:cert=a.pem:key=b.pem", "stream")),
        Listener("a:b", "datagram", parse_address("unixgram:/x:mode=600", "datagram"), parse_limits({"idle": "5"})),
    ),
    2.5,
    3,
    parse_limits({"allow": "10.0.0.0/8", "dryrun": "all", "idle": "none"}),
    (TwistdUse(("web", "--port", "1")),),
    "/etc/netsvc.toml",
    AdminUse(parse_address("9100", "stream"), "/token"),
    "json",
    "/var/log/access",
    "/var/lib/netsvc",
    True,
    "netsvc.toml:1: ",
)


def test_what_is_written_is_read() -> None:
    line = HANDOFF.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Handoff.from_line(line) == HANDOFF
    assert HANDOFF.descriptors() == [8, 9, 11, 13, 12]
    assert Handoff(1, []).descriptors() == []


def test_a_worker_has_the_very_plan() -> None:
    handoff = Handoff(
        7, [], systemd=[], ignored=[], worker=WorkerStart(PLAN, "netsvc.reactor.epoll", ["", "/a b"], None, True, 2)
    )
    read = Handoff.from_line(handoff.to_line())
    assert read == handoff
    assert read.worker is not None
    # What does not count in a comparison of plans.
    for name in ("config", "origin", "limits", "admin"):
        assert getattr(read.worker.plan, name) == getattr(PLAN, name)
    assert [each.limits for each in read.worker.plan.listeners] == [each.limits for each in PLAN.listeners]
    assert [each.address.arguments for each in read.worker.plan.listeners] == [{}, {}, {"path": "/x", "mode": "600"}]


def test_what_another_version_adds_is_ignored_and_what_it_leaves_out_is_not_needed() -> None:
    read: dict[str, Any] = json.loads(HANDOFF.to_line())
    read["colour"] = "blue"
    read["ports"][0]["colour"] = "red"
    assert Handoff.from_line(json.dumps(read).encode()) == HANDOFF
    for name in ("proxy", "systemd", "detached", "ignored", "worker"):
        del read[name]
    del read["ports"][1]["files"], read["ports"][1]["key_files"]
    assert Handoff.from_line(json.dumps(read).encode()) == Handoff(7, HANDOFF.ports, ignored=[], systemd=[])
    plan = encode(PLAN)
    plan["Plan"]["colour"] = "blue"
    assert decode(plan) == PLAN


def test_one_of_another_version_is_told_from_nonsense() -> None:
    with pytest.raises(ValueError, match="its version is 2, not 1"):
        Handoff.from_line(b'{"version": 2}')


NONSENSE = st.recursive(st.none() | st.text(), st.lists)


@given(st.binary() | NONSENSE.map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_no_handoff(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Handoff.from_line(line)


@given(st.sampled_from(["version", "pid", "ports", "worker"]), st.none() | st.text() | st.lists(st.integers()))
def test_one_that_is_wrong_in_a_part_is_none(name: str, value: object) -> None:
    read = json.loads(HANDOFF.to_line()) | {name: value}
    # No ports are none, however that is written.
    if (name == "ports" and value in ("", [])) or (name == "pid" and str(value).strip().isdigit()):
        return
    if name == "worker" and value is None:
        return
    with pytest.raises(ValueError):  # noqa: PT011
        Handoff.from_line(json.dumps(read).encode())


@pytest.mark.parametrize(
    "read", [{}, {"Plan": 1}, {"Plan": {}}, {"os": {}}, {"tuple": 1}, {"dict": []}, {"a": 1, "b": 2}]
)
def test_nonsense_is_no_plan(read: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(read)


def test_a_retirement_is_one_line_and_read_as_it_was_written() -> None:
    retirement = Retirement((0, 3), (3,), 2.5)
    line = retirement.to_line()
    assert line.startswith(b"retire ")
    assert line.index(b"\n") == len(line) - 1
    assert Retirement.from_arguments(line.removeprefix(b"retire ").rstrip()) == retirement
