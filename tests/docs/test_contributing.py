"""What CONTRIBUTING.md shows works, and the paths that the maintainers' documents name exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.installation import INSTALLING, copy_checkout
from tests.builders.processes import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", CONTRIBUTING, re.S)
#: A path in the checkout: `netsvc/plan/limits.py`, `tests/unit/`, `README.md`.
PATH = re.compile(r"`((?:\.?[\w-]+/)+(?:[\w-]+(?:\.\w+)?)?|[\w-]+\.(?:md|py|cfg|toml))`")
#: What is made, and not in the checkout.
MADE = {"build/docs/index.html", "dist/"}
DOCUMENTS = [path for path in (ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md") if path.exists()]


@pytest.mark.source
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document: Path) -> None:
    named = set(PATH.findall(document.read_text("utf-8"))) - MADE
    # A file may be named inside the package that is spoken of: `guard/gate.py`.
    assert not sorted(each for each in named if not (ROOT / each).exists() and not (ROOT / "netsvc" / each).exists())
    assert len(named) > 5


def test_paths_are_found_in_a_text() -> None:
    text = "`netsvc/plan/limits.py` and `tests/unit/`, `.ci/run`, `README.md`; not `netsvc init`, `Plan`, or `/metrics`"
    assert PATH.findall(text) == ["netsvc/plan/limits.py", "tests/unit/", ".ci/run", "README.md"]


@pytest.mark.slow
def test_the_commands_work_in_a_fresh_checkout(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    # Tests are found, in one process; those of the named files run. .ci/run runs all.
    whole = {"PYTEST_ADDOPTS": "--collect-only -q -n 0 tests/docs"}
    lines = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
    assert [line.split()[0] for line in lines].count(".venv/bin/pytest") == 5
    checks = [command for line in lines if "ruff" in line or "sphinx" in line for command in line.split(" && ")]
    # .ci/run is going to run these, with what they need.
    assert set(checks) <= set((ROOT / ".ci/run").read_text("utf-8").splitlines())
    # .ci/run makes such an environment, too: this one.
    assert lines[0] == "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    # A session takes minutes; tests/docs/test_workflows.py checks their names.
    for line in (line for line in lines[1:] if not re.search(r"ruff|sphinx|\[docs\]|nox -s", line)):
        named = "tests/" in line or "pytest" not in line
        ended = subprocess.run(
            ["bash", "-euc", line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": "", **({} if named else whole)},
            capture_output=True,
            text=True,
            timeout=INSTALLING,
            check=False,
        )
        assert ended.returncode == 0, f"{line}\n{ended.stdout[-5000:]}{ended.stderr}"
    assert {path: path.read_bytes() for path in before} == before
