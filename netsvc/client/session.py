"""One conversation on one terminal: what the user enters goes out, what comes in is shown."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from netsvc.client.connection import Conversation, Datagrams
from netsvc.client.failure import ClientError
from netsvc.client.screen import Lines, SafeText
from netsvc.client.terminal import Terminal
from netsvc.text import escape

__all__ = ["Session"]

#: Seconds without a byte until a part of a line is shown above the prompt, as a line of its own.
QUIET_LINE = 0.1


class Session:
    """Carries text both ways in the server's encoding. `arrived` is set by whatever is received."""

    def __init__(self, conversation: Conversation, terminal: Terminal, encoding: str) -> None:
        self.arrived = asyncio.Event()
        self._conversation = conversation
        self._terminal = terminal
        self._encoding = encoding
        self._is_datagram = isinstance(conversation, Datagrams)
        self._encoder = codecs.getincrementalencoder(encoding)("surrogateescape")
        self._safe = SafeText(encoding)
        self._lines = Lines()

    async def send(self, text: str) -> None:
        """Send text: a datagram, or the next part of a stream. Raises `ClientError` if it cannot be written so."""
        if self._is_datagram:
            self._encoder.reset()
        before = self._encoder.getstate()
        try:
            data = self._encoder.encode(text)
        except UnicodeError as error:
            self._encoder.setstate(before)
            what = f'"{escape(text[error.start : error.end])}"' if isinstance(error, UnicodeEncodeError) else "this"
            raise ClientError(f"{what} cannot be written in {self._encoding}; choose another --encoding") from None
        try:
            await self._conversation.send(data)
        except OSError:
            if self._is_datagram:
                raise
            # The connection is lost. What arrived before that shall be shown first: whoever listens ends with it.
            await asyncio.get_running_loop().create_future()

    async def alongside(self, talking: Coroutine[Any, Any, None]) -> bool:
        """Show what comes while `talking` runs. Return True when that ends, False if the server ends first.

        The user is told of the latter. Raises what `talking` raises, and `OSError`.
        """
        tasks = talk, _ = asyncio.create_task(talking), asyncio.create_task(self.listen())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        # An error of the other one, in the same moment, is retrieved as well: nobody shall log it.
        failures = [task.exception() for task in tasks if not task.cancelled()]
        for failure in failures:
            if failure is not None:
                raise failure
        if talk.cancelled():
            await self.end()
            await self._terminal.notice("the server closed the connection")
            return False
        return True

    async def listen(self) -> None:
        """Show what comes until the server closes. Raises `OSError`."""
        listening = True
        while listening:
            try:
                listening = await self._show_next()
            except ConnectionRefusedError:
                # The answer of the server's host to a datagram; a person may start the server and try again.
                if not self._terminal.interactive:
                    raise
                await self._terminal.notice("nobody listens at this address (connection refused)")

    async def listen_until_quiet(self, seconds: float) -> bool:
        """Show what still comes, until the server closes (True) or nothing came for so long (False).

        Raises `OSError`.
        """
        more = True
        with suppress(TimeoutError):
            while more:
                async with asyncio.timeout(seconds):
                    more = await self._show_next()
        return not more

    async def end(self) -> None:
        """Show what was held back, and leave the screen tidy."""
        await self._show(self._safe.feed(b"", final=True))
        if held := self._lines.flush():
            await self._terminal.show(held)
        self._terminal.end_line()

    async def _show_next(self) -> bool:
        if self._lines.holding:
            try:
                async with asyncio.timeout(QUIET_LINE):
                    data = await self._conversation.receive()
            except TimeoutError:
                await self._terminal.show(self._lines.flush())
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
        if self._terminal.by_line:
            text = self._lines.feed(text)
        if text:
            await self._terminal.show(text)
