from __future__ import annotations

import asyncio
import os
import pty
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsvc.cli.errors import ClientError, OutputClosedError
from netsvc.cli.terminal import LINE_LIMIT, Line, Terminal


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    """A pipe that brings `data`, and ends."""
    reader, writer = os.pipe()

    def fill() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


def lines_of(source: int | None, encoding: str = "utf-8") -> list[Line]:
    async def read() -> list[Line]:
        terminal = Terminal(source, None, encoding)
        lines = []
        while (line := await terminal.line()) is not None:
            lines.append(line)
        assert await terminal.line() is None
        return lines

    return asyncio.run(read())


def texts(data: bytes, encoding: str = "utf-8") -> list[str]:
    with piped(data) as source:
        return [line.text for line in lines_of(source, encoding)]


def test_lines_come_without_their_ends() -> None:
    assert texts(b"a\n\nb\r\nc") == ["a", "", "b", "c"]
    assert texts(b"") == []


def test_a_line_is_read_as_soon_as_it_is_there() -> None:
    reader, writer = os.pipe()

    async def read() -> list[Line | None]:
        terminal = Terminal(reader, None)
        os.write(writer, b"\xe4\xbd")
        waiting = asyncio.create_task(terminal.line())
        await asyncio.sleep(0)
        os.write(writer, b"\xa0\nrest")
        first = await waiting
        os.close(writer)
        return [first, await terminal.line(), await terminal.line()]

    assert asyncio.run(read()) == [Line("你"), Line("rest"), None]
    os.close(reader)


def test_bytes_that_are_not_text_pass_unchanged() -> None:
    assert texts(b"\xff\xc4\n")[0].encode("utf-8", "surrogateescape") == b"\xff\xc4"


def test_a_file_is_read_like_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\nb")
    with (tmp_path / "lines").open("rb") as file:
        assert lines_of(file.fileno()) == [Line("a"), Line("b")]


def test_a_closed_input_has_no_lines() -> None:
    assert lines_of(None) == []


def test_a_directory_is_no_input(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ClientError, match="cannot read standard input: is a directory"):
        lines_of(directory)
    os.close(directory)


def test_an_input_that_is_non_blocking_is_read() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    arrivals = iter([None, None, b"a\n"])

    class Hasty(Terminal):
        @staticmethod
        async def _readable(source: int) -> None:
            if data := next(arrivals):
                os.write(writer, data)

    assert asyncio.run(Hasty(reader, None).line()) == Line("a")
    os.close(reader)
    os.close(writer)


def test_a_line_that_is_too_long_comes_in_pieces() -> None:
    with piped(b"x" * (2 * LINE_LIMIT + 1) + b"\ny\n") as source:
        lines = lines_of(source)
    assert [line.ended for line in lines[:-2]] == [False] * (len(lines) - 2)
    assert "".join(line.text for line in lines[:-1]) == "x" * (2 * LINE_LIMIT + 1)
    assert all(len(line.text) <= 2 * LINE_LIMIT for line in lines)
    assert lines[-1] == Line("y")


def test_many_short_lines_are_read() -> None:
    assert texts(b"\n" * 200_000) == [""] * 200_000


def test_questions_and_notices_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    async def ask(source: int | None) -> str | None:
        terminal = Terminal(source, 1)
        await terminal.notice("now")
        return await terminal.ask("port: ")

    with piped(b"9\n") as source:
        assert asyncio.run(ask(source)) == "9"
    assert asyncio.run(ask(None)) is None
    assert capfd.readouterr() == ("", "netsvc: now\nport: \n" * 2)


def test_a_person_who_answers_has_ended_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    master, slave = pty.openpty()
    os.write(master, b"9\n")
    assert asyncio.run(Terminal(slave, None).ask("port: ")) == "9"
    assert capfd.readouterr().err == "port: "
    os.close(slave)
    os.close(master)


def test_what_the_output_cannot_express_is_escaped() -> None:
    reader, writer = os.pipe()
    asyncio.run(Terminal(None, writer, "ascii").show("é你\n"))
    assert os.read(reader, 99) == b"\\xe9\\u4f60\n"
    os.close(reader)
    os.close(writer)


def test_a_closed_output_takes_nothing() -> None:
    asyncio.run(Terminal(None, None).show("text"))


def test_a_reader_that_has_left_is_told_apart() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(OutputClosedError):
        asyncio.run(Terminal(None, writer).show("text"))
    os.close(writer)


def test_a_full_disk_is_one_line() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(ClientError, match="cannot write to standard output: no space left on device"):
        asyncio.run(Terminal(None, full).show("text"))
    os.close(full)


def test_an_output_that_is_non_blocking_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []

    def drain() -> None:
        while data := os.read(reader, 65536):
            received.append(data)

    thread = threading.Thread(target=drain)
    thread.start()
    Terminal(None, writer).write(b"x" * 1_000_000)
    os.close(writer)
    thread.join()
    assert len(b"".join(received)) == 1_000_000
    os.close(reader)


def test_a_screen_gets_its_last_line_ended() -> None:
    master, slave = pty.openpty()
    terminal = Terminal(slave, slave)
    assert terminal.interactive
    assert terminal.on_screen
    terminal.write(b"a")
    terminal.end_line()
    terminal.end_line()
    terminal.write(b"b\n")
    terminal.end_line()
    shown = b""
    while len(shown) < 6:
        shown += os.read(master, 99)
    assert shown == b"a\r\nb\r\n"
    os.close(slave)
    os.close(master)
