"""The state directory (`--state`), which keeps data of the process and its services across restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from netsvc import __version__
from netsvc.base.errors import UserError
from netsvc.base.files import read_file, write_atomic
from netsvc.base.paths import make_directory
from netsvc.base.text import escape
from netsvc.server.interface import IServer

#: The file of the process itself in the state directory.
STATE_FILE = "netsvc.json"
#: Bytes that are read of it.
_LONGEST = 1 << 20

_log = Logger(namespace="netsvc")


class StateFile:
    """The file in the state directory with the pid, the state and the open ports of the process.

    It is written atomically. If it cannot be written, a warning is logged, and nothing else changes.
    """

    def __init__(self, server: IServer) -> None:
        self._server = server
        self._directory = server.plan.state
        self._is_ours = self._has_warned = False

    def make_directory(self, options: Mapping[str, Any]) -> None:
        """Create the directory, before privileges are dropped; `options` are the twistd options. Raises `UserError`."""
        if self._directory is None:
            return
        try:
            make_directory(self._directory, options.get("uid"), options.get("gid"))
        except OSError as error:
            line = f"--state {escape(self._directory, 1000)}: {error.strerror}; name a directory that "
            raise UserError([f"{line}exists or that this user may create"]) from None

    def write(self, *, first: bool = False) -> None:
        """Write the current state. Nothing is written before the call with `first`, as the file may belong to a
        predecessor, nor after a successor has overwritten it.
        """
        self._is_ours |= first
        if self._directory is None or not self._is_ours:
            return
        path = os.path.join(self._directory, STATE_FILE)
        state = self._server.state
        if state != "ready" and _pid_in(path) not in (None, os.getpid()):
            # Another process has taken over the file.
            return
        content = {
            "version": __version__,
            "pid": os.getpid(),
            "state": state,
            "time": time.time(),
            "listeners": [
                {"service": service, "protocol": protocol, "place": place}
                for service, protocol, place in self._server.places()
            ],
        }
        try:
            write_atomic(path, json.dumps(content, indent=1) + "\n", 0o644)
            self._has_warned = False
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                _log.warn(
                    "{path} cannot be written: {reason}; its content is out of date until it can be written",
                    path=escape(path, 1000),
                    reason=error.strerror,
                )


def _pid_in(path: str) -> int | None:
    """Return the pid in the file; None if it cannot be read or has none."""
    try:
        return int(json.loads(read_file(path, _LONGEST))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
