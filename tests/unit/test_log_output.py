"""What goes wrong where lines are written stops nothing; what is lost is counted, and no line is torn."""

from __future__ import annotations

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

from netsvc.log.output import LONGEST_REST, Output, complain_on_stderr


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
        self._error = "no space left on device"
        part = data[: self.room]
        self.room -= len(part)
        self.content += part
        return len(part)


def lost(count: int) -> bytes:
    """Match the line that says how many lines were lost, where and why."""
    return rb"NOTICE %d lines? [^\n]*the log[^\n]*no space left on device\n" % count


#: A complaint on stderr about a full disk.
FULL = "the log .*no space left on device"


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
    assert re.fullmatch(b"one\n" + lost(3) + b"five\n", disk.content)
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
    [complaint] = disk.complaints
    assert re.match(FULL, complaint)


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
    assert re.fullmatch(b"one\ntwo\n" + lost(3) + b"six\n", disk.content)


def test_a_notice_that_is_torn_is_not_said_twice() -> None:
    disk = Disk()
    disk.write("one\n")
    disk.room = 10
    disk.write("two\n")
    disk.room = 1000
    disk.write("three\n")
    assert re.fullmatch(lost(1) + lost(1) + b"three\n", disk.content)
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
    [complaint] = said
    assert re.match(FULL, complaint)


def test_a_reader_that_is_gone_is_survived(pipe: tuple[int, int]) -> None:
    said: list[str] = []
    output = Output(pipe[1], "stdout", notice, complain=said.append)
    output.write("one\n")
    assert os.read(pipe[0], 100) == b"one\n"
    os.close(pipe[0])
    output.write("two\n")
    assert output.lost == 1
    [complaint] = said
    assert re.match("stdout .*broken pipe", complaint)


def test_what_an_encoding_has_not_is_escaped(pipe: tuple[int, int]) -> None:
    Output(pipe[1], "stdout", notice).write("\ud800é\n")
    Output(pipe[1], "stdout", notice, encoding="latin-1").write("é中\n")
    assert os.read(pipe[0], 100) == b"\\ud800\xc3\xa9\n\xe9\\u4e2d\n"


def test_a_complaint_is_a_line_on_stderr_if_there_is_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", out)
    complain_on_stderr("it is full")
    assert out.getvalue() == "netsvc: it is full\n"
    out.close()
    complain_on_stderr("a closed one")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "__stderr__", full)
        complain_on_stderr("a full one")
        with suppress(OSError):
            full.close()
    monkeypatch.setattr(sys, "__stderr__", None)
    complain_on_stderr("none")
