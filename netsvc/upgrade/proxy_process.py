"""The proxy process: keeps the pid of a replaced process for its supervisor, shell or container runtime.

    python -I -S proxy_process.py DESCRIPTOR PID

It forwards signals to the serving process, at first PID, waits for it, and ends with its exit status. DESCRIPTOR is a
socket to that process; each process that takes over sends its pid on a line. The proxy needs only the standard library,
so that netsvc can be reinstalled while it runs, and a few MB of memory. Linux only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: The `si_code` of a signal from a terminal, which sends it to its whole process group (sigaction(2), SI_KERNEL).
_BY_KERNEL = 0x80
#: Bytes: more than all pids that can be sent before one is read.
_LONGEST = 1 << 16


def in_charge(link: socket.socket, pid: int) -> int:
    """Return the pid of the serving process: the last one received from `link`, or `pid`."""
    with suppress(OSError):
        words = link.recv(_LONGEST, socket.MSG_DONTWAIT).split()
        if words and words[-1].isdigit():
            return int(words[-1])
    return pid


def end_like(status: int) -> None:
    """End this process in the same way as a process with this wait status (waitpid(2))."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
        # The first process of a container survives the signal; then use the exit status of a shell.
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))


def run_proxy(link: socket.socket, pid: int) -> None:
    """Forward signals until the serving process has ended; then end like it."""
    awaited = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # sigwaitinfo() does not return ignored signals.
    for number in awaited:
        signal.signal(number, signal.SIG_DFL)
    last = 1 << 8
    while True:
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # The last successor was a child of its predecessor and ended before it.
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
    run_proxy(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
