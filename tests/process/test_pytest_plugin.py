"""The pytest plugin: no import of netsvc or Twisted before a fixture is used, and services that are stopped."""

from __future__ import annotations

import re
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

pytest_plugins = ["pytester"]


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


SERVICE = """
    from netsvc.interfaces import Options
    from netsvc.options import whole_number
    from netsvc.service import PlainCore, Service
    from netsvc.stream import StreamProtocol

    class Settings(Options):
        optParameters = [["most", None, 10, "The most", whole_number(1, 100)]]

    def fail(data):
        if data.startswith(b"boom"):
            raise ZeroDivisionError("in the service")
        return data.upper()

    class Shout(StreamProtocol):
        def dataReceived(self, data):
            self.transport.write(fail(data))

    async def lines(stream):
        async for line in stream:
            await stream.write(fail(line))

    def answer(data, peer):
        return fail(data) * 10

    class Core(PlainCore):
        def start(self):
            if self.options["most"] == 7:
                raise ZeroDivisionError("in the service")

    service = Service("loud", "Shout", options=Settings, core=Core,
        streams={"tcp": Shout, "lines": lines}, datagrams={"udp": answer})
"""

#: A test, and whether code of the service has failed.
FAILING = {
    "check_service(service)": False,
    "check_service(service, samples={'other': [b'x']})": False,
    "connect(service).expect(b'HELLO')": False,
    "connect(service).expect_line(re.compile(b'x'))": False,
    "connect(service).expect_end()": False,
    "connect_datagram(service).expect(b'x')": False,
    "connect(service, 'other')": False,
    "connect('no-such-service')": False,
    "connect(5)": False,
    "serve(service, other=1)": False,
    "serve(service, most='many')": False,
    "serve(service, most=7)": True,
    "connect(service).send(b'boom')": True,
    "connect(service, 'lines').send(b'boom\\n')": True,
    "connect_datagram(service).send(b'boom')": True,
}


@pytest.mark.slow
def test_a_failing_test_shows_its_line_the_code_of_the_service_and_the_finding(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        loud=SERVICE,
        test_it="import re\nfrom netsvc.testing import *\nfrom loud import service\n"
        + "".join(f"def test_{place}():\n    {line}\n" for place, line in enumerate(FAILING)),
    )
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    ran.assert_outcomes(failed=len(FAILING))
    sections = re.split(r"^_+ test_\d+ _+$", "\n".join(ran.outlines).partition("\n==== short")[0], flags=re.M)[1:]
    for (line, in_service), section in zip(FAILING.items(), sections, strict=True):
        assert f">       {line}\n" in section
        assert re.search(r"^E  ", section, re.M)
        places = re.findall(r"^(\S+\.py):\d+: ", section, re.M)
        assert set(places) == ({"test_it.py", "loud.py"} if in_service else {"test_it.py"}), section
