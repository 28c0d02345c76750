"""The files of the tutorial, as they stand after its last page. `tests.docs.test_docs` runs its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsvc.cli.new import new
from tests.builders.processes import PATIENCE, ROOT

TUTORIAL = (ROOT / "docs/tutorial.md").read_text("utf-8")
SAVED = re.compile(r"<!-- write: (\S+) -->\n```\w+\n(.*?)```$", re.S | re.M)


@pytest.fixture
def lights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(new, ["lights"], catch_exceptions=False).exit_code == 0
    for file, text in SAVED.findall(TUTORIAL):
        (tmp_path / "lights" / file).write_text(text, "utf-8")
    return tmp_path / "lights"


def run(lights: Path, *words: str) -> str:
    """Run a Python module in the directory of the service, without installing it."""
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=lights,
        env={**os.environ, "PYTHONPATH": f"{lights}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


# Its own tests, and a whole command, in processes of their own.
@pytest.mark.slow
def test_its_service_passes_its_tests_and_its_configuration_is_right(lights: Path) -> None:
    passed = re.search(r"(\d+) passed", run(lights, "pytest", "-q", "-p", "no:cacheprovider"))
    assert passed and f"…{passed[0]}…" in TUTORIAL
    assert "lights" in run(lights, "netsvc", "check")


@pytest.mark.skipif(not find_spec("ruff"), reason="needs ruff, of the extra dev")
def test_its_code_is_clean_by_our_own_rules(lights: Path) -> None:
    rules = ("--config", str(ROOT / "pyproject.toml"), "--no-cache")
    run(lights, "ruff", "format", *rules, "--check", ".")
    # The tutorial explains in prose what docstrings would say.
    run(lights, "ruff", "check", *rules, "--ignore=D1", ".")
