from __future__ import annotations

import os
from pathlib import Path

import pytest

from netsvc.errors import MistakeError
from netsvc.host.pidfile import PidFile

#: No process has it: the highest that Linux gives is a little lower.
NOBODY = 1 << 22


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
    with pytest.raises(MistakeError, match="has no process number in it; remove it"):
        PidFile(str(path)).check()


def test_that_of_a_process_which_runs_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "netsvc.pid"
    path.write_text("1")
    with pytest.raises(
        MistakeError, match="is that of process 1, which runs; stop that one, or give --pidfile another"
    ):
        PidFile(str(path)).check()


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "netsvc.pid")
    with pytest.raises(MistakeError, match="has no process number"):
        PidFile(str(tmp_path / "netsvc.pid")).check()


def test_where_nothing_can_be_written_the_line_says_so(tmp_path: Path) -> None:
    file = PidFile(str(tmp_path / "missing" / "netsvc.pid"))
    with pytest.raises(MistakeError, match="cannot be written: no such file or directory; give --pidfile another name"):
        file.write()
    (tmp_path / "place").touch()
    with pytest.raises(MistakeError, match="not a directory; give --pidfile another name"):
        PidFile(str(tmp_path / "place" / "netsvc.pid")).check()


def test_one_that_cannot_be_removed_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "place").touch()
    PidFile(str(tmp_path / "place" / "netsvc.pid")).remove()


def test_whether_another_process_could_take_it_over_is_known_before(tmp_path: Path) -> None:
    assert not PidFile(str(tmp_path / "netsvc.pid")).refusal()
    assert "could not be replaced, as user" in PidFile(str(tmp_path / "missing" / "netsvc.pid")).refusal()
