"""`netsvc talk`: sends lines to a server and prints what it sends back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import click

from netsvc.base.text import escape
from netsvc.cli.connection import connect
from netsvc.cli.errors import ClientError, conclude, explain
from netsvc.cli.options import RemoteServer, encoding_option, server_options
from netsvc.cli.session import TerminalSession
from netsvc.cli.terminal import Line, Terminal, open_terminal
from netsvc.plan.address import ServerAddress, parse_server

__all__ = ["Manner", "ask_address", "command", "talk"]

End = Literal["lf", "crlf", "none"]
_ENDS: dict[End, str] = {"lf": "\n", "crlf": "\r\n", "none": ""}


@dataclass(frozen=True)
class Manner:
    """The options of a conversation: the line end, a time stamp before each line, seconds to `wait` for the server."""

    end: End | None = None
    stamp: bool = False
    wait: float = 2.0
    encoding: str = "utf-8"
    ctime: Callable[[], str] = field(default=time.ctime)


@click.command(name="talk")
@server_options(required=False)
@click.option("--udp", is_flag=True, help="Use UDP: short for udp: before ADDRESS.")
@encoding_option
@click.option("--stamp", is_flag=True, help="Put the time before each line, as in [Sat Nov 21 09:00:00 2026]:text")
@click.option(
    "--end",
    type=click.Choice(["lf", "crlf", "none"]),
    help="Line end that is sent. Default: lf, or none for datagrams.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="In a pipe: how long to wait for more from the server, or for the answer to a datagram.",
)
def command(
    *,
    address: ServerAddress | None,
    authority: str | None,
    insecure: bool,
    udp: bool,
    encoding: str,
    stamp: bool,
    end: End | None,
    wait: float,
) -> None:
    """Send lines to a server and print its answers.

    ADDRESS is PORT (on 127.0.0.1), HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, udp:HOST:PORT, tls:HOST:PORT, unix:PATH or
    unixgram:PATH. Without an ADDRESS you are asked for it, and lines are sent without a line end.

    In a terminal, q, quit or Ctrl-D leaves. In a pipe, every line of the input is sent, and the answers are printed
    until the server closes the connection or sends nothing for --wait seconds. Over UDP each line is one datagram,
    and the next is sent after its answer, or after --wait seconds. If no answer came, the exit status is 1. Control
    characters from the server are printed as escapes such as \\x1b.

    \b
    Examples:
      netsvc talk 9001
      netsvc talk udp:192.0.2.7:9001 --encoding gbk
      printf 'hello\\n' | netsvc talk tls:example.com:9001 --ca ca.pem
    """
    if address is not None and udp:
        try:
            address = address.over_udp()
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    server = RemoteServer(address, authority, insecure)
    server.check()
    conclude(talk(server, Manner(end, stamp, wait, encoding), open_terminal(), udp))


async def ask_address(terminal: Terminal, udp: bool = False) -> ServerAddress:
    """Ask for the transport (unless `udp`), the host and the port, again after a wrong answer.

    Raises `ClientError` at the end of the input.
    """
    kind = "u" if udp else await _ask(terminal, "t (TCP) or u (UDP) [t]: ", _transport)
    host = await _ask(terminal, "host [127.0.0.1]: ", _host)
    port = await _ask(terminal, "port [9001]: ", _port)
    return parse_server(f"{'udp' if kind == 'u' else 'tcp'}:{host}:{port}")


def _transport(answer: str) -> str:
    answer = answer.lower() or "t"
    if answer not in ("t", "u"):
        raise ValueError(f'"{escape(answer)}" is neither t nor u')
    return answer


def _host(answer: str) -> str:
    answer = answer or "127.0.0.1"
    host = f"[{answer}]" if ":" in answer and not answer.startswith("[") else answer
    try:
        parse_server(f"tcp:{host}:1")
    except ValueError:
        raise ValueError(f'"{escape(answer)}" is no host name or IP address') from None
    return host


def _port(answer: str) -> str:
    answer = answer or "9001"
    try:
        parse_server(f"tcp:127.0.0.1:{answer}")
    except ValueError:
        raise ValueError(f'"{escape(answer)}" is no port, a number from 1 to 65535') from None
    return answer


async def _ask(terminal: Terminal, question: str, check: Callable[[str], str]) -> str:
    while (answer := await terminal.ask(question)) is not None:
        try:
            return check(answer.strip())
        except ValueError as error:
            await terminal.notice(str(error))
    raise ClientError("the input ended before an address was given")


async def talk(server: RemoteServer, manner: Manner, terminal: Terminal, udp: bool = False) -> int:
    """Talk until the user or the server ends it. Return the exit status. Raises `ClientError`."""
    asked = server.address is None
    address = server.address or await ask_address(terminal, udp)
    if manner.end is None:
        manner = replace(manner, end="none" if asked or address.is_datagram else "lf")
    async with connect(address, server.tls()) as conversation:
        session = TerminalSession(conversation, terminal, manner.encoding)
        speaker = _Speaker(session, terminal, manner, address, leaves=asked or terminal.interactive)
        try:
            if terminal.interactive:
                await terminal.notice(f"talking to {address}; q, quit or Ctrl-D leaves")
            user_ended = await session.alongside(speaker.speak())
            if user_ended and not terminal.interactive and not address.is_datagram:
                conversation.finish()
                await session.listen_until_quiet(manner.wait)
        finally:
            await session.end()
    if terminal.interactive or not speaker.unanswered():
        return 0
    if not address.is_datagram:
        await terminal.notice("no answer")
    return 1


class _Speaker:
    """Sends the user's lines."""

    def __init__(
        self, session: TerminalSession, terminal: Terminal, manner: Manner, address: ServerAddress, leaves: bool
    ) -> None:
        self._session = session
        self._terminal = terminal
        self._manner = manner
        self._address = address
        self._leaves = leaves
        self._number = 0
        #: The number of datagrams without an answer.
        self._missing = 0
        self._starts_line = True

    def unanswered(self) -> bool:
        """Return whether a datagram had no answer, or lines were sent on a stream on which nothing was received."""
        if self._address.is_datagram:
            return self._missing > 0
        return self._number > 0 and not self._session.arrived.is_set()

    async def speak(self) -> None:
        """Send lines until the input ends or the user leaves."""
        while (line := await self._terminal.line()) is not None:
            self._number += 1
            if self._leaves and line.text.strip().lower() in ("q", "quit"):
                return
            try:
                await self._say(line)
            except ClientError as error:
                if not self._terminal.interactive:
                    raise ClientError(f"line {self._number}: {error}") from None
                await self._terminal.notice(str(error))

    async def _say(self, line: Line) -> None:
        assert self._manner.end is not None
        text = line.text
        if self._manner.stamp and self._starts_line:
            # As the textbooks' client writes it, without a space.
            text = "[%s]:%s" % (self._manner.ctime(), text)  # noqa: UP031
        self._starts_line = line.ended
        if line.ended:
            text += _ENDS[self._manner.end]
        if not self._address.is_datagram:
            await self._session.send(text)
        elif not line.ended:
            raise ClientError("longer than a datagram can be; send less in one line")
        else:
            await self._send_datagram(text)

    async def _send_datagram(self, text: str) -> None:
        self._session.arrived.clear()
        try:
            await self._session.send(text)
        except OSError as error:
            raise explain(error, self._address) from None
        if self._terminal.interactive:
            return
        try:
            async with asyncio.timeout(self._manner.wait):
                await self._session.arrived.wait()
        except TimeoutError:
            self._missing += 1
            await self._terminal.notice(f"no answer to line {self._number} within {self._manner.wait:g} s")
