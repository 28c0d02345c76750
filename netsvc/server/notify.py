"""Reports the state of the process to systemd or another service manager: sd_notify(3) and its watchdog.

A message is one datagram of `NAME=VALUE` lines to the UNIX socket named by `NOTIFY_SOCKET`. Errors are not raised: a
process that cannot report its state still serves.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from netsvc.base.text import plain

#: Environment variables meant for this process alone.
OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
#: Seconds between two status messages, and before a message is sent again that did not fit into the socket's buffer.
STATUS_INTERVAL, RETRY_INTERVAL = 5.0, 0.5
#: Seconds. A shorter watchdog interval would cost too much.
SHORTEST_WATCHDOG = 0.1
#: Characters of a status.
LONGEST_STATUS = 200


def take_environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Remove and return the variables that systemd set for this process and not for its children."""
    if "LISTEN_FDS" in environ:
        # On import, this module reads which sockets systemd has passed.
        import_module("twisted.internet.endpoints")
    return {name: value for name in OWN if (value := environ.pop(name, None)) is not None}


class Notifier:
    """Reports to the socket named in `environment`; does nothing without one.

    It connects when it is created, before the process changes its user or root directory. `pid` is the pid of this
    process: the watchdog is not fed if `WATCHDOG_PID` names another one.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, pid: int | None = None) -> None:
        self._environment = dict(environment or {})
        self._socket = _connected(self._environment.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(self._environment, os.getpid() if pid is None else pid)
        self._clock: Any = None
        self._calls: dict[str, Any] = {}
        #: Unsent messages by subject; a newer message replaces an older one.
        self._waiting: dict[str, str] = {}
        self._status = ""
        self._is_ready = self._is_stopping = False

    def environment(self) -> dict[str, str]:
        """Return the variables that the successor of this process needs for its own notifier."""
        # Without WATCHDOG_PID: the successor becomes the main process and feeds the watchdog.
        return {
            name: self._environment[name] for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC") if name in self._environment
        }

    def start(self, clock: Any, status: Callable[[], str] | None = None) -> None:
        """Feed the watchdog from the event loop (`clock`, an `IReactorTime`), so that systemd notices a stuck loop.

        `status` returns the status line, which is sent every `STATUS_INTERVAL` seconds.
        """
        if self._socket is None or self._clock is not None:
            return
        self._clock = clock
        if self._watchdog is not None:
            self._feed(self._watchdog)
        if status is not None:
            self._look(status)

    def ready(self) -> None:
        """Report that every port is open and every service started."""
        self._is_ready = True
        self._say("state", "READY=1")

    def reloading(self) -> None:
        """Report that a reload has begun; `reloaded` must follow."""
        if self._is_ready and not self._is_stopping:
            # systemd matches this message to the reload that it requested (Type=notify-reload).
            self._say("state", f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Report the end of the reload, successful or not."""
        if self._is_ready and not self._is_stopping:
            self._say("state", "READY=1")

    def stopping(self, seconds: float) -> None:
        """Report that the process drains and ends within `seconds`; extends TimeoutStopSec to that."""
        if not self._is_stopping:
            self._is_stopping = True
            self._say("state", f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Report a status line, as `systemctl status` shows it."""
        if text != self._status:
            self._status = text
            self._say("status", f"STATUS={plain(text)[:LONGEST_STATUS]}")

    def main_pid(self, pid: int) -> None:
        """Report that process `pid` is the main process now; then stop reporting."""
        self._say("pid", f"MAINPID={pid}")
        self.close()

    def close(self) -> None:
        """Stop reporting, and close the socket."""
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
            # Already sent together with a newer message.
            return
        assert self._socket is not None
        try:
            self._socket.send("\n".join(self._waiting.values()).encode())
        except BlockingIOError:
            # The reader has not kept up. A service whose READY=1 is lost is killed.
            if self._clock is not None:
                self._later("send", RETRY_INTERVAL, self._send)
        except OSError:
            # The reader has ended.
            self.close()
        else:
            self._waiting.clear()

    def _later(self, name: str, seconds: float, do: Callable[..., None], *arguments: object) -> None:
        if name not in self._calls:
            self._calls[name] = self._clock.callLater(seconds, self._run, name, do, arguments)

    def _run(self, name: str, do: Callable[..., None], arguments: tuple[object, ...]) -> None:
        del self._calls[name]
        do(*arguments)

    def _feed(self, seconds: float) -> None:
        # Half the interval, as sd_watchdog_enabled(3) advises.
        self._later("watchdog", seconds / 2, self._feed, seconds)
        assert self._socket is not None
        with suppress(OSError):
            self._socket.send(b"WATCHDOG=1")

    def _look(self, status: Callable[[], str]) -> None:
        self._later("status", STATUS_INTERVAL, self._look, status)
        if self._is_ready:
            self.status(status())


def _connected(address: str) -> socket.socket | None:
    """Connect to a path, or to an abstract name after `@` (unix(7)); return None for anything else, or on error."""
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
