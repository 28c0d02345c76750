from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsvc.base.errors import UserError
from netsvc.base.processes import may_be_netsvc
from netsvc.server.pidfile import PidFile
from tests.builders.facts import states

#: No process has it: the highest that Linux gives is a little lower.
NOBODY = 1 << 22


@contextmanager
def running(*words: str) -> Iterator[int]:
    """Run a process with these words in its command line; yield its pid."""
    process = subprocess.Popen(["sh", "-c", "echo; read _", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # Only from now on its command line is certain to be there.
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_it_is_written_whole_for_everybody_to_read_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    path.write_text("what was there before, and is longer")
    file = PidFile(str(path))
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["netsvc.pid"]
    file.check()
    file.remove()
    assert not path.exists()
    file.remove()


def test_one_that_is_another_process_s_by_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    path.write_text("1\n")
    PidFile(str(path)).remove()
    assert path.read_text() == "1\n"
    path.write_text("nonsense")
    PidFile(str(path)).remove()
    assert path.exists()


def test_one_that_is_left_over_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    PidFile(str(path)).check()
    for left in (str(NOBODY), "0", "9" * 30):
        path.write_text(left)
        PidFile(str(path)).check()


@pytest.mark.parametrize("content", ["", "twelve", "-1", "1" * 33, "\x1b[2J"])
def test_what_is_no_pid_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "netsvc.pid"
    path.write_text(content)
    with pytest.raises(UserError, match=r"netsvc\.pid .*remove it"):
        PidFile(str(path)).check()


def test_that_of_a_netsvc_which_runs_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    with running("twistd", "-n", "netsvc") as pid:
        path.write_text(str(pid))
        with pytest.raises(UserError, match=rf"netsvc\.pid .*\bprocess {pid}\b.*--pidfile"):
            PidFile(str(path)).check()


def test_that_of_another_program_which_has_got_the_pid_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    with running("other") as pid:
        path.write_text(str(pid))
        PidFile(str(path)).check()


def test_a_process_whose_command_line_cannot_be_read_may_be_a_netsvc(tmp_path: Path) -> None:
    assert may_be_netsvc(os.getpid(), tmp_path)
    assert not may_be_netsvc(NOBODY, tmp_path)


def test_a_zombie_is_none() -> None:
    with running("netsvc") as pid:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not may_be_netsvc(pid)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "netsvc.pid")
    with pytest.raises(UserError, match=r"netsvc\.pid .*remove it"):
        PidFile(str(tmp_path / "netsvc.pid")).check()


def test_where_nothing_can_be_written_the_line_says_so(tmp_path: Path) -> None:
    file = PidFile(str(tmp_path / "missing" / "netsvc.pid"))
    with pytest.raises(UserError, match=r"missing/netsvc\.pid.*: no such file or directory; .*--pidfile\b"):
        file.write()
    (tmp_path / "place").touch()
    with pytest.raises(UserError, match=r"not a directory; .*--pidfile\b"):
        PidFile(str(tmp_path / "place" / "netsvc.pid")).check()


def test_one_that_cannot_be_removed_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "place").touch()
    PidFile(str(tmp_path / "place" / "netsvc.pid")).remove()


def test_whether_another_process_could_take_it_over_is_known_before(tmp_path: Path) -> None:
    assert not PidFile(str(tmp_path / "netsvc.pid")).refusal()
    refusal = PidFile(str(tmp_path / "missing" / "netsvc.pid")).refusal()
    assert states(refusal, f"{tmp_path}/missing", f"user {os.geteuid()}")
