"""`netsvc chat`: a member of a chat, with the others' lines above the one being typed."""

from __future__ import annotations

import click

from netsvc.client.address import ServerAddress
from netsvc.client.connection import Stream, connect
from netsvc.client.failure import ClientError
from netsvc.client.options import Server, encoding_option, server_options
from netsvc.client.running import conclude
from netsvc.client.session import Session
from netsvc.client.terminal import Terminal, open_terminal

__all__ = ["COMMANDS", "chat", "command"]

#: What Tab completes. The server decides what it understands; its own /help lists that.
COMMANDS = ("/nick ", "/join ", "/leave", "/rooms", "/who", "/msg ", "/me ", "/topic ", "/help", "/quit")

#: Seconds that a person who leaves waits for the server's goodbye.
GOODBYE = 2.0


@click.command(name="chat")
@server_options(required=True)
@click.option("--nick", metavar="NAME", help="Take this name: sends /nick NAME first.")
@click.option("--room", metavar="ROOM", help="Enter this room: sends /join ROOM first.")
@encoding_option
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="In a pipe: how long the server may be quiet after the end of the input, until it has closed.",
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
    """Chat: lines to a chat server, and what the others say.

    ADDRESS is PORT (on 127.0.0.1), HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.

    What comes in appears above the line that you are typing. A line that begins with / is a command of the
    server, and Tab completes the usual ones; /help lists them. /quit or Ctrl-D leaves. In a pipe each line of
    the input is said, /quit follows the last, and what the server sends is shown until it closes.

    \b
    Examples:
      netsvc chat 9002 --nick alice
      netsvc chat tls:chat.example.com:9002 --room lobby
      printf 'the build is done\\n' | netsvc chat 9002 --nick builder
    """
    if address.is_datagram:
        raise click.UsageError(f"chat needs a connection, and {address} speaks datagrams; use netsvc talk")
    first = []
    for option, order, value in (("--nick", "/nick", nick), ("--room", "/join", room)):
        if value is not None:
            if not value.strip() or "\n" in value or "\r" in value:
                raise click.UsageError(f"{option} needs a name, on one line")
            first.append(f"{order} {value}")
    server = Server(address, authority, insecure)
    server.check()
    conclude(chat(server, first, encoding, wait, open_terminal(COMMANDS)))


async def chat(server: Server, first: list[str], encoding: str, wait: float, terminal: Terminal) -> int:
    """Chat until the user or the server has done, after the lines in `first`.

    Returns the exit status. Raises `ClientError`.
    """
    assert server.address is not None
    async with connect(server.address, server.tls()) as conversation:
        assert isinstance(conversation, Stream)
        session = Session(conversation, terminal, encoding)
        try:
            if terminal.interactive:
                await terminal.notice(f"chatting at {server.address}; /quit or Ctrl-D leaves")
            if await session.alongside(_speak(session, terminal, first)):
                conversation.finish()
                closed = await session.listen_until_quiet(GOODBYE if terminal.interactive else wait)
                if not closed and not terminal.interactive:
                    # A server that limits the rate may still be busy with our lines, and drop them when we go.
                    raise ClientError(f"the server did not close within {wait:g} s; it may not have taken every line")
        finally:
            await session.end()
    return 0


async def _speak(session: Session, terminal: Terminal, first: list[str]) -> None:
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
