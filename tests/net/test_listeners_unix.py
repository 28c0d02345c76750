"""The file and the lock of a UNIX socket go with it, whatever became of them meanwhile."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.builders.facts import states
from tests.builders.listening import opened, refusal
from tests.builders.logs import Lines, collected
from tests.conftest import LoggedErrors

lines = pytest.fixture(collected)


def closed(port: Any) -> bool:
    return not port.connected and not hasattr(port, "socket")


@pytest.mark.parametrize("removed", [("stream",), ("stream.lock",), ("stream", "stream.lock")])
def test_a_socket_file_or_lock_that_somebody_removed_is_passed_over(removed: tuple[str, ...], tmp_path: Path) -> None:
    listening = opened(f"unix:{tmp_path}/stream")
    for name in removed:
        (tmp_path / name).unlink()
    listening.abandon()
    assert closed(listening.port)
    assert list(tmp_path.iterdir()) == []
    # The path is free again.
    opened(f"unix:{tmp_path}/stream").abandon()


@pytest_twisted.inlineCallbacks
def test_a_port_whose_socket_file_is_gone_stops_quietly(tmp_path: Path) -> Any:
    for text in (f"unix:{tmp_path}/stream", f"unix:{tmp_path}/stream:lockfile=0"):
        listening = opened(text)
        (tmp_path / "stream").unlink()
        yield listening.stop()
        assert closed(listening.port)
        assert list(tmp_path.iterdir()) == []


def test_a_port_whose_socket_file_cannot_be_removed_is_closed_and_told(tmp_path: Path, lines: Lines) -> None:
    listening = opened(f'unix:{tmp_path}/a"b')
    port: Any = listening.port

    def refuse(reason: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", port._bindPath)

    port.connectionLost = refuse
    listening.abandon()
    assert closed(port)
    assert [line for line in lines if "left" in line] == [rf"{tmp_path}/a\"b is left behind: Permission denied"]
    assert [each.name for each in tmp_path.iterdir()] == ['a"b']


def test_a_lock_that_another_process_took_over_is_left_to_it(tmp_path: Path, logged_errors: LoggedErrors) -> None:
    listening = opened(f"unix:{tmp_path}/stream")
    (tmp_path / "stream.lock").unlink()
    (tmp_path / "stream.lock").symlink_to("1")
    listening.abandon()
    assert closed(listening.port)
    assert (tmp_path / "stream.lock").is_symlink()
    assert len(logged_errors.flush(ValueError)) == 1


@pytest.mark.parametrize("before", ["", "haproxy:"])
def test_a_unix_socket_that_cannot_be_bound_leaves_no_lock(before: str, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_text("not a socket")
    text = f"{before}unix:{path}"
    for _ in range(2):
        assert states(refusal(text), str(path))
        assert [each.name for each in tmp_path.iterdir()] == ["stream"]
    path.unlink()
    listening = opened(text)
    # That of a port which listens is another's, though of this process.
    for again in (text, f"{text}:lockfile=0"):
        assert "is in use" in refusal(again)
        assert (tmp_path / "stream.lock").is_symlink()
    listening.abandon()
    assert list(tmp_path.iterdir()) == []


class TestALockWhosePidAnotherProgramHas:
    """Pids are used again."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Path]:
        process = subprocess.Popen(["sh", "-c", "read _"], stdin=subprocess.PIPE)
        (tmp_path / "stream.lock").symlink_to(str(process.pid))
        try:
            yield tmp_path
        finally:
            process.kill()
            process.communicate()

    def test_is_left_over(self, place: Path) -> None:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as before:
                before.bind(str(place / "stream"))
            opened(f"unix:{place}/stream").abandon()
            assert list(place.iterdir()) == []
            # As for a process of another user.
            (place / "stream.lock").symlink_to("1")

    def test_is_not_if_it_listens(self, place: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(place / "stream"))
            listening.listen()
            assert "in use" in refusal(f"unix:{place}/stream")
        assert (place / "stream.lock").is_symlink()

    def test_is_not_if_it_may_be_a_netsvc(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            ["sh", "-c", "echo; read _", "netsvc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (tmp_path / "stream.lock").symlink_to(str(process.pid))
            assert "in use" in refusal(f"unix:{tmp_path}/stream")
        finally:
            process.kill()
            process.communicate()
