"""`--workers` on the command line, and what may not be divided."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from netsvc.plan.plan import MOST_WORKERS, Plan, ServiceUse, undivided
from tests.builders.arguments import THIS, errors, mistake, plan
from tests.builders.facts import lacks


def test_workers_are_a_number_within_bounds_or_one_for_each_core() -> None:
    assert plan("--tcp", "0").workers == 1
    assert plan("--tcp", "0", "--workers", "1").workers == 1
    assert plan("--tcp", "0", "--workers=256").workers == MOST_WORKERS == 256
    assert plan("--workers", "2", "0", alone="echo").workers == 2
    assert plan("--tcp", "0", "--workers", "auto").workers == len(os.sched_getaffinity(0))
    for value in ("0", "257", "two", "-1", "1.5", ""):
        assert lacks(mistake("--tcp", "0", f"--workers={value}"), f"--workers {value}: ", "1 to 256", "auto") == []
    assert mistake("--tcp", "0", "--workers").startswith("--workers ")


def test_the_cores_are_counted_where_a_process_cannot_be_bound_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert plan("--tcp", "0", "--workers", "auto").workers == os.cpu_count()


def test_what_may_not_run_in_several_processes_is_named() -> None:
    words = ("--tcp", "0", "--reply", "0", "--files", "0", "--files-root", ".")
    assert plan(*words, "--workers", "2").workers == 2
    lines = errors(*words, "--chat", "0", "--gate", "0", "--workers", "2")
    for line, name in zip(lines, ("chat", "gate"), strict=True):
        assert lacks(line, f"--workers 2: {name} ", "parallel=True", "--workers") == []
    assert mistake("--serve", f"{THIS}:Line=0", "--workers", "2").startswith(f"--workers 2: {THIS}:Line ")
    assert plan("--chat", "0", "--workers", "1").workers == 1
    assert mistake("--tcp", "stdio:x", "--workers", "2").startswith("--workers 2: stdio:x ")


def test_several_processes_need_linux() -> None:
    made = plan("--chat", "0")
    two = replace(made, workers=2)
    [line] = undivided(two, {}, "darwin")
    assert lacks(line, "--workers 2: ", "Linux") == []
    assert undivided(made, {}, "darwin") == []


def test_a_plugin_that_says_nothing_of_processes_runs_in_one() -> None:
    silent: Any = object()
    assert len(undivided(Plan({"x": ServiceUse("x")}, (), workers=2), {"x": silent}, "linux")) == 1
