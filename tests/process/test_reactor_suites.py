"""Twisted's own reactor suites end on the fast reactor as they end on Twisted's epoll reactor, test by test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netsvc.reactor.extension import VARIABLE
from tests.builders.processes import ROOT

#: What ends otherwise, and why. A message that a protocol logs through the old `twisted.python.log` while it is given
#: bytes does not have the connection's name as its `system`: a logging context for every read is most of what Twisted's
#: own dispatch costs. Log lines of `twisted.logger` never had one.
DIFFERENT = {
    f"twisted.internet.test.{test}.test_logPrefix"
    for test in (
        "test_tcp.TCP4ClientTestsBuilder_EPollReactorTests",
        "test_tcp.TCP6ClientTestsBuilder_EPollReactorTests",
        "test_tls.SSLClientTestsMixin_EPollReactorTests",
        "test_tls.StartTLSClientTestsMixin_EPollReactorTests",
        "test_unix.UNIXTestsBuilder_EPollReactorTests",
    )
}


def ends(reactor: str, directory: Path, native: str = "") -> Any:
    directory.mkdir()
    command = [sys.executable, "-m", "tests.builders.twisted_suites", reactor, "results.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: native}
    finished = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads((directory / "results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the suites have ended on Twisted's reactor, and on ours with the C extension and without it."""
    directory = tmp_path_factory.mktemp("suites")
    runs = {
        "stock": ("twisted.internet.epollreactor:EPollReactor", directory / "stock"),
        "extension": ("netsvc.reactor.epoll:NetsvcReactor", directory / "extension"),
        "python": ("netsvc.reactor.epoll:NetsvcReactor", directory / "python", "0"),
    }
    # They wait for most of their time.
    with ThreadPoolExecutor() as several:
        return dict(zip(runs, several.map(lambda run: ends(*run), runs.values()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["extension", "python"])
def test_every_test_ends_as_on_epoll(ended: dict[str, Any], kind: str) -> None:
    stock, fast = ended["stock"], ended[kind]
    assert stock["outcomes"].keys() == fast["outcomes"].keys()
    assert list(stock["outcomes"].values()).count("success") > 650
    differing = {name for name, outcome in stock["outcomes"].items() if fast["outcomes"][name] != outcome}
    assert differing == DIFFERENT, [fast["reasons"].get(name) for name in differing - DIFFERENT]
    assert all("Custom" in fast["reasons"][name].splitlines()[-1] for name in DIFFERENT)
