"""A conversation on a terminal: lines of the user are sent, and what is received is shown."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from netsvc.base.text import escape
from netsvc.cli.connection import ClientDatagrams, Conversation
from netsvc.cli.errors import ClientError
from netsvc.cli.terminal import LineBuffer, SafeText, Terminal

__all__ = ["TerminalSession", "outlasts"]

#: Seconds without data after which an incomplete line is shown above the prompt.
QUIET_LINE = 0.1


class TerminalSession:
    """Sends and shows text in the server's encoding. `arrived` is set when anything is received."""

    def __init__(
        self,
        conversation: Conversation,
        terminal: Terminal,
        encoding: str,
        choose: Callable[[str], str] | None = None,
    ) -> None:
        self.arrived = asyncio.Event()
        #: Gets complete lines, and returns those to show. Without it, incomplete lines are shown as they come.
        self._choose = choose
        self._conversation = conversation
        self._terminal = terminal
        self._encoding = encoding
        self._is_datagram = isinstance(conversation, ClientDatagrams)
        self._encoder = codecs.getincrementalencoder(encoding)("surrogateescape")
        self._safe = SafeText(encoding)
        self._lines = LineBuffer()

    async def send(self, text: str) -> None:
        """Send text: a datagram, or the next part of a stream. Raises `ClientError` if it cannot be encoded."""
        if self._is_datagram:
            self._encoder.reset()
        before = self._encoder.getstate()
        try:
            data = self._encoder.encode(text)
        except UnicodeError as error:
            self._encoder.setstate(before)
            what = f'"{escape(text[error.start : error.end])}"' if isinstance(error, UnicodeEncodeError) else "this"
            raise ClientError(f"{what} cannot be encoded as {self._encoding}; use another --encoding") from None
        try:
            await self._conversation.send(data)
        except OSError:
            if self._is_datagram:
                raise
            # The connection is lost: `listen` shows what arrived before that, and then ends.
            await asyncio.get_running_loop().create_future()

    async def alongside(self, talking: Coroutine[Any, Any, None]) -> bool:
        """Show what is received while `talking` runs. Return True when that ends, False if the server ends first.

        The latter is shown to the user. Raises what `talking` raises, and `OSError`.
        """
        if await outlasts(talking, self.listen()):
            return True
        await self.end()
        await self._terminal.notice("the server closed the connection")
        return False

    async def listen(self) -> None:
        """Show what is received until the server closes the connection. Raises `OSError`."""
        listening = True
        while listening:
            try:
                listening = await self._show_next()
            except ConnectionRefusedError:
                # From the server's host, after a datagram. A user may start the server and try again.
                if not self._terminal.interactive:
                    raise
                await self._terminal.notice("no server at this address (connection refused)")

    async def listen_until_quiet(self, seconds: float) -> bool:
        """Show what is received until the server closes (True) or is silent for `seconds` (False).

        Raises `OSError`.
        """
        more = True
        with suppress(TimeoutError):
            while more:
                async with asyncio.timeout(seconds):
                    more = await self._show_next()
        return not more

    async def end(self) -> None:
        """Show an incomplete line, and end the line on the screen."""
        await self._show(self._safe.feed(b"", final=True))
        if held := self._lines.flush():
            await self._show_lines(held)
        self._terminal.end_line()

    async def _show_next(self) -> bool:
        if self._lines.holding:
            try:
                async with asyncio.timeout(QUIET_LINE):
                    data = await self._conversation.receive()
            except TimeoutError:
                await self._show_lines(self._lines.flush())
                return True
        else:
            data = await self._conversation.receive()
        if data is None:
            return False
        self.arrived.set()
        await self._show(self._decode(data))
        return True

    def _decode(self, data: bytes) -> str:
        if not self._is_datagram:
            return self._safe.feed(data)
        text = SafeText(self._encoding).feed(data, final=True)
        return text if text.endswith("\n") else text + "\n"

    async def _show(self, text: str) -> None:
        if self._terminal.by_line or self._choose is not None:
            text = self._lines.feed(text)
        await self._show_lines(text)

    async def _show_lines(self, text: str) -> None:
        if self._choose is not None:
            text = self._choose(text)
        if text:
            await self._terminal.show(text)


async def outlasts(talking: Coroutine[Any, Any, None], listening: Coroutine[Any, Any, None]) -> bool:
    """Run both until one ends, and cancel the other; return whether `talking` ended. Raises what either raises."""
    tasks = talk, _ = asyncio.create_task(talking), asyncio.create_task(listening)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    # Both errors are retrieved, or asyncio would log the second one.
    failures = [task.exception() for task in tasks if not task.cancelled()]
    for failure in failures:
        if failure is not None:
            raise failure
    return not talk.cancelled()
