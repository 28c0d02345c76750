"""`netsvc share`: gives files and directories away over HTTP, until Ctrl-C."""

from __future__ import annotations

import secrets
import select
import socket
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

import click

from netsvc.base.errors import UserError
from netsvc.base.text import escape, host_port
from netsvc.base.values import Range, seconds
from netsvc.cli.errors import ClientError, exits

__all__ = ["Downloads", "command", "lan_address", "print_address", "serve"]

#: Seconds in which downloads may end after Ctrl-C or `--for`, and after the one of `--once`.
GRACE, GRACE_AFTER_ONE = 4.0, 60.0
#: Seconds between two looks at the downloads that are shown.
LOOK = 0.2
#: From RFC 5737 and RFC 3849: no machine has them. Nothing is sent there: the question is which address would be ours.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class _Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5 on
    name = "duration"
    _parse: Range = seconds(1, 30 * 86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(self._parse(value))
        except ValueError:
            self.fail(f"{escape(str(value))} is not a time such as 90, 10m, 2h or 1d", param, ctx)


@click.command(name="share")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--local", is_flag=True, help="Listen on 127.0.0.1 only, for this machine.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="Listen on this port. Default: a free one.",
)
@click.option(
    "--public", is_flag=True, help="Share at /, not at a random path: anyone who finds the port sees everything."
)
@click.option("--hidden", is_flag=True, help="Share files whose names begin with a dot as well.")
@click.option("--once", is_flag=True, help="End after one complete download.")
@click.option("--for", "lasting", type=_Duration(), metavar="TIME", help="End after this time: 90 (s), 10m, 2h, 1d.")
@click.option("--no-qr", is_flag=True, help="Show no QR code.")
def command(
    *,
    paths: Sequence[str],
    local: bool,
    port: int,
    public: bool,
    hidden: bool,
    once: bool,
    lasting: float | None,
    no_qr: bool,
) -> None:
    """Share files and directories over HTTP until Ctrl-C.

    Prints the URL, and on a terminal a QR code of it. A browser, curl or `netsvc get` downloads from there. The URL has
    a random path, without which nothing is found. It is not encrypted: anyone who can read the network traffic can
    read the URL and the files.

    It listens on all addresses of this machine; --local restricts it to this machine. Only the given files and
    directories are served. In a directory, symbolic links that lead out of it and hidden files are not. Several paths
    are listed in one directory, by their last parts, which must be different. A directory can be downloaded as a zip
    or tar archive, too.

    \b
    Examples:
      netsvc share photos
      netsvc share --once --for 10m report.pdf
      netsvc share --local --port 8000 --public site
    """
    with exits():
        token = "" if public else secrets.token_urlsafe(12)
        show_qr = not no_qr and sys.stdout.isatty()

        def announce(number: int, start: str) -> None:
            host = "127.0.0.1" if local else lan_address()
            print_address(f"http://{host_port(host, number)}{start}", show_qr=show_qr)
            ends = ["Ctrl-C", *["one download"] * once, *([] if lasting is None else [f"{lasting:g} s have passed"])]
            click.echo(f"netsvc: sharing until {' or '.join(ends)}", err=True)

        address = f"127.0.0.1:{port}" if local else str(port)
        downloads = Downloads(on_terminal=sys.stderr.isatty())
        serve(paths, address, token, hidden=hidden, once=once, lasting=lasting, announce=announce, downloads=downloads)


def lan_address(connect: Callable[[int, str], str] | None = None) -> str:
    """Return the address of this machine in its network; the loopback address if it has none."""
    for family, elsewhere in _ELSEWHERE:
        try:
            return (connect or _own_address)(family, elsewhere)
        except OSError:
            continue
    return "127.0.0.1"


def _own_address(family: int, elsewhere: str) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Chooses the route and our address; sends nothing.
        probe.connect((elsewhere, 9))
        return str(probe.getsockname()[0])


def print_address(url: str, *, show_qr: bool) -> None:
    """Print a URL, and its QR code."""
    click.echo(url)
    if show_qr and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8":
        import segno

        # Half blocks, so that it is square.
        segno.make(url, error="l", micro=False).terminal(out=sys.stdout, border=2, compact=True)
    sys.stdout.flush()


