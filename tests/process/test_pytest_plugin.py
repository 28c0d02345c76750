"""The pytest plugin: no import of netsvc or Twisted before a fixture is used, and services that are stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest

from netsvc.coroutine import Stream
from netsvc.service import PlainCore
from netsvc.testing import MemoryReactor, Served
from tests.builders.processes import ROOT


async def later(stream: Stream) -> None:
    with stream.timeout(10):
        await stream.read_line()


class Ticking(PlainCore):
    def start(self) -> None:
        self.context.reactor.callLater(9999, self.start)


def test_services_are_served_at_the_clock(netsvc_serve: Callable[..., Served], netsvc_clock: MemoryReactor) -> None:
    served = netsvc_serve(later)
    client = served.connect()
    netsvc_clock.advance(10)
    client.expect_end()
    own = MemoryReactor()
    assert netsvc_serve(later, clock=own).clock is own


def test_the_entry_point_is_the_plugin() -> None:
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert metadata["options.entry_points"]["pytest11"].strip() == "netsvc = netsvc.pytest_plugin"


INNER = """
import sys

def loaded():
    return sorted(name for name in sys.modules if name.split(".")[0] in ("netsvc", "twisted", "zope"))

def test_without_a_fixture():
    assert loaded() == ["netsvc", "netsvc.pytest_plugin"]

def test_with_a_fixture(netsvc_serve):
    client = netsvc_serve("echo").connect()
    client.send(b"x")
    client.expect(b"x")
    assert "netsvc.testing" in loaded()

def test_what_is_left(netsvc_serve):
    from tests.process.test_pytest_plugin import Ticking
    from netsvc.service import Service
    from twisted.internet.protocol import Protocol
    netsvc_serve(Service("ticking", "Leaves a call", core=Ticking, streams={"tcp": Protocol}))
"""


@pytest.mark.slow
def test_nothing_is_imported_until_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)
    words = ("-p", "no:cacheprovider", "-p", "no:netsvc", "-p", "no:pytest-twisted", "-p", "no:twisted")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words, "-p", "netsvc.pytest_plugin", "test_inner.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    last = ran.stdout.splitlines()[-1]
    assert "3 passed" in last and "1 error" in last, ran.stdout + ran.stderr
    assert "Ticking.start" in ran.stdout
