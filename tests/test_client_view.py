"""The live view on a terminal that a test holds: keys in, and what is shown."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from netsvc.client import status as client
from netsvc.client.asking import Process, of_config
from netsvc.client.board import Board
from netsvc.client.failure import ClientError, LeaveError
from netsvc.client.view import view
from netsvc.host.control import Answer, control_names
from tests.client_peer import OnTerminal
from tests.looks import PATIENCE, answering, connection, process, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


class Running:
    """A netsvc that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.peers = [connection(number, rate_in=50.0 - number) for number in range(1, 5)]
        self.answer: Answer | None = None

    def __call__(self, line: str) -> Answer:
        self.asked.append(line)
        if line.startswith("close "):
            self.peers = [each for each in self.peers if each.id != line.removeprefix("close ")]
            return Answer(0, ["closed"])
        return self.answer or status(process(0, self.peers))


class Screen:
    """A view, on a terminal of this size."""

    def __init__(self, keys: Any) -> None:
        self._keys = keys
        self.board = Board()
        self.output = io.StringIO()
        self.size = Size(24, 80)
        self.ended: asyncio.Future[int]

    async def press(self, text: str) -> None:
        self._keys.send_text(text)

    async def until(self, there: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not there():
                await asyncio.sleep(0.001)

    async def sees(self, words: str) -> None:
        await self.until(lambda: any(words in line for _, line in self.board.lines(80, 24)))


@asynccontextmanager
async def viewed(it: Process, interval: float = 0.01) -> AsyncIterator[Screen]:
    with create_pipe_input() as keys:
        screen = Screen(keys)
        terminal = Vt100_Output(screen.output, lambda: screen.size, default_color_depth=ColorDepth.DEPTH_1_BIT)
        seeing = view(it, screen.board, keys=keys, screen=terminal, interval=interval)
        screen.ended = asyncio.ensure_future(seeing)
        try:
            await screen.until(lambda: "q quit" in screen.output.getvalue())
            yield screen
        finally:
            screen.ended.cancel()
            await asyncio.wait([screen.ended])


def test_it_shows_what_there_is_until_q() -> None:
    running = Running()

    async def see(it: Process) -> int:
        async with viewed(it) as screen:
            await screen.sees("192.0.2.1:5000")
            await screen.until(lambda: len(running.asked) > 3)
            await screen.press("q")
            return await screen.ended

    with answering(running) as it:
        assert asyncio.run(see(it)) == 0
    assert set(running.asked) == {'status {"most":200,"order":"rate","words":[]}'}


def test_ctrl_c_leaves() -> None:
    async def see(it: Process) -> None:
        async with viewed(it) as screen:
            await screen.press("\x03")
            with pytest.raises(LeaveError):
                await screen.ended

    with answering(Running()) as it:
        asyncio.run(see(it))


def test_keys_have_their_names_and_pasted_text_is_no_command() -> None:
    running = Running()

    async def see(it: Process) -> None:
        async with viewed(it, interval=PATIENCE) as screen:
            await screen.press("\x1b[200~cyq\x1b[201~")
            await screen.press("/\x1b[200~a\x7fb\nq\x1b[201~\x7fcd")
            await screen.sees("cd_")
            await screen.press("\r")
            await screen.until(lambda: len(running.asked) == 2)
            await screen.press("/x")
            await screen.sees("cdx_")
            await screen.press("\x1b")
            await screen.until(lambda: not screen.board.typing)
            await screen.press("\x1b[B\x1b[A\x1b[6~\x1b[5~\x1b[F\x1b[H\t")
            await screen.sees("listeners: 2")
            assert not screen.ended.done()

    with answering(running) as it:
        asyncio.run(see(it))
    assert running.asked[1].endswith('"words":["acd"]}')


def test_a_connection_is_closed() -> None:
    running = Running()

    async def see(it: Process) -> None:
        async with viewed(it, interval=PATIENCE) as screen:
            await screen.press("jc")
            await screen.sees("close 192.0.2.2:5000 (echo tcp)?")
            await screen.press("y")
            await screen.until(lambda: len(running.asked) == 3)
            await screen.sees("closed")

    with answering(running) as it:
        asyncio.run(see(it))
    assert running.asked[1] == "close 4242-2"
    assert "0-2" not in [each.id for each in running.peers]


def test_an_answer_that_fails_is_told_and_the_next_one_shown() -> None:
    running = Running()

    async def see(it: Process) -> None:
        async with viewed(it) as screen:
            running.answer = Answer(1, ["not now", "nor then"])
            await screen.sees("trying again: not now")
            running.answer = status(process(0, [connection(77)]))
            await screen.sees("192.0.2.77:5000")

    with answering(running, pid=0) as it:
        asyncio.run(see(replace(it, config="/n.toml")))


def test_one_that_has_started_anew_is_seen_again(tmp_path: Path) -> None:
    config = str(tmp_path / "n.toml")

    async def see() -> None:
        with ExitStack() as first:
            first.enter_context(answering(Running(), control_names(config)[0]))
            async with viewed(of_config(config)) as screen:
                first.close()
                await screen.sees("trying again")
                other = Running()
                other.peers = [connection(99)]
                with answering(other, control_names(config)[0]):
                    await screen.sees("192.0.2.99:5000")

    asyncio.run(see())


def test_another_size_is_drawn() -> None:
    async def see(it: Process) -> None:
        async with viewed(it) as screen:
            screen.size = Size(30, 120)
            await screen.until(lambda: screen.output.getvalue().count("q quit") > 1)

    with answering(Running()) as it:
        asyncio.run(see(it))


def test_nothing_to_be_seen_is_an_error_and_leaves_the_terminal_alone(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="no process runs with --config"):
        asyncio.run(view(of_config(str(tmp_path / "n.toml")), Board()))


def test_the_command_shows_it_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def show(*given: Any) -> int:
        seen.append(given)
        return 0

    monkeypatch.setattr("netsvc.client.view.view", show)
    monkeypatch.setattr(client, "_is_terminal", lambda: True)
    result = CliRunner().invoke(client.command, ["--config", "n.toml", "--sort", "new", "a", "b"])
    assert result.exit_code == 0
    [(it, board)] = seen
    assert (it.config, board.search, board.order) == ("n.toml", "a b", "new")


@pytest.mark.parametrize(("term", "terminal"), [("xterm", True), ("dumb", False), (None, False)])
def test_a_terminal_that_cannot_move_its_cursor_is_none(
    term: str | None, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Stream())
    monkeypatch.setattr(sys, "stdout", Stream())
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert client._is_terminal() is terminal


@pytest.mark.slow
class TestOnATerminal:
    def test_a_person_sees_sorts_and_leaves(self) -> None:
        running = Running()
        with served(running) as config, OnTerminal("status", "--config", config) as terminal:
            terminal.read_until("192.0.2.1:5000")
            terminal.type("s?")
            terminal.read_until("netsvc goes on")
            terminal.type("qq")
            assert terminal.end() == 0
            assert "Traceback" not in terminal.seen
            # The screen that was there before comes back.
            assert "\x1b[?1049l" in terminal.seen
        assert 'status {"most":200,"order":"bytes","words":[]}' in running.asked

    @pytest.mark.parametrize(("number", "ends"), [(2, 130), (15, 143), (1, 129)])
    def test_a_signal_gives_the_terminal_back(self, number: int, ends: int) -> None:
        with served(Running()) as config, OnTerminal("status", "--config", config) as terminal:
            terminal.read_until("q quit")
            terminal.process.send_signal(number)
            assert terminal.end() == ends
            assert "\x1b[?1049l" in terminal.seen
            assert "Traceback" not in terminal.seen


@contextmanager
def served(running: Running) -> Iterator[str]:
    config = f"/nowhere/{os.getpid()}/n.toml"
    with answering(running, control_names(config)[0]):
        yield config
