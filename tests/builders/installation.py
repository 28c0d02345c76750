"""An environment of its own with netsvc and the examples installed, as a user has them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.builders.processes import (
    ROOT,
)

#: Seconds for pip, which has to download what is needed.
INSTALLING = 600
#: The commands that netsvc adds to twistd.
SERVICES = ("netsvc", "netsvc-chat", "netsvc-echo", "netsvc-files", "netsvc-reply")


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel of netsvc, what was built, and a directory to work in with the examples."""

    home: Path
    work: Path
    #: The sdist, and the wheel that was built from it.
    dist: Path

    def program(self, name: str) -> Path:
        """Return the path of a program of the environment."""
        return self.home / "bin" / name

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell in which the environment is active."""
        return {**clean_environment(), "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}"}

    def distributions(self) -> set[str]:
        """Return the names of what is installed, as their directories have them."""
        return {path.name.partition("-")[0] for path in self.home.glob("lib/python*/site-packages/*.dist-info")}

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
    """Make the environment, and install the wheel and examples/classic, once in each process of the tests."""
    return _install(directories.getbasetemp() / "installation")


@cache
def _install(directory: Path) -> Installation:
    # The directory of a process of pytest-xdist is in that of all of them, which build once.
    shared = directory.parents[1 if "PYTEST_XDIST_WORKER" in os.environ else 0] / "built"
    shared.mkdir(exist_ok=True)
    made = Installation(directory / "venv", directory / "work", shared / "dist")
    source = directory / "source"
    copy_checkout(source)
    # Where commands are run there is no netsvc to import but the one that is installed.
    shutil.copytree(source / "examples", made.work / "examples")
    subprocess.run([sys.executable, "-m", "venv", made.home], check=True, timeout=INSTALLING)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(made.dist.glob("*.whl")):
            building = [sys.executable, "-m", "build", "-q", "-o", str(made.dist), str(source)]
            subprocess.run(building, check=True, timeout=INSTALLING, env=made.environment, stdout=subprocess.DEVNULL)
    [wheel] = made.dist.glob("*.whl")
    ran = made.run("pip", "install", "--disable-pip-version-check", str(wheel), str(source / "examples" / "classic"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return made


def clean_environment() -> dict[str, str]:
    """Return the variables of a shell, without what this run of the tests has set for Python."""
    ours = ("PYTHON", "COV_", "PYTEST")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, "PYTHONPATH": ""}


def requirements() -> list[str]:
    """Return what netsvc requires, as setup.cfg declares it: `twisted[tls] >= 26.10`."""
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg", "utf-8")
    return declared["options"]["install_requires"].split("\n")[1:]


def copy_checkout(directory: Path) -> None:
    """Copy the checkout, without what is made in it, into a directory."""
    made = shutil.ignore_patterns(
        ".git", ".venv", ".nox", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "dropin.cache", "*.so"
    )
    shutil.copytree(ROOT, directory, ignore=made, dirs_exist_ok=True)


def shell(*words: object, cwd: Path) -> str:
    """Run a program, in an environment of no other Python, to its end, which must be a success."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    command = [str(word) for word in words]
    ended = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=INSTALLING, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def lists_all(scripts: Path, cwd: Path) -> None:
    """Check that the programs of an installation have every command and service."""
    listed = shell(scripts / "twistd", "--help", cwd=cwd)
    for name in SERVICES:
        assert re.search(rf"^    {name}\s", listed, re.M), listed
    listed = shell(scripts / "netsvc", "list", cwd=cwd)
    assert "not usable" not in listed
    for name in SERVICES[1:]:
        assert re.search(rf"^{name.removeprefix('netsvc-')}  ", listed, re.M), listed
