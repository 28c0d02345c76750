"""`netsvc chat`: a chat client; messages appear above the line being typed."""

from __future__ import annotations

import asyncio
import random

import click

from netsvc.cli.connection import ClientStream, connect
from netsvc.cli.errors import ClientError, conclude
from netsvc.cli.options import RemoteServer, encoding_option, server_options
from netsvc.cli.recall import Recall
from netsvc.cli.session import TerminalSession, outlasts
from netsvc.cli.terminal import Line, Terminal, open_terminal
from netsvc.plan.address import ServerAddress

__all__ = ["COMMANDS", "chat", "command"]

#: What Tab completes. /help lists the commands of the server.
COMMANDS = ("/nick ", "/join ", "/leave", "/rooms", "/who", "/msg ", "/me ", "/topic ", "/history", "/help", "/quit")

#: Seconds to wait for the server to close after /quit in a terminal.
GOODBYE = 2.0
#: Seconds until a lost connection is made again, the first time and at most; each time is twice as long as the last
#: one, until a connection lasts for `STEADY` seconds.
RETRY, LONGEST_RETRY, STEADY = 1.0, 32.0, 10.0


@click.command(name="chat")
@server_options(required=True)
@click.option("--nick", metavar="NAME", help="Take this name (sends /nick NAME).")
@click.option("--room", metavar="ROOM", help="Enter this room (sends /join ROOM).")
@encoding_option
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="In a pipe: how long to wait for the server after the end of the input, or for a lost connection.",
)
def command(
    *,
    address: ServerAddress,
    authority: str | None,
    insecure: bool,
    nick: str | None,
    room: str | None,
    encoding: str,
    wait: float,
) -> None:
    """Join a chat server.

    ADDRESS is PORT (on 127.0.0.1), HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.

    Messages appear above the line that you are typing. A line that begins with / is a command to the server; /help
    lists them, and Tab completes the common ones. /quit or Ctrl-D leaves. A lost connection is made again: you keep
    your name and your rooms, and see what was said meanwhile. In a pipe, each line of the input is sent, then /quit,
    and what the server sends is printed until it closes the connection.

    \b
    Examples:
      netsvc chat 9002 --nick alice
      netsvc chat tls:chat.example.com:9002 --room lobby
      printf 'the build is done\\n' | netsvc chat 9002 --nick builder
    """
    if address.is_datagram:
        raise click.UsageError(f"chat needs a connection, but {address} is for datagrams; use netsvc talk")
    first = []
    for option, order, value in (("--nick", "/nick", nick), ("--room", "/join", room)):
        if value is not None:
            if not value.strip() or "\n" in value or "\r" in value:
                raise click.UsageError(f"{option} needs a name, on one line")
            first.append(f"{order} {value}")
    server = RemoteServer(address, authority, insecure)
    server.check()
    conclude(chat(server, first, encoding, wait, open_terminal(COMMANDS)))


async def chat(
    server: RemoteServer, first: list[str], encoding: str, wait: float, terminal: Terminal, *, retry: float = RETRY
) -> int:
    """Chat until the user ends it, or the server for this user alone; send the lines in `first` at the beginning.

    A connection that is lost is made anew, after `retry` seconds at first. Returns the exit status. Raises
    `ClientError`.
    """
    talk = _Talk(server, first, encoding, wait, terminal, retry=retry)
    tasks = speaking, listening = asyncio.create_task(talk.speak()), asyncio.create_task(talk.listen())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done() and speaking.exception() is None:
            await talk.leave(listening)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    # Both errors are retrieved, or asyncio would log the second one.
    for failure in [task.exception() for task in tasks if not task.cancelled()]:
        if failure is not None:
            raise failure
    return 0


class _Talk:
    """A conversation that goes on over one connection after another."""

    def __init__(
        self, server: RemoteServer, first: list[str], encoding: str, wait: float, terminal: Terminal, *, retry: float
    ) -> None:
        assert server.address is not None
        self._server = server
        self._address = server.address
        self._encoding = encoding
        self._wait = wait
        self._terminal = terminal
        self._retry = retry
        self._recall = Recall(first)
        self._conversation: ClientStream | None = None
        self._session: TerminalSession | None = None
        self._connected, self._lost = asyncio.Event(), asyncio.Event()
        self._left = False

    async def listen(self) -> None:
        """Show what the server sends until it ends the conversation, over as many connections as that takes."""
        pause, alone = self._retry, 0.0
        while True:
            since = asyncio.get_running_loop().time()
            try:
                await self._listen_once()
            except ClientError as error:
                if self._session is None or self._left:
                    raise
                problem = str(error)
            else:
                problem = "the server closed the connection"
            if self._left:
                return
            if self._recall.dismissed:
                await self._terminal.notice(problem)
                return
            if asyncio.get_running_loop().time() - since >= STEADY:
                pause, alone = self._retry, 0.0
            if not self._terminal.interactive and alone + pause > self._wait:
                raise ClientError(f"{problem}, and it could not be made again within {self._wait:g} s")
            if pause < LONGEST_RETRY:
                await self._terminal.notice(f"{problem}; connecting again in {pause:g} s")
            # Not all clients at the same moment.
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  (no secret)
            alone += pause
            pause = min(2 * pause, LONGEST_RETRY)

    async def _listen_once(self) -> None:
        async with connect(self._address, self._server.tls()) as conversation:
            assert isinstance(conversation, ClientStream)
            again = self._session is not None
            session = TerminalSession(conversation, self._terminal, self._encoding, self._recall.received)
            self._conversation, self._session = conversation, session
            try:
                if again:
                    await self._terminal.notice("connected again")
                elif self._terminal.interactive:
                    await self._terminal.notice(f"chatting at {self._address}; /quit or Ctrl-D leaves")
                for line in self._recall.opening():
                    await session.send(line + "\n")
                self._lost.clear()
                self._connected.set()
                await session.listen()
            finally:
                self._connected.clear()
                self._lost.set()
                await session.end()

    async def speak(self) -> None:
        """Send the user's lines until the user leaves."""
        await self._connected.wait()
        while (line := await self._terminal.line()) is not None:
            # Before it is sent: the answer may come at once.
            self._left = line.text.strip().lower() == "/quit"
            try:
                await self._say(line)
            except ClientError as error:
                if not self._terminal.interactive:
                    raise
                await self._terminal.notice(str(error))
            if self._left:
                return
        self._left = True
        if self._connected.is_set() or not self._terminal.interactive:
            await self._say(Line("/quit"))

    async def _say(self, line: Line) -> None:
        sent = False
        while not sent:
            if self._terminal.interactive and not self._connected.is_set():
                raise ClientError("not sent, as there is no connection; the Up key brings the line back")
            await self._connected.wait()
            assert self._session is not None
            sent = await outlasts(self._session.send(line.text + "\n" * line.ended), self._wait_until_lost())
        self._recall.sent(line.text)

    async def _wait_until_lost(self) -> None:
        await self._lost.wait()

    async def leave(self, listening: asyncio.Task[None]) -> None:
        """Wait for the server to close the connection, as long as it sends something. Raises `ClientError`."""
        if self._session is None or self._conversation is None or not self._connected.is_set():
            return
        self._conversation.finish()
        self._session.arrived.set()
        while not listening.done() and self._session.arrived.is_set():
            self._session.arrived.clear()
            await asyncio.wait([listening], timeout=GOODBYE if self._terminal.interactive else self._wait)
        if not listening.done() and not self._terminal.interactive:
            # A server with a rate limit may still have our lines queued, and drop them when we close.
            raise ClientError(f"the server did not close within {self._wait:g} s; it may not have got every line")
