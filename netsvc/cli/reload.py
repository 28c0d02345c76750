"""`netsvc reload` and `netsvc upgrade`: a running process changes its configuration, or its program."""

from __future__ import annotations

import click

from netsvc.cli.processes import CommandTarget, ask, show_answer, which_process

__all__ = ["reload", "upgrade"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@which_process(acts=True)
def reload(target: CommandTarget) -> None:
    """Reload the configuration of a running process.

    Listeners and services that did not change keep their ports and their connections. Prints what changed, and
    which services begin with a new, empty core. If the file has errors, or a change is not possible, nothing changes:
    the reasons are printed, and the exit status is 1.

    \b
    Examples:
      netsvc reload                          the process that runs with ./netsvc.toml
      netsvc reload --config /etc/netsvc.toml
      netsvc check && netsvc reload          check the file first
    """
    raise click.exceptions.Exit(show_answer(ask(target, "reload")))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@which_process(acts=True)
def upgrade(target: CommandTarget) -> None:
    """Replace a running process by the installed version.

    A new process is started with the same arguments and gets the open ports; no connection is refused. The old process
    ends when its connections have ended, as in a drain. Prints which process serves now. If the new one does not
    start, the old one continues, and the exit status is 1.

    \b
    Example:
      pip install --upgrade netsvc && netsvc upgrade
    """
    raise click.exceptions.Exit(show_answer(ask(target, "upgrade")))
