"""The `netsvc` command. It imports a subcommand when that is used, and not before."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import cast

import click

from netsvc import __version__
from netsvc.text import escape

__all__ = ["SUBCOMMANDS", "main"]

#: Name, in the order of --help: where the command is, and its line in the list.
SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("netsvc.client.serving:run", "Run services in this terminal, as twistd does."),
    "check": ("netsvc.client.serving:check", "Show what `run` would do with the same arguments."),
    "init": ("netsvc.client.starting:init", "Write an example configuration file."),
    "schema": ("netsvc.client.starting:schema", "Write the JSON Schema of the configuration file."),
    "reload": ("netsvc.client.reload:command", "Have the running process read its configuration file again."),
    "upgrade": ("netsvc.client.upgrade:command", "Have the program that is installed now take over."),
    "status": ("netsvc.client.status:command", "Show what a running netsvc does, live."),
    "drain": ("netsvc.client.drain:command", "Have the running process end, and say who held it up."),
    "list": ("netsvc.client.serving:list_services", "List the services that are installed."),
    "talk": ("netsvc.client.talk:command", "Send lines to a server and show what it sends."),
    "get": ("netsvc.client.get:command", "Get the file NAME from a files service."),
    "chat": ("netsvc.client.chat:command", "Chat: lines to a chat server, and what the others say."),
}


class _Subcommands(click.Group):
    """A group whose commands are named by string."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, attribute = SUBCOMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in SUBCOMMANDS:
            close = get_close_matches(word, SUBCOMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else "netsvc --help lists them."
            ctx.fail(f"There is no command {escape(word)}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in SUBCOMMANDS.items()])


@click.group(cls=_Subcommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="netsvc %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run TCP and UDP services, and talk to them.

    \b
    Examples:
      netsvc run --tcp 9001 --udp 9001       serve echo over TCP and UDP
      netsvc talk 9001                       talk to it, line by line
      netsvc get 9003 notes.txt              get a file from a files service
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
