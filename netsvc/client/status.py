"""`netsvc status`: shows what a running netsvc does, live in a terminal, or once."""

from __future__ import annotations

import asyncio
import json
import locale
import os
import shutil
import sys

import click

from netsvc.client.asking import Process, which_process
from netsvc.status import MOST_SHOWN, ORDERS, ConnectionQuery

__all__ = ["command"]


@click.command(name="status", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object, once.")
@click.option("--once", is_flag=True, help="Write text once, as is done where the output is no terminal.")
@click.option("--sort", "order", type=click.Choice(list(ORDERS)), default="rate", help="The order of connections.")
@click.option(
    "--most",
    type=click.IntRange(0, MOST_SHOWN),
    default=100,
    show_default=True,
    metavar="N",
    help=f"With --json, how many connections it has at most; up to {MOST_SHOWN}.",
)
@which_process
def command(*, process: Process, words: tuple[str, ...], as_json: bool, once: bool, order: str, most: int) -> None:
    """Show what a running netsvc does, live.

    Services and their listeners, connections, rates, refusals, and how the process itself is. Of connections those are
    shown whose peer, service or place has every WORD. In a terminal it goes on until q is pressed; ? shows the keys.
    The JSON has `processes` (several with --workers), the `listeners` of all of them, and their `totals`; every name is
    in docs/status.md. Exit status 1 if nothing answers.

    \b
    Examples:
      netsvc status                          live
      netsvc status --once 192.0.2.          who is there from this network
      netsvc status --json | jq .totals.open
    """
    from netsvc.client.watch import take_look
    from netsvc.host.commands import query_words

    if not as_json and not once and _is_terminal():
        from netsvc.client.board import Board
        from netsvc.client.figures import ASCII_BLOCKS, BLOCKS
        from netsvc.client.running import conclude
        from netsvc.client.view import view

        board = Board(BLOCKS if "utf" in locale.getencoding().lower() else ASCII_BLOCKS)
        board.search, board.order = " ".join(words), order
        conclude(view(process, board))
    seen, _ = asyncio.run(take_look(process, query_words(ConnectionQuery(most, order, words))))
    if as_json:
        click.echo(json.dumps(seen.to_json()))
        return
    from netsvc.client.page import page

    text = page(seen, order, shutil.get_terminal_size((100, 24)).columns)
    click.echo(text.encode(locale.getencoding(), "backslashreplace"))


def _is_terminal() -> bool:
    if os.environ.get("TERM", "dumb") == "dumb":
        return False
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
