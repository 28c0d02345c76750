"""What an upgrade changes in the options of twistd, which has read them before netsvc is asked for anything."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

from netsvc.host.pidfile import PidFile
from netsvc.upgrade.predecessor import Predecessor

__all__ = ["is_detached", "start_within", "take_pid_file"]


def take_pid_file(options: MutableMapping[str, Any]) -> PidFile | None:
    """Take the pid file out of the options: twistd would write it in place, and remove another process's."""
    path = options.get("pidfile")
    if not path:
        return None
    options["pidfile"] = ""
    return PidFile(os.path.abspath(path))


def is_detached(options: MutableMapping[str, Any], predecessor: Predecessor | None) -> bool:
    """Tell whether nobody waits for this process to end: it is, or will be, a daemon."""
    if predecessor is not None:
        return predecessor.briefing.detached
    return not options.get("nodaemon", True) and not options.get("debug")


def start_within(options: MutableMapping[str, Any]) -> None:
    """Take out of the options what has been done to this process before it was started: to the one before it."""
    if not options.get("nodaemon", True):
        options["nodaemon"] = True
        # Otherwise it would be stdout now.
        options["logfile"] = options.get("logfile") or "twistd.log"
    if options.get("chroot") is not None:
        options["chroot"] = None
        if options.get("rundir") == ".":
            options["rundir"] = "/"
    if options.get("uid") is not None and options["uid"] == os.geteuid():
        options["uid"] = options["gid"] = None
    if options.get("gid") is not None and options["gid"] == os.getegid():
        options["gid"] = None
