"""`netsvc upgrade`: has the program that is installed now take over from a running process."""

from __future__ import annotations

import click

from netsvc.client.asking import Process, ask, show, which_process

__all__ = ["command"]


@click.command(name="upgrade", context_settings={"help_option_names": ["-h", "--help"]})
@which_process
def command(process: Process) -> None:
    """Have the program that is installed now take over from the running process.

    It is started as that process was, and gets its ports; no connection is refused. When it serves, the old process
    ends as soon as its conversations have, as it does when it is stopped. Says which process serves then; or, with exit
    status 1, why the old one still does.
    """
    show(ask(process, "upgrade"))
