from __future__ import annotations

import os
from typing import Any

import pytest

from netsvc.listen.handoff import Handoff
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import is_detached, start_within, take_pid_file


def test_the_pid_file_is_taken_from_twistd(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"pidfile": "twistd.pid"}
    file = take_pid_file(options)
    assert file is not None
    assert file.path == os.path.abspath("twistd.pid")
    assert options == {"pidfile": ""}
    assert take_pid_file(options) is None
    # As of twist.
    assert take_pid_file({}) is None


def test_a_daemon_is_one_of_which_nobody_waits_for_the_end() -> None:
    assert is_detached({"nodaemon": 0, "debug": False}, None)
    assert not is_detached({"nodaemon": 0, "debug": True}, None)
    assert not is_detached({"nodaemon": 1}, None)
    assert not is_detached({}, None)
    assert is_detached({"nodaemon": 1}, Predecessor(Handoff(1, [], detached=True), -1))


def test_what_has_been_done_to_the_process_before_is_not_done_again() -> None:
    options: dict[str, Any] = {"nodaemon": 0, "logfile": None, "chroot": "/srv", "rundir": "."}
    options |= {"uid": os.geteuid(), "gid": 12345}
    start_within(options)
    assert options == {
        "nodaemon": True,
        "logfile": "twistd.log",
        "chroot": None,
        "rundir": "/",
        "uid": None,
        "gid": None,
    }
    options = {"nodaemon": 1, "logfile": None, "chroot": None, "rundir": ".", "uid": None, "gid": os.getegid()}
    start_within(options)
    assert options == {"nodaemon": 1, "logfile": None, "chroot": None, "rundir": ".", "uid": None, "gid": None}
    options = {"chroot": "/srv", "rundir": "/run", "uid": 54321, "gid": 54321}
    start_within(options)
    assert options == {"chroot": None, "rundir": "/run", "uid": 54321, "gid": 54321}
