"""Where the user's lines come from and what was received goes: a pipe, a file, or a terminal."""

from __future__ import annotations

import asyncio
import codecs
import locale
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from netsvc.client.failure import ClientError, LeaveError, OutputClosedError, reason

__all__ = ["LINE_LIMIT", "EditingTerminal", "Line", "Terminal", "open_output", "open_terminal"]

#: Characters. A longer line of input comes in pieces.
LINE_LIMIT = 65536
_CHUNK = 65536


class Line(NamedTuple):
    """A line of input without its end, or with `ended` False a piece of one that goes on."""

    text: str
    ended: bool = True


class Terminal:
    """Reads lines from one descriptor and writes to another, as they are; None stands for a closed one.

    `interactive` tells that a person types the lines, `on_screen` that a person sees what is shown, and `by_line`
    that it must be whole lines. `encoding` is the one of both descriptors.
    """

    by_line = False

    def __init__(self, source: int | None, sink: int | None, encoding: str = "utf-8") -> None:
        self._source = source
        self._sink = sink
        self.encoding = encoding
        self.interactive = source is not None and os.isatty(source)
        self.on_screen = sink is not None and os.isatty(sink)
        # Bytes that are not text pass through unchanged where the server's encoding is the same.
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._lines: deque[Line] = deque()
        self._rest = ""
        self._input_ended = source is None
        self._within_line = False

    async def line(self) -> Line | None:
        """Return the next line of input, or None at its end. Raises `ClientError`."""
        while not self._lines:
            if self._input_ended:
                return None
            data = await self._read()
            self._input_ended = not data
            self._split(self._decoder.decode(data, not data))
        return self._lines.popleft()

    def _split(self, text: str) -> None:
        *complete, rest = (self._rest + text).split("\n")
        for line in complete:
            self._lines.append(Line(line.removesuffix("\r")))
        while len(rest) > LINE_LIMIT:
            self._lines.append(Line(rest[:LINE_LIMIT], ended=False))
            rest = rest[LINE_LIMIT:]
        if self._input_ended and rest:
            self._lines.append(Line(rest))
            rest = ""
        self._rest = rest

    async def ask(self, question: str) -> str | None:
        """Return the answer to a question, or None at the end of the input."""
        click.echo(question, nl=False, err=True)
        answer = await self.line()
        if not self.interactive:
            click.echo(err=True)
        return None if answer is None else answer.text

    async def show(self, text: str) -> None:
        """Write text that is safe for a terminal. Raises `OutputClosedError` or `ClientError`."""
        self.write(text.encode(self.encoding, "backslashreplace"))

    async def notice(self, text: str) -> None:
        """Tell the user something, on standard error, in a line of its own."""
        self.end_line()
        click.echo(f"netsvc: {text}", err=True)

    def end_line(self) -> None:
        """Leave the cursor of a screen at the begin of a line."""
        if self.on_screen and self._within_line:
            self.write(b"\n")

    def write(self, data: bytes) -> None:
        """Write bytes, all of them, and with no buffer that a failure could leave behind.

        Raises `OutputClosedError` or `ClientError`.
        """
        if self._sink is None or not data:
            return
        self._within_line = not data.endswith(b"\n")
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._sink, rest) :]
            except BlockingIOError:
                # Another program that shares our output made it non-blocking.
                select.select([], [self._sink], [])
            except BrokenPipeError:
                raise OutputClosedError from None
            except OSError as error:
                raise ClientError(f"cannot write to standard output: {reason(error)}") from None

    async def _read(self) -> bytes:
        assert self._source is not None
        while True:
            await self._readable(self._source)
            try:
                return os.read(self._source, _CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ClientError(f"cannot read standard input: {reason(error)}") from None

    @staticmethod
    async def _readable(source: int) -> None:
        # A thread that blocks in read() would hold up Ctrl-C, and a non-blocking descriptor would be so for the
        # user's shell as well, which shares it.
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(source, _settle, ready)
        except PermissionError:
            # epoll takes no regular file (epoll_ctl(2), EPERM): one can always be read. Others get their turn.
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            loop.remove_reader(source)


class EditingTerminal(Terminal):
    """A terminal with line editing and history, where what is received appears above the line being typed."""

    by_line = True

    def __init__(self, source: int, sink: int, encoding: str = "utf-8", words: Sequence[str] = ()) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.shortcuts import CompleteStyle

        super().__init__(source, sink, encoding)
        self._session: PromptSession[str] = PromptSession(
            completer=WordCompleter(list(words), sentence=True) if words else None,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
        )
        self._pasted: list[str] = []

    async def line(self) -> Line | None:
        """Return the next line that the user enters, or None for Ctrl-D. Raises `LeaveError` for Ctrl-C."""
        if not self._pasted:
            text = await self._prompt("> ")
            if text is None:
                return None
            # A paste brings its line ends along.
            self._pasted = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return Line(self._pasted.pop(0))

    async def ask(self, question: str) -> str | None:
        """Return the answer to a question, or None for Ctrl-D. Raises `LeaveError` for Ctrl-C."""
        return await self._prompt(question)

    async def show(self, text: str) -> None:
        """Write whole lines above the prompt. They are out when it returns: a flood fills no queue."""
        self._above_prompt(lambda: self.write(text.encode(self.encoding, "backslashreplace")))
        # Under a flood the user's keys get their turn.
        await asyncio.sleep(0)

    async def notice(self, text: str) -> None:
        """Tell the user something, on standard error, above the prompt."""
        self._above_prompt(lambda: click.echo(f"netsvc: {text}", err=True))

    def _above_prompt(self, write: Callable[[], None]) -> None:
        # prompt_toolkit's run_in_terminal gives the terminal back to the kernel's own line editing meanwhile,
        # which echoes, or swallows, the keys pressed in that moment; its patch_stdout queues without bound.
        app = self._session.app
        if not app.is_running:
            write()
            return
        app.renderer.erase()
        write()
        app.renderer.reset()
        app.invalidate()

    async def _prompt(self, prompt: str) -> str | None:
        try:
            return await self._session.prompt_async(prompt, handle_sigint=False, set_exception_handler=False)
        except EOFError:
            return None
        except KeyboardInterrupt:
            raise LeaveError from None


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _descriptor(stream: Any) -> int | None:
    # Python has None for a standard stream that was closed before it began; its number may be a socket's by now.
    return None if stream is None else int(stream.fileno())


def open_terminal(words: Sequence[str] = ()) -> Terminal:
    """Return the terminal for the standard streams, with editing (and `words` to complete) where a person types."""
    source, sink = _descriptor(sys.stdin), _descriptor(sys.stdout)
    encoding = locale.getencoding()
    if source is not None and sink is not None and os.isatty(source) and os.isatty(sink):
        return EditingTerminal(source, sink, encoding, words)
    return Terminal(source, sink, encoding)


def open_output() -> Terminal:
    """Return the standard output alone."""
    return Terminal(None, _descriptor(sys.stdout), locale.getencoding())
