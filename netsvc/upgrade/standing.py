"""Keeps whoever watches the pid of the first process content: that process stands in for those that replace it.

See `netsvc.host.standin`, which it becomes when its own conversations have ended.
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

from netsvc.host import standin
from netsvc.host.standin import FORWARDED, end_like, in_charge, stand_in
from netsvc.upgrade.successor import Successor

__all__ = ["StandIn", "Ward"]

_PR_SET_CHILD_SUBREAPER = 36


class StandIn:
    """What the first process becomes. `theirs` is passed to the process in charge, and on to each that follows it."""

    def __init__(self) -> None:
        self._mine, self.theirs = socket.socketpair()
        self._pid = 0
        self._interrupted = False
        self._force: Callable[[], None] = _nothing

    def close(self) -> None:
        """Do not become one."""
        self._mine.close()
        self.theirs.close()

    def begin(self, successor: Successor, force: Callable[[], None]) -> None:
        """Pass signals on from now on, and be a stand-in when this process would end.

        What a terminal says it says to both processes: of a second Ctrl-C, this one calls `force`.
        """
        self.theirs.close()
        self._pid = successor.pid
        self._force = force
        # The processes that follow shall be children of this one when those that started them have ended (prctl(2)).
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in FORWARDED:
            signal.signal(number, self._received)
        atexit.register(self._become, successor)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                self._force()
            self._interrupted = True
            # It may have had that one from the terminal as well, where a second one would end its conversations.
            number = signal.SIGTERM
        self._pid = in_charge(self._mine, self._pid)
        with suppress(OSError):
            os.kill(self._pid, number)

    def _become(self, successor: Successor) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        self._pid = in_charge(self._mine, self._pid)
        if successor.status is not None and self._pid == successor.pid:
            end_like(successor.status)
        self._mine.set_inheritable(True)
        program = [sys.executable, "-I", "-S", standin.__file__, str(self._mine.fileno()), str(self._pid)]
        try:
            os.execv(program[0], program)  # noqa: S606
        except OSError:
            # What was installed is gone.
            stand_in(self._mine, self._pid)


class Ward(FileDescriptor):
    """A process in charge, as its stand-in sees it. When the stand-in has been killed, so that whoever watches it takes
    the service for dead, `orphaned` is called."""

    def __init__(self, reactor: Any, descriptor: int, orphaned: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._link = socket.socket(fileno=descriptor)
        self._orphaned = orphaned
        #: What it is called by. Nobody sets it to anything else.
        self.fileno = self._link.fileno  # type: ignore[method-assign]

    def take_charge(self) -> None:
        """Tell the stand-in that this process is in charge now, and watch it."""
        with suppress(OSError):
            self._link.send(f"{os.getpid()}\n".encode())
        self.startReading()

    def doRead(self) -> Exception | None:
        """Find out that it has gone: it says nothing."""
        try:
            said = self._link.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        return None if said else CONNECTION_DONE

    def connectionLost(self, reason: Failure) -> None:
        """End."""
        super().connectionLost(reason)
        self._link.close()
        self._orphaned()

    def hand_over(self) -> None:
        """Let the next process have the stand-in."""
        self.stopReading()
        self._link.close()


def _nothing() -> None:
    """Do nothing."""