class TransferView(Protocol):
    """A file that is being sent; see `netsvc.services.files.share.SharedTransfer`."""

    peer: str
    name: str
    size: int

    @property
    def sent(self) -> int:
        """The position in the file, in bytes."""


class Downloads:
    """Shows downloads on stderr: each as a line at its end, and on a terminal a bar until then."""

    def __init__(self, *, on_terminal: bool, completed: Callable[[], object] = lambda: None) -> None:
        #: Called for each complete download.
        self.completed = completed
        #: Complete downloads, and the bytes of all.
        self.count = self.size = 0
        self._progress: Any = None
        self._tasks: dict[TransferView, Any] = {}
        if on_terminal:
            self._progress = _bars()

    def began(self, transfer: TransferView) -> None:
        """Show a transfer."""
        if self._progress is not None:
            if not self._tasks:
                self._progress.start()
            label = f"{transfer.peer} {transfer.name}"
            self._tasks[transfer] = self._progress.add_task(label, total=transfer.size, completed=transfer.sent)

    def ended(self, transfer: TransferView) -> None:
        """Remove a transfer."""
        if (task := self._tasks.pop(transfer, None)) is not None:
            self._progress.remove_task(task)
            if not self._tasks:
                self._progress.stop()

    def look(self) -> None:
        """Show how far the transfers are."""
        for transfer, task in self._tasks.items():
            self._progress.update(task, completed=transfer.sent)
        if self._tasks:
            self._progress.refresh()

    def answered(self, sent: Any) -> None:
        """Write the line of an answer that has ended."""
        self.size += sent.size
        if self._tasks:
            self._progress.console.out(sent.line, highlight=False)
        else:
            click.echo(sent.line, err=True)
        if sent.complete:
            self.count += 1
            self.completed()

    def close(self) -> None:
        """Remove the bars, and write a line about all downloads."""
        if self._tasks:
            self._progress.stop()
        plural = "" if self.count == 1 else "s"
        click.echo(f"netsvc: stopped after {self.count} download{plural}, {self.size} bytes", err=True)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    # A name is text, not rich's markup.
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # Without a thread of its own, and without what it would leave on the screen.
    return Progress(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def serve(
    paths: Sequence[str],
    address: str,
    token: str,
    *,
    hidden: bool,
    once: bool,
    lasting: float | None,
    announce: Callable[[int, str], object],
    downloads: Downloads,
) -> None:
    """Share paths at an address until a signal, or what `once` and `lasting` say.

    `announce` is called with the port, and where the share begins. Raises `ClientError`, or `StartError`.
    """
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from netsvc.reactor.epoll import install

        install()
    from twisted.internet import reactor as installed
    from twisted.internet.task import LoopingCall

    from netsvc.plan.address import parse_address
    from netsvc.plan.plan import Listener, Plan, ServiceUse
    from netsvc.server.process import stop_reactor
    from netsvc.server.server import Server

    reactor: Any = installed
    files: Any = import_module("netsvc.services.files.share")
    watch = files.ShareObserver(downloads.began, downloads.ended, downloads.answered)
    try:
        service, settings, start = files.share(paths, hidden=hidden, token=token, watch=watch)
    except UserError as error:
        raise ClientError("\n".join(error.errors)) from None
    plan = Plan(
        {"share": ServiceUse("share", settings)},
        (Listener("share", "http", parse_address(address, "stream")),),
        drain=GRACE_AFTER_ONE if once else GRACE,
    )

    def ready() -> None:
        announce(server.running_plan.listeners[0].port_number(), start)
        if lasting is not None:
            reactor.callLater(lasting, stop_reactor, reactor)

    server = Server(plan, lambda _: service, reactor, ready=ready)
    if once:
        downloads.completed = lambda: stop_reactor(reactor)
    _show_problems()
    server.privilegedStartService()
    server.startService()
    looks = LoopingCall(downloads.look)
    looks.clock = reactor
    looks.start(LOOK)
    reactor.addSystemEventTrigger("before", "shutdown", looks.stop)
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.run()
    downloads.close()


def _show_problems() -> None:
    """Write warnings and errors of the log to stderr, each as one line."""
    from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogBeginner

    from netsvc.base.text import plain

    def show(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.warn:
            click.echo(f"netsvc: {plain(formatEvent(event))}", err=True)

    globalLogBeginner.beginLoggingTo([show], redirectStandardIO=False, discardBuffer=True)  # type: ignore[list-item]
