"""Keeps the pid of the first process: after an upgrade it becomes a proxy for the processes that replace it.

When its own connections have ended, it executes `netsvc.upgrade.proxy_process`.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure

from netsvc.upgrade import proxy_process
from netsvc.upgrade.proxy_process import FORWARDED, end_like, in_charge, run_proxy
from netsvc.workers.channel import ChildProcess

_PR_SET_CHILD_SUBREAPER = 36


class ProxyProcess:
    """The first process, which becomes a proxy. `remote` is passed to each process that takes over."""

    def __init__(self) -> None:
        self._link, self.remote = socket.socketpair()
        self._pid = 0
        self._interrupted = False
        self._force: Callable[[], None] = _nothing

    def close(self) -> None:
        """Close the link: the process does not become a proxy."""
        self._link.close()
        self.remote.close()

    def begin(self, successor: ChildProcess, force: Callable[[], None]) -> None:
        """Forward signals to the successor from now on, and become the proxy when this process would end.

        A terminal sends its signals to both processes. On a second SIGINT, this process calls `force`.
        """
        self.remote.close()
        self._pid = successor.pid
        self._force = force
        # Later successors become children of this process when their own parents have ended (prctl(2)).
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in FORWARDED:
            signal.signal(number, self._received)
        atexit.register(self._become, successor)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                self._force()
            self._interrupted = True
            # The successor may have got SIGINT from the terminal, too; a second one would cut its drain short.
            number = signal.SIGTERM
        with suppress(OSError):
            os.kill(self.serving_pid(), number)

    def serving_pid(self) -> int:
        """Return the pid of the process that serves now."""
        self._pid = in_charge(self._link, self._pid)
        return self._pid

    def _become(self, successor: ChildProcess) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        self._pid = in_charge(self._link, self._pid)
        if successor.status is not None and self._pid == successor.pid:
            end_like(successor.status)
        self._link.set_inheritable(True)
        program = [sys.executable, "-I", "-S", proxy_process.__file__, str(self._link.fileno()), str(self._pid)]
        try:
            os.execv(program[0], program)  # noqa: S606
        except OSError:
            # The installed files have been removed.
            run_proxy(self._link, self._pid)


class ProxyLink(FileDescriptor):
    """The link from the serving process to its proxy.

    `orphaned` is called when the proxy has been killed: the supervisor of that pid takes the service for dead then.
    """

    def __init__(self, reactor: Any, descriptor: int, orphaned: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._link = socket.socket(fileno=descriptor)
        self._orphaned = orphaned
        #: Replaces the method of `FileDescriptor`.
        self.fileno = self._link.fileno  # type: ignore[method-assign]

    def take_charge(self) -> None:
        """Report the pid of this process to the proxy as the serving one, and watch the proxy."""
        with suppress(OSError):
            self._link.send(f"{os.getpid()}\n".encode())
        self.startReading()

    def doRead(self) -> Exception | None:
        """Detect the end of the proxy, which never sends data."""
        try:
            data = self._link.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        return None if data else CONNECTION_DONE

    def connectionLost(self, reason: Failure) -> None:
        """Close the link, and report that the proxy has ended."""
        super().connectionLost(reason)
        self._link.close()
        self._orphaned()

    def hand_over(self) -> None:
        """Close the link: the next process has it now."""
        self.stopReading()
        self._link.close()


def _nothing() -> None:
    """Do nothing."""
