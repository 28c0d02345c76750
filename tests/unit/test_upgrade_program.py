from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from netsvc.upgrade.program import Program


def test_that_of_this_process_has_what_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    monkeypatch.chdir(tmp_path / "1")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    program = Program.current()
    assert program.arguments == tuple(sys.orig_argv)
    # Tomorrow that may be another one.
    assert program.directory == str(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path))
    assert Program.current().directory == str(tmp_path / "1")
    monkeypatch.setenv("PWD", "nowhere")
    assert Program.current().directory == str(tmp_path / "1")


def test_a_signal_that_it_was_to_ignore_is_noted() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP in Program.current().ignored
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP not in Program.current().ignored


def test_the_file_that_was_named_is_run_if_it_is_there(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    assert Program(["./python"], str(tmp_path), {}).path == f"{tmp_path}/./python"
    assert Program(["python"], str(tmp_path), {}).path == sys.executable
    assert Program(["./gone"], str(tmp_path), {}).path == sys.executable


def test_what_was_said_to_one_process_alone_is_not_passed_on() -> None:
    program = Program([sys.executable], "/", {"LISTEN_PID": "1", "NOTIFY_SOCKET": "@a", "HOME": "/root"})
    assert program.variables({"NOTIFY_SOCKET": "@b"}) == {"HOME": "/root", "NOTIFY_SOCKET": "@b", "PWD": "/"}


def test_what_cannot_be_started_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Program([sys.executable], str(tmp_path), {}).refusal()
    # A removed directory does not matter if the arguments name nothing in it.
    assert not Program([sys.executable], str(tmp_path / "gone"), {}).refusal()
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0)
        assert (
            f"user {os.geteuid()} cannot enter {tmp_path}/closed" in Program([], str(tmp_path / "closed"), {}).refusal()
        )
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    refusal = Program([str(python)], str(tmp_path), {}).refusal()
    assert f"{python} does not exist" in refusal and "--chroot" in refusal
    python.touch(mode=0o600)
    assert f"user {os.geteuid()} may not run {python}" in Program([str(python)], str(tmp_path), {}).refusal()
