"""`--workers` on the command line, and what may not be divided."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from netsvc.plan import MOST_WORKERS, Plan, ServiceUse, undivided
from tests.test_arguments import THIS, mistake, mistakes, plan


def test_workers_are_a_number_within_bounds_or_one_for_each_core() -> None:
    assert plan("--tcp", "0").workers == 1
    assert plan("--tcp", "0", "--workers", "1").workers == 1
    assert plan("--tcp", "0", "--workers=256").workers == MOST_WORKERS == 256
    assert plan("--workers", "2", "0", alone="echo").workers == 2
    assert plan("--tcp", "0", "--workers", "auto").workers == len(os.sched_getaffinity(0))
    for value in ("0", "257", "two", "-1", "1.5", ""):
        expected = f"--workers {value}: a whole number from 1 to 256, or auto: one for each core"
        assert mistake("--tcp", "0", f"--workers={value}") == expected
    assert mistake("--tcp", "0", "--workers").startswith("--workers : a whole number")


def test_the_cores_are_counted_where_a_process_cannot_be_bound_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert plan("--tcp", "0", "--workers", "auto").workers == os.cpu_count()


def test_what_may_not_run_in_several_processes_is_named() -> None:
    words = ("--tcp", "0", "--reply", "0", "--files", "0", "--files-root", ".")
    assert plan(*words, "--workers", "2").workers == 2
    assert mistakes(*words, "--chat", "0", "--gate", "0", "--workers", "2") == tuple(
        f"--workers 2: {name} may not run in several processes, as it does not declare parallel=True; "
        "run it in a netsvc of its own, without --workers"
        for name in ("chat", "gate")
    )
    assert mistake("--serve", f"{THIS}:Line=0", "--workers", "2").startswith(f"--workers 2: {THIS}:Line may not run")
    assert plan("--chat", "0", "--workers", "1").workers == 1
    assert mistake("--tcp", "stdio:x", "--workers", "2") == (
        "--workers 2: stdio:x is one stream, and cannot be shared by several processes"
    )


def test_several_processes_need_linux() -> None:
    made = plan("--chat", "0")
    two = replace(made, workers=2)
    assert undivided(two, {}, "darwin") == ["--workers 2: needs Linux, whose kernel divides what comes among processes"]
    assert undivided(made, {}, "darwin") == []


def test_a_plugin_that_says_nothing_of_processes_runs_in_one() -> None:
    silent: Any = object()
    assert len(undivided(Plan({"x": ServiceUse("x")}, (), workers=2), {"x": silent}, "linux")) == 1
