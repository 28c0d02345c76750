"""What goes wrong where lines are written stops nothing; what is lost is counted, and no line is torn."""

from __future__ import annotations

import fcntl
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.log.output import LONGEST_REST, Output, say_on_stderr


def notice(text: str) -> str:
    return f"NOTICE {text}\n"


class Disk(Output):
    """An output to a disk that has room for so many bytes."""

    def __init__(self, room: int = 0) -> None:
        self.complaints: list[str] = []
        super().__init__(-1, "the log", notice, complain=self.complaints.append)
        self.room = room
        self.content = b""

    def _put(self, data: bytes) -> int:
        self._fault = "no space left on device"
        part = data[: self.room]
        self.room -= len(part)
        self.content += part
        return len(part)


def lost(count: str) -> bytes:
    return f"NOTICE {count} lost here: the log could not be written: no space left on device\n".encode()


def test_lines_are_written_at_once_and_whole() -> None:
    disk = Disk(100)
    disk.write("one\n")
    assert disk.content == b"one\n"
    disk.write("two\nthree\n")
    assert disk.content == b"one\ntwo\nthree\n"
    assert disk.lost == 0 and not disk.complaints


def test_what_is_lost_is_counted_and_said_when_there_is_room_again() -> None:
    disk = Disk(4)
    for line in ("one\n", "two\n", "three\nfour\n"):
        disk.write(line)
    assert disk.content == b"one\n" and disk.lost == 3
    disk.room = 1000
    disk.write("five\n")
    assert disk.content == b"one\n" + lost("3 lines were") + b"five\n"
    disk.write("six\n")
    assert disk.content.endswith(b"five\nsix\n") and disk.lost == 3


def test_it_complains_once() -> None:
    disk = Disk()
    disk.write("one\n")
    disk.write("two\n")
    disk.room = 1000
    disk.settle()
    disk.room = 0
    disk.write("three\n")
    assert disk.complaints == ["the log cannot be written: no space left on device; lines are lost until it can be"]


def test_the_rest_of_a_line_that_was_begun_comes_first() -> None:
    disk = Disk(6)
    disk.write("one\ntwo\nthree\n")
    assert disk.content == b"one\ntw" and disk.lost == 1
    disk.write("four\n")
    assert disk.lost == 2
    disk.room = 1
    disk.write("five\n")
    assert disk.content == b"one\ntwo" and disk.lost == 3
    disk.room = 1000
    disk.write("six\n")
    assert disk.content == b"one\ntwo\n" + lost("3 lines were") + b"six\n"


def test_a_notice_that_is_torn_is_not_said_twice() -> None:
    disk = Disk()
    disk.write("one\n")
    disk.room = 10
    disk.write("two\n")
    disk.room = 1000
    disk.write("three\n")
    assert disk.content == lost("1 line was") + lost("1 line was") + b"three\n"
    assert disk.lost == 2


def test_of_a_line_without_end_no_more_is_kept_than_it_needs() -> None:
    disk = Disk(1)
    disk.write("x" * 3 * LONGEST_REST + "\n")
    disk.room = 1 << 20
    disk.write("next\n")
    assert disk.content == b"x" * (LONGEST_REST + 1) + b"...\nnext\n"


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(["a", "bb", "c" * 9]), min_size=1, max_size=4), st.integers(0, 120)))
)
def test_whatever_room_there_is_no_line_is_torn_and_every_one_is_accounted_for(
    steps: list[tuple[list[str], int]],
) -> None:
    disk, written = Disk(), 0
    for lines, room in steps:
        disk.room = room
        disk.write("".join(f"{line}\n" for line in lines))
        written += len(lines)
    disk.room = 10_000
    disk.settle()
    found = disk.content.decode().splitlines()
    said = [int(line.split()[1]) for line in found if line.startswith("NOTICE")]
    kept = [line for line in found if not line.startswith("NOTICE")]
    assert set(kept) <= {"a", "bb", "c" * 9}
    assert sum(said) == disk.lost == written - len(kept)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def test_a_full_device_is_survived() -> None:
    said: list[str] = []
    output = Output(os.open("/dev/full", os.O_WRONLY), "the log", notice, complain=said.append)
    output.write("one\n")
    output.write("two\nthree\n")
    output.close()
    assert output.lost == 3
    assert said == ["the log cannot be written: no space left on device; lines are lost until it can be"]


def test_a_reader_that_is_gone_is_survived(pipe: tuple[int, int]) -> None:
    said: list[str] = []
    output = Output(pipe[1], "stdout", notice, complain=said.append)
    output.write("one\n")
    assert os.read(pipe[0], 100) == b"one\n"
    os.close(pipe[0])
    output.write("two\n")
    assert output.lost == 1
    assert said == ["stdout cannot be written: broken pipe; lines are lost until it can be"]


@pytest.mark.parametrize("blocking", [False, True])
def test_a_reader_that_does_not_read_is_not_waited_for(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], blocking)
    size = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    output = Output(pipe[1], "stdout", notice, complain=lambda _: None, patience=0)
    line = "x" * 999 + "\n"
    for _ in range(size // 1000 + 10):
        output.write(line)
    assert output.lost >= 9
    taken = os.read(pipe[0], size)
    output.write("last\n")
    taken += os.read(pipe[0], size)
    *found, last = taken.decode().splitlines()
    # A short line may find room where a long one does not.
    said = [line for line in found if re.fullmatch(r"NOTICE \d+ lines? w\w+ lost here: stdout could not be .*", line)]
    whole = [line for line in found if line not in said]
    assert set(whole) == {"x" * 999} and last == "last"
    assert sum(int(line.split()[1]) for line in said) == output.lost == size // 1000 + 10 - len(whole)


def test_long_lines_go_whole_through_a_pipe_that_has_room_for_a_part_at_a_time(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], "stdout", notice, complain=lambda _: None, patience=0)
    text = "".join(f"{letter * 9999}\n" for letter in "abcdef")
    output.write(text)
    assert output.lost == 0
    assert os.read(pipe[0], 100_000).decode() == text


def test_a_line_of_which_a_part_was_written_is_ended_when_it_is_read_again(pipe: tuple[int, int]) -> None:
    size = fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 8192)
    output = Output(pipe[1], "stdout", notice, complain=lambda _: None, patience=0)
    line = "x" * (size + 1000) + "\n"
    output.write(line)
    output.write("lost\n")
    taken = os.read(pipe[0], size)
    output.write("last\n")
    taken += os.read(pipe[0], size)
    assert taken.decode() == f"{line}NOTICE 1 line was lost here: stdout could not be written: nobody reads it\nlast\n"


def test_what_an_encoding_has_not_is_escaped(pipe: tuple[int, int]) -> None:
    Output(pipe[1], "stdout", notice).write("\ud800é\n")
    Output(pipe[1], "stdout", notice, encoding="latin-1").write("é中\n")
    assert os.read(pipe[0], 100) == b"\\ud800\xc3\xa9\n\xe9\\u4e2d\n"


def test_a_complaint_is_a_line_on_stderr_if_there_is_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", out)
    say_on_stderr("it is full")
    assert out.getvalue() == "netsvc: it is full\n"
    out.close()
    say_on_stderr("a closed one")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "__stderr__", full)
        say_on_stderr("a full one")
        with suppress(OSError):
            full.close()
    monkeypatch.setattr(sys, "__stderr__", None)
    say_on_stderr("none")
