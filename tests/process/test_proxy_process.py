"""The stand-in, with real processes: it is nothing but what it does to them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from netsvc.upgrade import proxy_process
from netsvc.upgrade.proxy_process import in_charge
from tests.builders.processes import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

#: Becomes a stand-in for a child that does what the words say; what that prints is told here.
BECOME = """
import ctypes, os, signal, socket, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
child = subprocess.Popen([sys.executable, "-I", "-c", sys.argv[2], sys.argv[1]], pass_fds=[int(sys.argv[1])])
# As whoever becomes one does: none is lost.
signal.pthread_sigmask(signal.SIG_BLOCK, {1, 2, 3, 10, 12, 15, signal.SIGCHLD})
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[4], sys.argv[3], str(child.pid)])
"""
TELL = """
import os, signal, sys, time
def tell(number, frame):
    # Not with print, which the signal may have interrupted.
    os.write(1, signal.Signals(number).name.encode() + bytes([10]))
    if number == signal.SIGTERM:
        os._exit(3)
for number in (1, 2, 3, 10, 12, 15):
    signal.signal(number, tell)
print("here", os.getpid(), flush=True)
while True:
    time.sleep(60)
"""


@contextmanager
def stands_in(words: str) -> Iterator[subprocess.Popen[str]]:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-c",
                BECOME,
                str(theirs.fileno()),
                words,
                str(mine.fileno()),
                proxy_process.__file__,
            ],
            pass_fds=[mine.fileno(), theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
    assert readable
    return process.stdout.readline().strip()


def test_signals_are_passed_on_and_the_status_is_that_of_the_process_in_charge() -> None:
    with stands_in(TELL) as process:
        assert line(process).startswith("here ")
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM"):
            process.send_signal(signal.Signals[name])
            assert line(process) == name
        assert process.wait(PATIENCE) == 3


def test_one_that_a_signal_ends_ends_it_by_that_signal() -> None:
    with stands_in(TELL) as process:
        os.kill(int(line(process).split()[1]), signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    with stands_in("import os, signal; os.kill(os.getpid(), signal.SIGTERM)") as process:
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_it_goes_on_with_whoever_takes_over() -> None:
    successor = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-I', '-c', {TELL!r}])\n"
        "os.write(int(sys.argv[1]), b'%d\\n' % child.pid)\n"
        "os._exit(7)\n"
    )
    with stands_in(successor) as process:
        assert line(process).startswith("here ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 3


def test_if_the_next_one_is_gone_before_the_last_it_ends_as_that_one_did() -> None:
    successor = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-I', '-c', ''])\n"
        "os.write(int(sys.argv[1]), b'%d\\n' % child.pid)\n"
        "child.wait()\n"
        "os._exit(7)\n"
    )
    with stands_in(successor) as process:
        assert process.wait(PATIENCE) == 7


def test_the_last_one_told_is_in_charge() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert in_charge(mine, 5) == 5
        theirs.send(b"6\n7\n")
        assert in_charge(mine, 5) == 7
        theirs.send(b"nonsense\n")
        assert in_charge(mine, 7) == 7
    assert in_charge(mine, 7) == 7
