"""Input and output of the clients: a pipe, a file or a terminal, with received text made safe."""

from __future__ import annotations

import asyncio
import atexit
import codecs
import locale
import os
import select
import sys
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from netsvc.base.text import is_unsafe
from netsvc.cli.errors import ClientError, LeaveError, OutputClosedError, reason

__all__ = [
    "LINE_LIMIT",
    "PIECE",
    "DumbTerminal",
    "EditingTerminal",
    "Line",
    "LineBuffer",
    "SafeText",
    "Terminal",
    "make_safe",
    "open_output",
    "open_terminal",
]

#: Characters. A longer line of input is returned in pieces.
LINE_LIMIT = 65536
_CHUNK = 65536


#: Characters. A longer line is shown in pieces of this length.
PIECE = 65536

#: Keys of a terminal without escape sequences.
_ERASE, _ERASE_LINE, _END = ("\x7f", "\b"), "\x15", "\x04"
#: Of its line being typed, when received lines are shown above it. A longer one stays where it is, and is written
#: again.
_WIDEST = 79


def make_safe(text: str) -> str:
    r"""Return `text` with every character that a terminal may act on as an escape (`\x1b`).

    Newline and tab stay, and CRLF becomes a newline.
    """
    text = text.replace("\r\n", "\n")
    # No unsafe character is printable: most text needs no check of each character.
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in "\n\t" and is_unsafe(character)
        else character
        for character in text
    )


