"""Tells systemd, or what else has started the process, how it is: sd_notify(3) and its watchdog.

What is sent are lines `NAME=VALUE` in one datagram to the UNIX socket that the environment names. Nothing here raises:
a service that cannot say how it is serves all the same.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from netsvc.text import plain

__all__ = ["OWN", "Notifier", "take_environment"]

#: What is meant for this process alone. Those of the sockets that systemd passes Twisted has read by now.
OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
#: Seconds between looks at what there is to be told, and until what found no room is sent again.
STATUS_INTERVAL, RETRY_INTERVAL = 5.0, 0.5
#: Seconds. A watchdog that wants to be fed more often would be half of the work.
SHORTEST_WATCHDOG = 0.1
#: Characters of a status.
LONGEST_STATUS = 200


def take_environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take out of the environment, and return, what systemd says to this process: its children are not meant."""
    return {name: value for name in OWN if (value := environ.pop(name, None)) is not None}


class Notifier:
    """Says how the process is at the socket that `environment` names; without one, nothing is done.

    It connects when it is made: later the process may have another user or root directory. `pid` is that of this
    process: systemd may have meant another one to feed its watchdog (`WATCHDOG_PID`).
    """

    def __init__(self, environment: Mapping[str, str] | None = None, pid: int | None = None) -> None:
        self._environment = dict(environment or {})
        self._socket = _connected(self._environment.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(self._environment, os.getpid() if pid is None else pid)
        self._clock: Any = None
        self._calls: dict[str, Any] = {}
        #: What has not been sent, by what it is about; a newer one takes the place of an older one.
        self._waiting: dict[str, str] = {}
        self._status = ""
        self._is_ready = self._is_stopping = False

    def environment(self) -> dict[str, str]:
        """Return what a process that takes over from this one needs in its environment to make its own."""
        # The watchdog is to be fed by whoever is the main process then.
        return {
            name: self._environment[name] for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC") if name in self._environment
        }

    def start(self, clock: Any, status: Callable[[], str] | None = None) -> None:
        """Feed the watchdog from now on, by `clock` (`IReactorTime`), so that a loop that hangs is noticed.

        `status` is asked now and then for a line about what goes on.
        """
        if self._socket is None or self._clock is not None:
            return
        self._clock = clock
        if self._watchdog is not None:
            self._feed(self._watchdog)
        if status is not None:
            self._look(status)

    def ready(self) -> None:
        """Say that every port is open, and every service started."""
        self._is_ready = True
        self._say("state", "READY=1")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `reloaded` must follow."""
        if self._is_ready and not self._is_stopping:
            # By this systemd knows whether it is what it asked for (Type=notify-reload).
            self._say("state", f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Say that this is over, whether there is another configuration now or not."""
        if self._is_ready and not self._is_stopping:
            self._say("state", "READY=1")

    def stopping(self, seconds: float) -> None:
        """Say that it drains, and ends within `seconds`: not to be killed before, whatever TimeoutStopSec is."""
        if not self._is_stopping:
            self._is_stopping = True
            self._say("state", f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Say in a line what goes on, as `systemctl status` shows it."""
        if text != self._status:
            self._status = text
            self._say("status", f"STATUS={plain(text)[:LONGEST_STATUS]}")

    def main_pid(self, pid: int) -> None:
        """Say that another process is the service from now on, and nothing more: what follows is about that one."""
        self._say("pid", f"MAINPID={pid}")
        self.close()

    def close(self) -> None:
        """Say nothing any more."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, about: str, message: str) -> None:
        if self._socket is not None:
            self._waiting[about] = message
            self._send()

    def _send(self) -> None:
        if not self._waiting:
            # It was sent with something newer.
            return
        assert self._socket is not None
        try:
            self._socket.send("\n".join(self._waiting.values()).encode())
        except BlockingIOError:
            # Whoever reads has not kept up; without READY=1 a service is killed for not being there.
            if self._clock is not None:
                self._later("send", RETRY_INTERVAL, self._send)
        except OSError:
            # Nobody reads there any more.
            self.close()
        else:
            self._waiting.clear()

    def _later(self, name: str, seconds: float, do: Callable[..., None], *words: object) -> None:
        if name not in self._calls:
            self._calls[name] = self._clock.callLater(seconds, self._run, name, do, words)

    def _run(self, name: str, do: Callable[..., None], words: tuple[object, ...]) -> None:
        del self._calls[name]
        do(*words)

    def _feed(self, seconds: float) -> None:
        # Half of what is allowed, as sd_watchdog_enabled(3) advises.
        self._later("watchdog", seconds / 2, self._feed, seconds)
        assert self._socket is not None
        with suppress(OSError):
            self._socket.send(b"WATCHDOG=1")

    def _look(self, status: Callable[[], str]) -> None:
        self._later("status", STATUS_INTERVAL, self._look, status)
        if self._is_ready:
            self.status(status())


def _connected(address: str) -> socket.socket | None:
    """Connect to a path, or to a name of the abstract namespace after an `@` (unix(7)); None if there is neither."""
    if not re.match("[/@].", address):
        return None
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    opened.setblocking(False)
    try:
        opened.connect(f"\0{address[1:]}" if address[0] == "@" else address)
    except (OSError, ValueError):
        opened.close()
        return None
    return opened


def _watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    number = environment.get("WATCHDOG_USEC", "")
    if not re.fullmatch("[0-9]{1,15}", number) or not int(number):
        return None
    return max(int(number) / 1e6, SHORTEST_WATCHDOG)
