from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.upgrade.briefing import Briefing, PassedPort

BRIEFING = Briefing(
    7,
    [
        PassedPort(
            "listener", "echo tcp", "stream", "unix:/run/é", [[8, 9], [10]], ["/run/é", "/run/é.lock"], {"k": "c"}
        ),
        PassedPort("plugin", "web", "datagram", "0.0.0.0 53", [[11]], []),
    ],
    12,
    [("web", 13)],
    True,
    [1, 2],
)


def test_what_is_written_is_read() -> None:
    line = BRIEFING.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Briefing.from_line(line) == BRIEFING
    assert BRIEFING.descriptors() == [8, 9, 10, 11, 13, 12]
    assert Briefing(1, []).descriptors() == []


def test_what_another_version_adds_is_ignored_and_what_it_leaves_out_is_not_needed() -> None:
    read: dict[str, Any] = json.loads(BRIEFING.to_line())
    read["colour"] = "blue"
    read["ports"][0]["colour"] = "red"
    assert Briefing.from_line(json.dumps(read).encode()) == BRIEFING
    for name in ("standin", "systemd", "detached", "ignored"):
        del read[name]
    del read["ports"][1]["files"], read["ports"][1]["key_files"]
    assert Briefing.from_line(json.dumps(read).encode()) == Briefing(7, BRIEFING.ports, ignored=[], systemd=[])


def test_one_of_another_kind_is_told_from_nonsense() -> None:
    with pytest.raises(ValueError, match="its version is 2, and not 1"):
        Briefing.from_line(b'{"version": 2}')


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_no_briefing(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Briefing.from_line(line)


@given(st.sampled_from(["version", "pid", "ports"]), st.none() | st.text() | st.lists(st.integers()))
def test_one_that_is_wrong_in_a_part_is_none(name: str, value: object) -> None:
    read = json.loads(BRIEFING.to_line()) | {name: value}
    # No ports are none, however that is written.
    if (name == "ports" and value in ("", [])) or (name == "pid" and str(value).strip().isdigit()):
        return
    with pytest.raises(ValueError):  # noqa: PT011
        Briefing.from_line(json.dumps(read).encode())
