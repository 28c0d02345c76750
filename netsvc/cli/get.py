"""`netsvc get`: downloads files over HTTP or TFTP, or one from a files service."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import click

from netsvc.base.files import AtomicFile
from netsvc.base.text import escape
from netsvc.cli.connection import CONNECT_TIMEOUT, Conversation, connect
from netsvc.cli.errors import ClientError, conclude, exits, reason
from netsvc.cli.fetch import ChecksumError, Fetcher, PartFile, RemoteFile, fetch_all, file_name, is_url, make_opener
from netsvc.cli.options import RemoteServer, encoding_option, tls_options
from netsvc.cli.terminal import SafeText, Terminal, open_output
from netsvc.cli.tftp import is_tftp
from netsvc.plan.address import ServerAddress, parse_server

if TYPE_CHECKING:
    import ssl

__all__ = ["FileTarget", "OutputTarget", "Target", "check_target", "command", "default_target", "get"]


@click.command(name="get")
@tls_options
@click.argument("words", metavar="URL...|ADDRESS NAME", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="File to write; - is standard output. Default: the last part of NAME or URL, in this directory.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@encoding_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up if nothing arrives for so long.",
)
@click.option("--sha256", metavar="HEX", help="With one URL: keep the file only if it has this SHA-256.")
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    metavar="COUNT",
    help="With URLs: attempts after one that received nothing.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    metavar="COUNT",
    help="With URLs: downloads at a time.",
)
def command(
    *,
    words: Sequence[str],
    authority: str | None,
    insecure: bool,
    output: str | None,
    force: bool,
    encoding: str,
    timeout: float,
    sha256: str | None,
    retries: int,
    jobs: int,
) -> None:
    """Download files, over HTTP or TFTP, or from a files service.

    A URL begins with http:, https: or tftp:. A download that is cut off, or refused for a while, is tried again, after
    1, 2, 4 … 30 seconds. One over HTTP that stays incomplete is kept as NAME.part; the same command resumes it, if the
    server says that the file is still the same (NAME.part.json has its ETag). TFTP cannot resume: an incomplete file is
    removed. Proxies for HTTP are taken from the environment, as by curl.

    Exit status: 0 if every file is complete, 1 if one is not, 2 for wrong arguments, 3 if the SHA-256 does not match.

    For a files service that speaks the classic protocol, ADDRESS is PORT (on
    127.0.0.1), HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.

    Its file is written under a temporary name and gets its own when it is complete; an error or Ctrl-C leaves nothing
    behind. An existing file is replaced only with --force. The classic protocol does not distinguish an empty file
    from a missing one: both are an error here. It does not send a size either: if the server closes a plain TCP
    connection early, the file is shorter, without an error.

    \b
    Examples:
      netsvc get http://files.example.com/a.iso http://files.example.com/b.iso
      netsvc get tftp://files.example.com/boot/pxelinux.0
      netsvc get 9003 notes.txt
      netsvc get files.example.com:9003 reports/2026.pdf -o report.pdf
      netsvc get 9003 backup.tar -o - | tar t
    """
    if any(map(is_url, words)):
        with exits():
            _get_urls(
                words,
                RemoteServer(None, authority, insecure).context,
                output=output,
                force=force,
                sha256=sha256,
                fetch=partial(Fetcher, timeout=timeout, retries=retries),
                jobs=jobs,
            )
        return
    if len(words) != 2:
        raise click.UsageError("give URLs, or ADDRESS and NAME")
    if sha256 is not None:
        raise click.UsageError("--sha256 needs a URL")
    name = words[1]
    try:
        address = parse_server(words[0])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if address.is_datagram:
        raise click.UsageError(f"get needs a connection, but {address} is for datagrams")
    if not name or "\n" in name or "\r" in name or "\0" in name:
        raise click.UsageError("NAME must not be empty, or contain a line end or NUL")
    try:
        asked = name.encode(encoding, "surrogateescape") + "\n".encode(encoding)
    except UnicodeError:
        raise click.UsageError(f"{escape(name)} cannot be encoded as {encoding}; use another --encoding") from None
    target = None if output == "-" else Path(output) if output else default_target(name)
    server = RemoteServer(address, authority, insecure)
    server.check()
    conclude(
        _get_into(server=server, name=name, asked=asked, path=target, force=force, timeout=timeout, encoding=encoding)
    )


def _get_urls(
    urls: Sequence[str],
    context: Callable[[], ssl.SSLContext],
    *,
    output: str | None,
    force: bool,
    sha256: str | None,
    fetch: Callable[..., Fetcher],
    jobs: int,
) -> None:
    """Download URLs. Raises `click.UsageError`, `ClientError`, or `click.exceptions.Exit` with status 3."""
    if wrong := next((url for url in urls if not is_url(url)), None):
        raise click.UsageError(f"{escape(wrong, 4096)} is not a URL; give URLs alone")
    if len(urls) > 1 and (output is not None or sha256 is not None):
        raise click.UsageError("-o and --sha256 are for one URL")
    if sha256 is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", sha256):
        raise click.UsageError("--sha256 needs 64 hexadecimal digits")
    try:
        paths = [Path(output if output is not None else file_name(url)) for url in urls]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if len(set(paths)) < len(paths):
        raise click.UsageError("two URLs name the same file; download them separately, with -o")
    if output != "-":
        for path in paths:
            check_target(path, force)
    fetcher = fetch(make_opener(context()))
    on_terminal = sys.stderr.isatty()
    if output == "-":
        sink = OutputSink(open_output())
        with _bars(on_terminal and not sink.terminal.on_screen) as bar:
            failures = fetch_all([lambda: fetcher.fetch(RemoteFile(urls[0], sha256), sink, bar("-"))], 1)
    else:
        with _bars(on_terminal) as bar:

            def job(url: str, path: Path) -> None:
                with WholeFile(path, force) if is_tftp(url) else PartFile(path, url, force) as sink:
                    fetcher.fetch(RemoteFile(url, sha256), sink, bar(path.name))

            failures = fetch_all([partial(job, url, path) for url, path in zip(urls, paths, strict=True)], jobs)
    for failure in failures:
        click.echo(f"netsvc: {failure}", err=True)
    if failures:
        raise click.exceptions.Exit(3 if all(isinstance(each, ChecksumError) for each in failures) else 1)


class OutputSink:
    """Standard output, for `Fetcher`. It can be resumed as long as it is open, but not start over."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.position = 0
        self.validator: str | None = None
        self.size: int | None = None
        self._target = OutputTarget(terminal, "utf-8")
        self._digest = hashlib.sha256()

    def start_over(self, url: str, validator: str | None, size: int | None) -> None:
        """See `Sink`."""
        if self.position:
            raise ClientError(f"{escape(url, 4096)}: cut off, and the server cannot resume it; use a file")
        self.validator, self.size = validator, size

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        self._target.write(data)
        self._digest.update(data)
        self.position += len(data)

    def sha256(self) -> str:
        """See `Sink`."""
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Do nothing: it has been written."""

    def keep(self) -> None:
        """See `Sink`."""
        self._target.keep()


@contextmanager
def _bars(shown: bool) -> Iterator[Callable[[str], Callable[[int, int | None], object]]]:
    """Yield a function that makes a bar for a name, if `shown`, and returns what moves it."""
    if not shown:
        yield lambda _name: lambda _position, _size: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    # A name is text, not rich's markup.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    more = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, *more, console=console, redirect_stdout=False, redirect_stderr=False) as progress:

        def bar(name: str) -> Callable[[int, int | None], object]:
            task = progress.add_task(escape(name, 40), total=None)
            return lambda position, size: progress.update(task, completed=position, total=size)

        yield bar


def default_target(name: str) -> Path:
    """Return the last part of a name, as a file of the current directory. Raises `click.UsageError`."""
    last = PurePosixPath(name).name
    if last in ("", ".", ".."):
        raise click.UsageError(f"{escape(name)} is not the name of a file; name one with -o FILE")
    return Path(last)


async def _get_into(
    *, server: RemoteServer, name: str, asked: bytes, path: Path | None, force: bool, timeout: float, encoding: str
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
    """Yield a function that counts received bytes; if `shown`, they and their rate are shown on stderr."""
    if not shown:
        yield lambda _size: None
        return
    from rich.console import Console
    from rich.progress import FileSizeColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    # The size of the file is not known, so there is no bar. The name is text, not rich's markup.
    columns = (
        TextColumn("{task.description}", markup=False),
        FileSizeColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(escape(name, 40), total=None)
        yield lambda size: progress.advance(task, size)


async def get(
    server: RemoteServer, name: str, asked: bytes, target: Target, *, timeout: float, count: Callable[[int], object]
) -> None:
    """Send the request `asked` and write the answer to `target`; call `count` with the size of each part.

    Raises `ClientError` if the answer is empty, the connection breaks, or nothing arrives for `timeout` seconds.
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
        raise ClientError(f"{address}: nothing arrived for {timeout:g} s; wait longer with --timeout") from None


