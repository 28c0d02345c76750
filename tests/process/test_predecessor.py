from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from netsvc.listen.handoff import Handoff, PassedPort
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import VARIABLE
from tests.builders.processes import PATIENCE, ROOT


def test_without_a_briefing_there_is_none() -> None:
    environ = {"HOME": "/root"}
    assert Predecessor.met(environ) is None


@pytest.mark.parametrize("value", ["", "three", "-1", "99999"])
def test_what_somebody_else_has_set_is_told(value: str) -> None:
    environ = {VARIABLE: value}
    with pytest.raises(ValueError, match=f"^{VARIABLE} .*unset it"):
        Predecessor.met(environ)
    # Whatever it is, nobody else shall see it.
    assert environ == {}


def test_what_makes_no_sense_is_told() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"{}\n")
    os.close(writing)
    with pytest.raises(ValueError, match="it is invalid"):
        Predecessor.met({VARIABLE: str(reading)})
    os.close(reading)


#: Meets its predecessor, and says what it has found.
MEET = """
import os, sys
from netsvc.upgrade.predecessor import Predecessor
from twisted.internet.endpoints import _SystemdParser

print("lost")
met = Predecessor.met(os.environ)
print("found", met.handoff.pid, flush=True)
print(_SystemdParser._sddaemon.inheritedNamedDescriptors(), os.get_inheritable(7), "NETSVC_UPGRADE" in os.environ)
met.ready([0, 2], 3)
met.serving(1)
met.failed("no", "not at all")
"""


@pytest.mark.slow
def test_it_takes_over_what_was_passed_and_prints_where_the_other_one_does() -> None:
    orders, reports, out = os.pipe(), os.pipe(), os.pipe()
    with socket.socket() as bound:
        handoff = Handoff(5, [PassedPort("listener", "a b", "stream", "1", [7])], None, [("web", 7)], False, [1])
        os.write(orders[1], handoff.to_line())

        words = [sys.executable, "-c", MEET]
        script = f'exec 3<&{orders[0]} 4>&{reports[1]} 5>&{out[1]} 6>&2 7<&{bound.fileno()}; exec "$0" "$@"'
        done = subprocess.run(
            ["bash", "-c", script, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: "3"},
            pass_fds=[orders[0], reports[1], out[1], bound.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout == "lost\n"
    assert os.read(out[0], 1000).decode() == "found 5\n{'web': 7} False False\n"
    assert os.read(reports[0], 1000) == b'["ready", "0,2", "3"]\n["serving", "1"]\n["failed", "no", "not at all"]\n'
    for descriptor in (*orders, *reports, *out):
        os.close(descriptor)
