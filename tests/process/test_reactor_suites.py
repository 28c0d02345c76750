"""Twisted's own reactor suites end on the fast reactor as they end on Twisted's epoll reactor, test by test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def ends(reactor: str, directory: Path) -> Any:
    directory.mkdir()
    command = [sys.executable, "-m", "tests.builders.twisted_suites", reactor, "results.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads((directory / "results.json").read_text("utf-8"))


@pytest.mark.slow
def test_every_test_ends_as_on_epoll(tmp_path: Path) -> None:
    stock = ends("twisted.internet.epollreactor:EPollReactor", tmp_path / "stock")
    fast = ends("netsvc.reactor.epoll:NetsvcReactor", tmp_path / "fast")
    assert stock["outcomes"].keys() == fast["outcomes"].keys()
    assert list(stock["outcomes"].values()).count("success") > 650
    differing = {name for name, outcome in stock["outcomes"].items() if fast["outcomes"][name] != outcome}
    assert differing == DIFFERENT, [fast["reasons"].get(name) for name in differing - DIFFERENT]
    assert all("Custom" in fast["reasons"][name].splitlines()[-1] for name in DIFFERENT)
