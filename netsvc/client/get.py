"""`netsvc get`: a file from a files service, whole or not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import click

from netsvc.client.address import ServerAddress
from netsvc.client.connection import CONNECT_TIMEOUT, Conversation, connect
from netsvc.client.failure import ClientError
from netsvc.client.options import Server, encoding_option, server_options
from netsvc.client.running import conclude
from netsvc.client.target import FileTarget, OutputTarget, Target, check_target
from netsvc.client.terminal import open_output
from netsvc.text import escape

__all__ = ["command", "default_target", "get"]


@click.command(name="get")
@server_options(required=True)
@click.argument("name", metavar="NAME")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where to put it; - is standard output. Default: the last part of NAME, in this directory.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@encoding_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up when nothing comes for so long.",
)
def command(
    *,
    address: ServerAddress,
    authority: str | None,
    insecure: bool,
    name: str,
    output: str | None,
    force: bool,
    encoding: str,
    timeout: float,
) -> None:
    """Get the file NAME from a files service.

    ADDRESS is PORT (on 127.0.0.1), HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.

    FILE appears when all of it has arrived and is on the disk; a failure or Ctrl-C leaves nothing behind. A file
    that exists is not touched without --force. The classic protocol answers a name that the server lacks
    with nothing, so an empty file cannot be told from a missing one: both are an error here. Nor does it tell
    the size: over plain TCP a server that is stopped half-way in good order looks like the end of the file.

    \b
    Examples:
      netsvc get 9003 notes.txt
      netsvc get files.example.com:9003 reports/2026.pdf -o report.pdf
      netsvc get 9003 backup.tar -o - | tar t
    """
    if address.is_datagram:
        raise click.UsageError(f"get needs a connection, and {address} speaks datagrams")
    if not name or "\n" in name or "\r" in name or "\0" in name:
        raise click.UsageError("NAME must not be empty and has no line end or NUL character in it")
    try:
        asked = name.encode(encoding, "surrogateescape") + "\n".encode(encoding)
    except UnicodeError:
        raise click.UsageError(f"{escape(name)} cannot be written in {encoding}; choose another --encoding") from None
    target = None if output == "-" else Path(output) if output else default_target(name)
    server = Server(address, authority, insecure)
    server.check()
    conclude(
        _get_into(server=server, name=name, asked=asked, path=target, force=force, timeout=timeout, encoding=encoding)
    )


def default_target(name: str) -> Path:
    """Return the last part of a name, as a file of the current directory. Raises `click.UsageError`."""
    last = PurePosixPath(name).name
    if last in ("", ".", ".."):
        raise click.UsageError(f"{escape(name)} names no file; say with -o FILE where to put it")
    return Path(last)


async def _get_into(
    *, server: Server, name: str, asked: bytes, path: Path | None, force: bool, timeout: float, encoding: str
) -> int:
    on_terminal = sys.stderr.isatty()
    if path is None:
        output = open_output()
        with OutputTarget(output, encoding) as out, _progress(name, on_terminal and not output.on_screen) as count:
            await get(server, name, asked, out, timeout=timeout, count=count)
            out.keep()
        return 0
    check_target(path, force)
    with FileTarget(path, force) as file:
        with _progress(name, on_terminal) as count:
            await get(server, name, asked, file, timeout=timeout, count=count)
        file.keep()
    if on_terminal:
        click.echo(f"saved as {escape(str(path), 4096)}", err=True)
    return 0


@contextmanager
def _progress(name: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """Count bytes, and show how many and how fast; the size is not known, so there is nothing to fill."""
    if not shown:
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(desc=escape(name, 40), unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True) as bar:
        yield bar.update


async def get(
    server: Server, name: str, asked: bytes, target: Target, *, timeout: float, count: Callable[[int], object]
) -> None:
    """Send the request `asked`, and write what comes to `target`, telling `count` of each part's size.

    Raises `ClientError`: nothing came, the connection broke, or `timeout` seconds went by without a byte.
    """
    assert server.address is not None
    size = 0
    async with connect(server.address, server.tls(), min(timeout, CONNECT_TIMEOUT)) as conversation:
        await conversation.send(asked)
        while (data := await _receive(conversation, server.address, timeout)) is not None:
            target.write(data)
            size += len(data)
            count(len(data))
        if conversation.was_cut():
            raise ClientError(f"{server.address}: the connection was cut off before the end, after {size} bytes")
    if not size:
        raise ClientError(f'{server.address}: no such file (or it is empty): "{escape(name)}"')


async def _receive(conversation: Conversation, address: ServerAddress, timeout: float) -> bytes | None:
    try:
        async with asyncio.timeout(timeout):
            return await conversation.receive()
    except TimeoutError:
        raise ClientError(f"{address}: nothing came for {timeout:g} s; a longer --timeout waits longer") from None
