"""Records how this process was started, to start the installed program in the same way, and adapts twistd's options."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from netsvc.base.directory import working_directory
from netsvc.base.signals import process_signals
from netsvc.base.text import escape
from netsvc.server.notify import OWN
from netsvc.server.pidfile import PidFile
from netsvc.upgrade.proxy_process import FORWARDED

#: The environment variable with the descriptor of the handoff.
VARIABLE = "NETSVC_UPGRADE"


@dataclass(frozen=True)
class Program:
    """The command of this process, its directory and environment, and the signals that were ignored at its start."""

    arguments: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    ignored: Sequence[int] = ()

    @classmethod
    def current(cls) -> Program:
        """Return the program of this process. Must be called before it changes its working directory."""
        ignored = [number for number in FORWARDED if process_signals.was_ignored(number)]
        return cls(tuple(sys.orig_argv), working_directory(), dict(os.environ), ignored)

    @property
    def path(self) -> str:
        """The file to execute."""
        named = self.arguments[0]
        path = os.path.join(self.directory, named) if "/" in named else ""
        return path if path and os.access(path, os.X_OK, effective_ids=True) else sys.executable

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with `more`, the directory, and without the variables meant for this process alone."""
        inherited = {name: value for name, value in self.environment.items() if name not in OWN}
        return inherited | {"PWD": self.directory} | dict(more)

    def refusal(self) -> str:
        """Return the reason why the program cannot be started again; an empty string if it can."""
        outside = "or it is outside the root directory of --chroot"
        if not os.path.exists(self.path):
            return f"{escape(self.path)} does not exist any more, {outside}; restart netsvc"
        if not os.access(self.path, os.X_OK, effective_ids=True):
            return f"user {os.geteuid()} may not run {escape(self.path)}, {outside}"
        # If it was removed, the new process finds what is named by an absolute path.
        if os.path.exists(self.directory) and not os.access(self.directory, os.X_OK, effective_ids=True):
            return f"user {os.geteuid()} cannot enter {escape(self.directory)}, where it was started, {outside}"
        return ""


def take_pid_file(options: MutableMapping[str, Any]) -> PidFile | None:
    """Remove the pid file from the options: twistd does not write it atomically, and may remove another process's."""
    path = options.get("pidfile")
    if not path:
        return None
    options["pidfile"] = ""
    return PidFile(os.path.abspath(path))


def is_detached(options: MutableMapping[str, Any], predecessor: Any) -> bool:
    """Return whether this process is or becomes a daemon. `predecessor` is a `Predecessor` or None."""
    if predecessor is not None:
        return bool(predecessor.handoff.detached)
    return not options.get("nodaemon", True) and not options.get("debug")


def start_within(options: MutableMapping[str, Any]) -> None:
    """Remove options that already apply to a process started by an upgrade: daemon, chroot, user and group."""
    if not options.get("nodaemon", True):
        options["nodaemon"] = True
        # Without a name the log would now go to stdout.
        options["logfile"] = options.get("logfile") or "twistd.log"
    if options.get("chroot") is not None:
        options["chroot"] = None
        if options.get("rundir") == ".":
            options["rundir"] = "/"
    if options.get("uid") is not None and options["uid"] == os.geteuid():
        options["uid"] = options["gid"] = None
    if options.get("gid") is not None and options["gid"] == os.getegid():
        options["gid"] = None
