"""The soak: what has grown is named, and a short one runs to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.soak import CALLS, MEMORY_BYTES, Soak, Vitals, arguments, judge

FIRST = Vitals(1, 20, 50_000_000, 5)


@pytest.mark.parametrize(
    ("last", "named"),
    [
        (FIRST, []),
        (Vitals(1, 19, 40_000_000, 0), []),
        (Vitals(1, 20, 50_000_000 + MEMORY_BYTES, 5 + CALLS), []),
        (Vitals(1, 21, 50_000_000, 5), ["21 descriptors, at first 20"]),
        (Vitals(1, 20, 50_000_000, 6 + CALLS), [f"{6 + CALLS} pending calls, at first 5"]),
        (Vitals(1, 20, 100_000_000, 5), ["100000000 bytes of memory, at first 50000000"]),
        (Vitals(2, 20, 50_000_000, 5), ["2 processes, at first 1"]),
    ],
)
def test_what_has_grown_is_named(last: Vitals, named: list[str]) -> None:
    assert judge(FIRST, last) == named


@pytest.mark.slow
def test_a_short_one_ends_well_with_reloads_and_an_upgrade(tmp_path: Path) -> None:
    lines: list[str] = []
    soak = Soak(arguments(["--seconds", "8", "--clients", "8"]), tmp_path, lines.append)
    asyncio.run(soak.run())
    assert lines
    assert soak.done["reloads"] and soak.done["upgrades"] and soak.done["echoes"] and soak.done["datagram peers"]
