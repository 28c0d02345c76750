"""Stands in for a process that another one has replaced, for whoever watches its pid: a supervisor, a shell, docker.

    python -I -S standin.py DESCRIPTOR PID

It passes signals on to the process in charge, which is PID at first, waits for it, and ends as it ends. DESCRIPTOR is a
socket to that process: who takes its place says so there, with its own pid on a line. It runs on the standard library
alone, whatever becomes of what is installed, and needs a few MB; Linux only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress

__all__ = ["FORWARDED", "end_like", "in_charge", "stand_in"]

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: How a signal is marked that a terminal has sent, to all who read from it (sigaction(2), SI_KERNEL).
_BY_KERNEL = 0x80
#: Bytes: more than all pids that can be told before one is read.
_LONGEST = 1 << 16


def in_charge(link: socket.socket, pid: int) -> int:
    """Return the pid of the process in charge: the last one told through `link`, or `pid`."""
    with suppress(OSError):
        words = link.recv(_LONGEST, socket.MSG_DONTWAIT).split()
        if words and words[-1].isdigit():
            return int(words[-1])
    return pid


def end_like(status: int) -> None:
    """End this process as one has ended whose wait status this is (waitpid(2))."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
        # The first process of a container survives that; a shell says it so.
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))


def stand_in(link: socket.socket, pid: int) -> None:
    """Stand in until the process in charge has ended."""
    awaited = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # What is ignored is not waited for.
    for number in awaited:
        signal.signal(number, signal.SIG_DFL)
    last = 1 << 8
    while True:
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # Whoever took the place of the last one has ended before it, and was its child.
                end_like(last)
            if not ended:
                break
            before, pid = pid, in_charge(link, pid)
            if ended in (before, pid):
                last = status
            if ended == pid:
                end_like(status)
        received = signal.sigwaitinfo(awaited)
        if received.si_signo != signal.SIGCHLD and received.si_code != _BY_KERNEL:
            pid = in_charge(link, pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, received.si_signo)


if __name__ == "__main__":
    stand_in(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
