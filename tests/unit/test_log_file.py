"""A log file keeps to its size, is opened anew where it was moved, and goes on where neither can be."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from netsvc.log.file import KEPT, ROTATED_AT, LogFile


def notice(text: str) -> str:
    return f"NOTICE {text}\n"


class WrittenLog:
    """A log file in a directory of its own."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.path = directory / "log"
        self.complaints: list[str] = []
        self.file = LogFile(str(self.path), notice, complain=self.complaints.append, **settings)

    def write(self, *lines: str) -> None:
        for line in lines:
            self.file.write(f"{line}\n")

    def lines(self, suffix: str = "") -> list[str]:
        return Path(f"{self.path}{suffix}").read_text().splitlines()


def test_it_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n")
    world = WrittenLog(tmp_path)
    world.write("new")
    assert world.lines() == ["old", "new"]
    world.file.close()


def test_it_rotates_at_its_size_and_keeps_so_many(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path, rotated_at=10, kept=2)
    os.chmod(world.path, 0o640)
    world.write(*(f"line {number}" for number in range(9)))
    assert [world.lines(suffix) for suffix in ("", ".1", ".2")] == [
        ["line 8"],
        ["line 6", "line 7"],
        ["line 4", "line 5"],
    ]
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    assert stat.S_IMODE(world.path.stat().st_mode) == 0o640
    world.file.close()


def test_it_is_bounded_by_default() -> None:
    assert (ROTATED_AT, KEPT) == (32 << 20, 8)


def test_one_that_was_cut_to_nothing_is_not_rotated_for_what_it_was(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path, rotated_at=10)
    world.write("0123456789")
    os.truncate(world.path, 0)
    world.write("next")
    assert world.lines() == ["next"] and os.listdir(tmp_path) == ["log"]
    world.file.close()


def test_another_process_s_rotation_is_joined(tmp_path: Path) -> None:
    one, other = WrittenLog(tmp_path, rotated_at=10), WrittenLog(tmp_path, rotated_at=10)
    one.write("0123456789")
    other.write("0123456789")
    one.write("one")
    other.write("other")
    assert one.lines() == ["one", "other"]
    assert one.lines(".1") == ["0123456789"] * 2 and not (tmp_path / "log.2").exists()
    one.file.close()
    other.file.close()


def test_one_that_was_removed_is_made_anew_when_it_is_full(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path, rotated_at=3)
    world.write("one")
    world.path.unlink()
    world.write("two")
    assert world.lines() == ["two"] and os.listdir(tmp_path) == ["log"]
    world.file.close()


def test_a_link_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "disk" / "real")
    world = WrittenLog(tmp_path, rotated_at=3)
    world.write("one", "two")
    assert (tmp_path / "disk" / "real.1").read_text() == "one\n" and world.lines() == ["two"]
    assert world.path.is_symlink()
    world.file.close()


def test_one_that_cannot_be_rotated_grows_and_says_so_once_a_size(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path, rotated_at=1000, kept=1)
    # Root may rename anything; but nobody renames a file to a directory.
    (tmp_path / "log.1").mkdir()
    world.write(*(f"line {number:94}" for number in range(40)))
    found = world.lines()
    said = found[10]
    assert re.match(f"NOTICE log file {world.path} .*rotated.*is a directory", said)
    assert found.count(said) == 4 and len(found) == 44
    world.file.close()


def test_it_is_opened_anew_where_it_was_moved(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path)
    os.chmod(world.path, 0o600)
    world.write("before")
    world.path.rename(tmp_path / "moved")
    world.write("still before")
    world.file.reopen()
    world.write("after")
    assert (tmp_path / "moved").read_text() == "before\nstill before\n"
    assert world.lines() == ["after"]
    assert stat.S_IMODE(world.path.stat().st_mode) == 0o600
    world.file.reopen()
    world.write("the same")
    assert world.lines() == ["after", "the same"]
    world.file.close()


def test_one_that_somebody_has_made_anew_has_its_permissions(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path)
    world.path.rename(tmp_path / "moved")
    world.path.touch()
    os.chmod(world.path, 0o604)
    world.file.reopen()
    world.write("after")
    assert world.lines() == ["after"] and stat.S_IMODE(world.path.stat().st_mode) == 0o604
    world.file.close()


def test_one_that_cannot_be_opened_anew_goes_on_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    world = WrittenLog(tmp_path / "logs")
    (tmp_path / "logs").rename(tmp_path / "gone")
    world.file.reopen()
    world.write("on")
    said = f"NOTICE log file {world.path} .*no such file or directory.*\non\n"
    assert re.fullmatch(said, (tmp_path / "gone" / "log").read_text())
    world.file.close()


def test_an_open_that_fails_at_first_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogFile(str(tmp_path / "no" / "log"), notice)


def test_one_that_another_process_makes_at_the_same_moment_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def race(path: str, flags: int, *mode: int, **directory: int) -> int:
        if flags & os.O_CREAT and not (tmp_path / "log").exists():
            (tmp_path / "log").write_text("theirs\n")
        return opened(path, flags, *mode, **directory)

    monkeypatch.setattr(os, "open", race)
    monkeypatch.setattr(os, "fchown", None)
    world = WrittenLog(tmp_path, owner=(1, 1))
    monkeypatch.undo()
    world.write("ours")
    assert world.lines() == ["theirs", "ours"]
    world.file.close()


def test_a_fifo_that_nobody_reads_does_not_hold_up_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device or address"):
        WrittenLog(tmp_path)


def test_what_is_no_file_is_never_rotated(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/null")
    world = WrittenLog(tmp_path, rotated_at=3)
    world.write("one", "two", "three")
    assert os.listdir(tmp_path) == ["log"] and world.file.lost == 0
    world.file.close()


def test_the_rest_of_a_torn_line_stays_with_the_old_file(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path)
    room = [7, 0, 0, 100, 1000]
    put = world.file._put

    class Filling(LogFile):
        def _put(self, data: bytes) -> int:
            return put(data[: room.pop(0)]) if room[0] else room.pop(0)

    world.file.__class__ = Filling
    world.write("a long line")
    assert world.path.read_text() == "a long "
    world.path.rename(tmp_path / "moved")
    world.file.reopen()
    room[:] = [100, 100, 100]
    world.write("after")
    notice, after = world.lines()
    assert re.match(f"NOTICE 1 line .*log file {world.path}", notice) and after == "after"
    assert world.file.lost == 1
    world.file.close()


def test_threads_lose_and_tear_nothing_while_it_rotates_and_is_opened_anew(tmp_path: Path) -> None:
    world = WrittenLog(tmp_path, rotated_at=2000, kept=500)

    def write(name: str) -> None:
        for number in range(500):
            world.write(f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for _ in range(50):
        world.file.reopen()
    for thread in threads:
        thread.join()
    found = [line for name in os.listdir(tmp_path) for line in (tmp_path / name).read_text().splitlines()]
    assert sorted(found) == sorted(f"{name} {number}" for name in "abc" for number in range(500))
    world.file.close()