class SafeText:
    r"""Decodes a stream and makes it safe, also a character or CRLF that is split between two segments.

    Bytes that cannot be decoded become escapes (`\xff`). Buffers a few bytes at most.
    """

    def __init__(self, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """Return the text that is complete. Never raises."""
        try:
            text = self._held + self._decoder.decode(data, final)
        except UnicodeError:
            # Some decoders (UTF-16 without a byte order mark) can only start again.
            self._decoder.reset()
            text = self._held + data.decode("ascii", "backslashreplace")
        self._held = "\r" if text.endswith("\r") and not final else ""
        return make_safe(text.removesuffix(self._held))


class LineBuffer:
    """Buffers an incomplete line, for a screen where lines appear above a prompt."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    @property
    def holding(self) -> bool:
        """Whether there is an incomplete line."""
        return self._size > 0

    def feed(self, text: str) -> str:
        """Return the complete lines, and full pieces of a line that is too long."""
        head, newline, tail = text.rpartition("\n")
        complete = self._take() + head + "\n" if newline else ""
        pieces = []
        while self._size + len(tail) >= PIECE:
            room = PIECE - self._size
            pieces.append(self._take() + tail[:room] + "\n")
            tail = tail[room:]
        if tail:
            self._parts.append(tail)
            self._size += len(tail)
        return complete + "".join(pieces)

    def flush(self) -> str:
        """Return the incomplete line as a line, or nothing."""
        return self._take() + "\n" if self.holding else ""

    def _take(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        self._size = 0
        return text


class Line(NamedTuple):
    """A line of input without its end; with `ended` False, a piece of a longer line."""

    text: str
    ended: bool = True


class Terminal:
    """Reads lines from one descriptor and writes to another; None stands for a closed one.

    `interactive` means that the input is a terminal, `on_screen` that the output is, and `by_line` that only complete
    lines can be shown. `encoding` is used for both descriptors.
    """

    by_line = False

    def __init__(self, source: int | None, sink: int | None, encoding: str = "utf-8") -> None:
        self._source = source
        self._sink = sink
        self.encoding = encoding
        self.interactive = source is not None and os.isatty(source)
        self.on_screen = sink is not None and os.isatty(sink)
        # Bytes that cannot be decoded are sent unchanged if the server has the same encoding.
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
        """Write safe text. Raises `OutputClosedError` or `ClientError`."""
        self.write(text.encode(self.encoding, "backslashreplace"))

    async def notice(self, text: str) -> None:
        """Write a message to standard error, on a line of its own."""
        self.end_line()
        click.echo(f"netsvc: {text}", err=True)

    def end_line(self) -> None:
        """Move the cursor of a screen to the start of a line."""
        if self.on_screen and self._within_line:
            self.write(b"\n")

    def write(self, data: bytes) -> None:
        """Write all bytes, without a buffer.

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
                # A program that shares our output has made it non-blocking.
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
        # A thread that blocks in read() would delay Ctrl-C, and a non-blocking descriptor would be non-blocking for the
        # shell as well, which shares it.
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(source, _settle, ready)
        except PermissionError:
            # epoll refuses a regular file (epoll_ctl(2), EPERM), which can always be read. Let other tasks run.
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            loop.remove_reader(source)


class EditingTerminal(Terminal):
    """A terminal with line editing and history; received lines appear above the line being typed."""

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
            # Pasted text may have several lines.
            self._pasted = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return Line(self._pasted.pop(0))

    async def ask(self, question: str) -> str | None:
        """Return the answer to a question, or None for Ctrl-D. Raises `LeaveError` for Ctrl-C."""
        return await self._prompt(question)

    async def show(self, text: str) -> None:
        """Write complete lines above the prompt. They are written when it returns: there is no queue to fill."""
        self._above_prompt(lambda: self.write(text.encode(self.encoding, "backslashreplace")))
        # So that keys are handled while much is received.
        await asyncio.sleep(0)

    async def notice(self, text: str) -> None:
        """Write a message to standard error, above the prompt."""
        self._above_prompt(lambda: click.echo(f"netsvc: {text}", err=True))

    def _above_prompt(self, write: Callable[[], None]) -> None:
        # prompt_toolkit's run_in_terminal enables the kernel's line editing meanwhile, which echoes or swallows keys;
        # its patch_stdout has an unbounded queue.
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


class DumbTerminal(Terminal):
    """A terminal without escape sequences (`TERM=dumb`); received lines appear above the line being typed.

    The kernel neither echoes nor collects what is typed, so that the line can be moved out of the way: it is
    overwritten with spaces, which needs only the carriage return. Backspace removes a character, Ctrl-U the line.
    """

    by_line = True

    def __init__(self, source: int, sink: int, encoding: str = "utf-8") -> None:
        import wcwidth

        super().__init__(source, sink, encoding)
        self._typed = ""
        self._widths = wcwidth
        before = termios.tcgetattr(source)
        raw: list[Any] = list(before)
        raw[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(source, termios.TCSADRAIN, raw)
        atexit.register(termios.tcsetattr, source, termios.TCSADRAIN, before)

    def _split(self, text: str) -> None:
        for character in text:
            if character in "\r\n":
                self._enter()
            elif character in _ERASE:
                self._erase(self._typed[: self._widths.grapheme_boundary_before(self._typed, len(self._typed))])
            elif character == _ERASE_LINE:
                self._erase("")
            elif character == _END and not self._typed:
                self._input_ended = True
            elif character.isprintable() and len(self._typed) < LINE_LIMIT:
                self._typed += character
                self._write(character)
        if self._input_ended and self._typed:
            self._enter()

    def _enter(self) -> None:
        self._write("\n")
        self._lines.append(Line(self._typed))
        self._typed = ""

    def _erase(self, left: str) -> None:
        self._hide()
        self._typed = left
        self._write(left)

    def _hide(self) -> None:
        """Overwrite the line being typed; leave a long one, and go to the next line."""
        width = self._widths.wcswidth(make_safe(self._typed))
        if 0 <= width <= _WIDEST:
            self._write("\r" + " " * width + "\r" if width else "")
        else:
            self._write("\n")

    async def show(self, text: str) -> None:
        """Write complete lines above the line being typed."""
        self._hide()
        self._write(text + self._typed)

    async def notice(self, text: str) -> None:
        """Write a message above the line being typed."""
        await self.show(f"netsvc: {text}\n")

    def _write(self, text: str) -> None:
        self.write(text.encode(self.encoding, "backslashreplace"))


def _encoding() -> str:
    # `locale.getencoding` ignores Python's UTF-8 mode, which is on in the C locale.
    return "utf-8" if sys.flags.utf8_mode else locale.getencoding()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _descriptor(stream: Any) -> int | None:
    # A stream that was closed before the start is None; its descriptor may be a socket by now.
    return None if stream is None else int(stream.fileno())


def open_terminal(words: Sequence[str] = ()) -> Terminal:
    """Return the terminal for the standard streams; if both are terminals, with line editing.

    It completes `words`, where the terminal has escape sequences.
    """
    source, sink = _descriptor(sys.stdin), _descriptor(sys.stdout)
    encoding = _encoding()
    if source is not None and sink is not None and os.isatty(source) and os.isatty(sink):
        if os.environ.get("TERM", "dumb") == "dumb":
            return DumbTerminal(source, sink, encoding)
        return EditingTerminal(source, sink, encoding, words)
    return Terminal(source, sink, encoding)


def open_output() -> Terminal:
    """Return the terminal for standard output, without input."""
    return Terminal(None, _descriptor(sys.stdout), _encoding())
