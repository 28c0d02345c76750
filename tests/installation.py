"""An environment of its own with netsvc and the examples installed, as a user has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.processes import ROOT

#: Seconds for pip, which has to download what is needed.
INSTALLING = 600
#: What a distribution of netsvc is made of, and the examples.
PARTS = ("LICENSE", "README.md", "examples", "netsvc", "pyproject.toml", "setup.cfg", "twisted")


@dataclass(frozen=True)
class Installation:
    """A virtual environment that netsvc is installed in, and a directory to work in that has the examples."""

    home: Path
    work: Path

    def program(self, name: str) -> Path:
        """Return the path of a program of the environment."""
        return self.home / "bin" / name

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell in which the environment is active."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "PYTEST"))}
        return {**clean, "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end, in the directory to work in."""
        return subprocess.run(
            [self.program(words[0]), *words[1:]],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALLING,
            check=False,
        )


def install(directories: pytest.TempPathFactory) -> Installation:
    """Make the environment, once in a run of the tests, and install netsvc and examples/classic."""
    return _install(directories.getbasetemp() / "installation")


@cache
def _install(directory: Path) -> Installation:
    made = Installation(directory / "venv", directory / "work")
    source = directory / "source"
    source.mkdir(parents=True)
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dropin.cache", ".*")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=leftovers)
        else:
            shutil.copy(ROOT / part, source / part)
    # Where commands are run there is no netsvc to import but the one that is installed.
    shutil.copytree(source / "examples", made.work / "examples")
    subprocess.run([sys.executable, "-m", "venv", made.home], check=True, timeout=INSTALLING)
    ran = made.run("pip", "install", "--disable-pip-version-check", str(source), str(source / "examples" / "classic"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return made
