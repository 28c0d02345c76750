"""Servers of several processes: a service that tells who serves, and how to look at the processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server

#: A service that tells the process that serves, does what it is told, and may run in several processes.
_WHO = """\
import os, signal, sys
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.logger import Logger
from netsvc.service import Service

log = Logger(namespace="who")

class Who(Protocol):
    def dataReceived(self, data):
        if data == b"log":
            log.warn("told to log")
        elif data == b"part":
            sys.stdout.write("the last words, and no end")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        elif data == b"raise":
            raise RuntimeError("told to raise")
        elif data == b"reactor":
            from twisted.internet import reactor
            self.transport.write(type(reactor).__name__.encode())
            return
        elif data == b"block":
            print("blocks", flush=True)
            while True:
                signal.pause()
        self.transport.write(b"%d" % os.getpid())

class WhoDatagram(DatagramProtocol):
    def datagramReceived(self, data, peer):
        self.transport.write(b"%d" % os.getpid(), peer)

class Core:
    def __init__(self, options, context):
        pass
    def start(self):
        if os.path.exists("broken"):
            from netsvc.base.errors import UserError
            raise UserError(["the file broken is there"])

service = Service(
    "who", "Tell who serves", core=Core, streams={"tcp": Who}, datagrams={"udp": WhoDatagram}, parallel=True
)
lonely = Service("lonely", "Does not say", streams={"tcp": Who})
"""
_PLUGIN = """\
from netsvc.service import ServicePlugin
who = ServicePlugin("who", "who_service:service", "Tell who serves")
lonely = ServicePlugin("lonely", "who_service:lonely", "Does not say")
"""


def make(place: Path) -> Path:
    """Put the service into a directory that is to be on Python's path."""
    (place / "twisted/plugins").mkdir(parents=True)
    (place / "twisted/plugins/who_plugin.py").write_text(_PLUGIN)
    (place / "who_service.py").write_text(_WHO)
    return place


def start(place: Path, *words: str, workers: str = "2", before: tuple[str, ...] = ("-n", "--pidfile=")) -> Server:
    command = [TWISTD, *before, "netsvc", "--workers", workers, *words]
    server = Server(command, cwd=place, env={"PYTHONPATH": f"{ROOT}:{place}"})
    server.wait_for("ready$")
    return server


def children(pid: int) -> list[int]:
    """List the child processes that run; one that has ended may not be reaped yet."""
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [each for each in pids if not _is_gone(each)]


def ask(stream: socket.socket, data: bytes = b"who is it that answers?") -> int:
    stream.send(data)
    return int(stream.recv(100))


def until(happened: Callable[[], bool]) -> None:
    """Look again and again, but not for ever, as the process is nobody's whom one could ask."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        signal.sigtimedwait([], 0.01)


def until_all_answer(workers: set[int], ask_one: Callable[[], int]) -> None:
    """Ask until each of these processes has answered, and no other one."""
    reached: set[int] = set()

    def have_answered() -> bool:
        reached.add(ask_one())
        assert reached <= workers
        return reached == workers

    until(have_answered)


def until_gone(pids: Iterable[int]) -> None:
    """Wait for processes to end."""
    for pid in pids:
        until(partial(_is_gone, pid))


def _is_gone(pid: int) -> bool:
    try:
        return re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.M) is not None
    except OSError:
        return True


def anybody_may_run_python() -> bool:
    """Tell whether a process that root started as another user could start this interpreter and find netsvc."""
    if os.geteuid() != 0:
        return False
    words = [sys.executable, "-c", "import netsvc"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    try:
        return subprocess.run(words, user=65534, group=65534, extra_groups=[], env=environment).returncode == 0
    except OSError:
        return False