def _named(path: Path) -> str:
    return escape(str(path), 4096)


def check_target(path: Path, force: bool) -> None:
    """Raise `ClientError` if `path` cannot be written: it exists, or its directory does not."""
    if not path.parent.is_dir():
        raise ClientError(f"{_named(path.parent)}: no such directory")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClientError(f"{_named(path)}: {reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise ClientError(f"{_named(path)} is a directory; name the file with -o")
    if not force:
        raise _exists(path)
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        # A rename would replace /dev/null itself by the download.
        raise ClientError(f"{_named(path)} is not a regular file and is not replaced; use -o - and a redirection")


def _exists(path: Path) -> ClientError:
    return ClientError(f"{_named(path)} already exists; use another -o FILE, or --force to replace it")


class Target(Protocol):
    """Where a download is written. It counts only after `keep`."""

    def write(self, data: bytes) -> None:
        """Append. Raises `ClientError`."""

    def keep(self) -> None:
        """Finish a complete download. Raises `ClientError`."""


class OutputTarget:
    """Standard output. On a terminal, control characters are written as escapes."""

    def __init__(self, terminal: Terminal, encoding: str) -> None:
        self._terminal = terminal
        self._safe = SafeText(encoding) if terminal.on_screen else None

    def __enter__(self) -> OutputTarget:
        return self

    def __exit__(self, *failure: object) -> None:
        self._terminal.end_line()

    def write(self, data: bytes, final: bool = False) -> None:
        """Write through. Raises `ClientError` or `OutputClosedError`."""
        if self._safe is not None:
            data = self._safe.feed(data, final).encode(self._terminal.encoding, "backslashreplace")
        self._terminal.write(data)

    def keep(self) -> None:
        """Write the rest."""
        self.write(b"", final=True)


class FileTarget:
    """A file that gets its name when `keep` is called: see `netsvc.base.files.AtomicFile`.

    A context manager. An existing file is replaced only with `force`. Every method raises `ClientError`.
    """

    def __init__(self, path: Path, force: bool, link: Callable[..., None] = os.link) -> None:
        self._file = AtomicFile(path)
        self._force = force
        self._link = link

    def __enter__(self) -> FileTarget:
        with self._reported():
            self._file.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.__exit__(*failure)

    def write(self, data: bytes) -> None:
        """Append to the file."""
        with self._reported():
            self._file.write(data)

    def keep(self) -> None:
        """Sync the file and give it its name."""
        with self._reported():
            self._file.commit(self._force, self._link)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise _exists(self._file.path) from None
        except OSError as error:
            raise ClientError(f"cannot write {_named(self._file.path)}: {reason(error)}") from None


class WholeFile(FileTarget):
    """A `FileTarget` for `Fetcher`, where a download cannot be resumed: without `keep` nothing is left of it."""

    def __init__(self, path: Path, force: bool) -> None:
        super().__init__(path, force)
        self.position = 0
        self.validator: str | None = None
        self.size: int | None = None
        self._digest = hashlib.sha256()

    def __enter__(self) -> WholeFile:
        super().__enter__()
        return self

    def start_over(self, url: str, validator: str | None, size: int | None) -> None:
        """See `Sink`."""
        with self._reported():
            self._file.start_over()
        self.position, self.size, self._digest = 0, size, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        super().write(data)
        self._digest.update(data)
        self.position += len(data)

    def sha256(self) -> str:
        """See `Sink`."""
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Do nothing: it has no name."""
