"""A thread writes to a pipe or a terminal: a reader that does not read stops nothing, and lost lines are counted."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from netsvc.log import queued
from netsvc.log.file import LogFile
from netsvc.log.queued import QueuedOutput, follow, may_block, wait

#: Far more than a pipe has room for.
MUCH = 1 << 18


def notice(text: str) -> str:
    return f"NOTICE {text}\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    # The output closes the other end, at the latest when its thread finds that the reader is gone.
    with suppress(OSError):
        os.close(reading)
    wait(False)


def read_to(descriptor: int, words: bytes) -> bytes:
    data = b""
    while words not in data:
        chunk = os.read(descriptor, 1 << 16)
        assert chunk
        data += chunk
    return data


@pytest.mark.parametrize("blocking", [False, True])
def test_a_reader_that_does_not_read_stops_nothing_and_what_it_misses_is_counted(
    pipe: tuple[int, int], blocking: bool
) -> None:
    os.set_blocking(pipe[1], blocking)
    complaints: list[str] = []
    output = QueuedOutput(pipe[1], "stdout", notice, complain=complaints.append, most=MUCH)
    line = "x" * 999 + "\n"
    count = 2 * MUCH // 1000
    for _ in range(count):
        output.write(line)
    assert output.lost > count // 4
    [complaint] = complaints
    assert re.match("stdout .*does not read", complaint)
    *found, said = read_to(pipe[0], b"NOTICE").decode().splitlines()
    if not said.endswith("read"):
        said += read_to(pipe[0], b"\n").decode().rstrip()
    assert set(found) == {"x" * 999}
    lost = re.match(r"NOTICE (\d+) lines .*stdout.*does not read", said)
    assert lost and int(lost[1]) == output.lost == count - len(found)
    output.write("again\n")
    assert read_to(pipe[0], b"\n") == b"again\n"
    assert output.lost == count - len(found) and len(complaints) == 1
    output.close()


def test_the_queue_is_bounded_but_for_one_write(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "stdout", notice, complain=lambda _: None, most=1000)
    output.write("x" * MUCH + "\n")
    output.write("lost\n")
    assert output.lost == 1
    assert read_to(pipe[0], b"NOTICE 1 line ").startswith(b"x" * MUCH + b"\n")
    output.close()


def test_small_writes_fill_the_queue_too(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "stdout", notice, complain=lambda _: None, most=10_000)
    output.write("x" * MUCH + "\n")
    for _ in range(1000):
        output.put(b".")
    assert output.lost > 800
    output.close()


def test_a_process_that_may_end_waits_for_its_lines_but_not_for_ever(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    output = QueuedOutput(pipe[1], "stdout", notice, complain=complaints.append)
    wait(True)
    output.write("one\n")
    os.set_blocking(pipe[0], False)
    assert os.read(pipe[0], 100) == b"one\n"
    monkeypatch.setattr(queued, "PATIENCE", 0.01)
    wait(True)
    output.write("x" * MUCH + "\n")
    assert complaints
    # Patience is exhausted: this does not wait again.
    output.write("more\n")
    output.settle()
    output.close()


def test_only_a_running_reactor_does_not_wait_for_lines(pipe: tuple[int, int]) -> None:
    reactor = MemoryReactorClock()
    wait(True)
    output = QueuedOutput(pipe[1], "stdout", notice, complain=lambda _: None)
    follow(reactor)
    os.set_blocking(pipe[0], False)
    output.write("start\n")
    assert os.read(pipe[0], 100) == b"start\n"
    reactor.whenRunningHooks[0][0](*reactor.whenRunningHooks[0][1])
    output.write("while it runs\n")
    for what in reactor.triggers["after"]["shutdown"]:
        what[0](*what[1])
    assert os.read(pipe[0], 100) == b"while it runs\n"
    output.write("at the end\n")
    assert os.read(pipe[0], 100) == b"at the end\n"
    output.close()


def test_a_reader_that_is_gone_is_survived(pipe: tuple[int, int]) -> None:
    complaints: list[str] = []
    output = QueuedOutput(pipe[1], "stdout", notice, complain=complaints.append)
    os.close(pipe[0])
    output.write("one\ntwo\n")
    output.settle()
    assert output.lost == 2
    [complaint] = complaints
    assert re.match("stdout .*broken pipe", complaint)
    output.close()


def test_the_thread_takes_no_signals(pipe: tuple[int, int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    output = QueuedOutput(pipe[1], "stdout", notice)
    output.write("one\n")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    [thread] = [each for each in threading.enumerate() if each.name == "writes stdout" and each.is_alive()][-1:]
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2))
    output.close()


def test_a_forked_process_has_a_thread_of_its_own(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "stdout", notice)
    output.write("parent\n")
    output.settle()
    pid = os.fork()
    if not pid:
        output.write("child\n")
        output.settle()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    output.write("parent\n")
    output.settle()
    assert os.read(pipe[0], 100) == b"parent\nchild\nparent\n"
    output.close()


def test_a_fifo_that_is_not_read_stops_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reading = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    file = LogFile(str(tmp_path / "log"), notice, complain=lambda _: None)
    for _ in range(5000):
        file.write("x" * 999 + "\n")
    file.reopen()
    assert file.lost > 1000
    os.close(reading)
    file.close()


def test_what_may_block(pipe: tuple[int, int], tmp_path: Path) -> None:
    assert may_block(pipe[1])
    os.close(pipe[1])
    with open(tmp_path / "file", "w") as file, open(os.devnull, "w") as nowhere:
        assert not may_block(file.fileno()) and not may_block(nowhere.fileno())
    assert not may_block(-1)
