"""`netsvc chat`: a chat client; messages appear above the line being typed."""

from __future__ import annotations

import click

from netsvc.cli.connection import ClientStream, connect
from netsvc.cli.errors import ClientError, conclude
from netsvc.cli.options import RemoteServer, encoding_option, server_options
from netsvc.cli.session import TerminalSession
from netsvc.cli.terminal import Terminal, open_terminal
from netsvc.plan.address import ServerAddress

__all__ = ["COMMANDS", "chat", "command"]

#: What Tab completes. /help lists the commands of the server.
COMMANDS = ("/nick ", "/join ", "/leave", "/rooms", "/who", "/msg ", "/me ", "/topic ", "/help", "/quit")

#: Seconds to wait for the server to close after /quit in a terminal.
GOODBYE = 2.0


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
    help="In a pipe: how long to wait for more from the server after the end of the input.",
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
    lists them, and Tab completes the common ones. /quit or Ctrl-D leaves. In a pipe, each line of the input is sent,
    then /quit, and what the server sends is printed until it closes the connection.

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


async def chat(server: RemoteServer, first: list[str], encoding: str, wait: float, terminal: Terminal) -> int:
    """Chat until the user or the server ends it, after sending the lines in `first`.

    Returns the exit status. Raises `ClientError`.
    """
    assert server.address is not None
    async with connect(server.address, server.tls()) as conversation:
        assert isinstance(conversation, ClientStream)
        session = TerminalSession(conversation, terminal, encoding)
        try:
            if terminal.interactive:
                await terminal.notice(f"chatting at {server.address}; /quit or Ctrl-D leaves")
            if await session.alongside(_speak(session, terminal, first)):
                conversation.finish()
                closed = await session.listen_until_quiet(GOODBYE if terminal.interactive else wait)
                if not closed and not terminal.interactive:
                    # A server with a rate limit may still have our lines queued, and drop them when we close.
                    raise ClientError(f"the server did not close within {wait:g} s; it may not have got every line")
        finally:
            await session.end()
    return 0


async def _speak(session: TerminalSession, terminal: Terminal, first: list[str]) -> None:
    for text in first:
        await session.send(text + "\n")
    while (line := await terminal.line()) is not None:
        try:
            await session.send(line.text + "\n" * line.ended)
        except ClientError as error:
            if not terminal.interactive:
                raise
            await terminal.notice(str(error))
        if line.text.strip().lower() == "/quit":
            return
    await session.send("/quit\n")
