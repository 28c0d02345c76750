"""The directory in which a process and its services keep what is to be there when it starts anew (`--state`)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from netsvc import __version__
from netsvc.host.fatal import start_error
from netsvc.plan import Plan
from netsvc.text import escape
from netsvc.whole import write_whole

__all__ = ["STATE_FILE", "KeepsState", "Place", "make_directory", "service_directory"]

#: What the process itself keeps there.
STATE_FILE = "netsvc.json"

#: Of a listener that is open: its service, its protocol, and where that is.
Place = tuple[str, str, str]

_PLAIN = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")

_log = Logger(namespace="netsvc")


def service_directory(state: str | None, key: str) -> Path | None:
    """Return where the service of this key may keep files, which need not be there; None if nobody keeps any."""
    if state is None:
        return None
    if not _PLAIN.fullmatch(key):
        # A path or a module, of a class that is served straight from there; two may differ only in what is left out.
        digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
        key = f"{re.sub(r'[^A-Za-z0-9]+', '-', key)[-60:].strip('-')}.{digest}"
    return Path(state, key)


def make_directory(path: str, user: int | None = None, group: int | None = None) -> None:
    """Make a directory that is missing, for this user and nobody else. Raises `OSError`."""
    if os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mkdir(path, 0o700)
    if user is not None or group is not None:
        os.chown(path, -1 if user is None else user, -1 if group is None else group)


class KeepsState(Service):
    """A root service that has the directory made, and in it a file which says how the process is.

    To be mixed into one that has `plan`, `state`, `places`, `reload` and `became_ready`, as `netsvc.host.host.Host`
    has. The file is written whole when the process is ready, after a reload, when it begins to drain and when it has
    ended. That it cannot be written is a warning, and changes nothing else.
    """

    plan: Plan
    twistd_options: Mapping[str, Any] | None = None
    _ours = False
    _warned = False

    def privilegedStartService(self) -> None:
        """Make the directory, which the user without privileges may not be able to do."""
        if self.plan.state is not None:
            options = self.twistd_options or {}
            try:
                make_directory(self.plan.state, options.get("uid"), options.get("gid"))
            except OSError as error:
                raise start_error(
                    [
                        f"--state {escape(self.plan.state, 1000)}: {error.strerror}; "
                        "name a directory that is there, or in one where this user may make it"
                    ]
                ) from None
        super().privilegedStartService()

    def became_ready(self) -> None:
        """Note it, before whoever waits for it can look."""
        self._ours = True
        self._note()
        cast(Any, super()).became_ready()

    def reload(self, *words: Any) -> Deferred[str]:
        """Note what came of it."""
        reloading: Deferred[str] = cast(Any, super()).reload(*words)
        return reloading.addCallback(self._reloaded)

    def _reloaded(self, summary: str) -> str:
        self._note()
        return summary

    def stopService(self) -> Deferred[Any]:
        """Note that it drains, and that it has ended."""
        stopping: Deferred[Any] = cast(Any, super()).stopService()
        self._note()
        return stopping.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        self._note()
        return result

    def _note(self) -> None:
        if self.plan.state is None or not self._ours:
            return
        path = os.path.join(self.plan.state, STATE_FILE)
        state = cast(Any, self).state
        if state != "ready" and _pid_in(path) not in (None, os.getpid()):
            # Another process has taken over.
            return
        listeners: Sequence[Place] = cast(Any, self).places()
        content = {
            "version": __version__,
            "pid": os.getpid(),
            "state": state,
            "time": time.time(),
            "listeners": [dict(zip(("service", "protocol", "place"), each, strict=True)) for each in listeners],
        }
        try:
            write_whole(path, json.dumps(content, indent=1) + "\n", 0o644)
            self._warned = False
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warn(
                    "{path} cannot be written: {reason}; what it says is old until that is possible",
                    path=escape(path, 1000),
                    reason=error.strerror,
                )


def _pid_in(path: str) -> int | None:
    """Return which process has written the file; None if nobody can tell."""
    try:
        with open(path, "rb") as file:
            return int(json.loads(file.read(1 << 20))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
