"""`netsvc reload`: has a running process read its configuration file again."""

from __future__ import annotations

import click

from netsvc.client.asking import Process, ask, show, which_process

__all__ = ["command"]


@click.command(name="reload", context_settings={"help_option_names": ["-h", "--help"]})
@which_process
def command(process: Process) -> None:
    """Have the running process read its configuration file again.

    What is unchanged keeps its port and its connections. Says what changed; or, with exit status 1, why nothing did.
    """
    show(ask(process, "reload"))
