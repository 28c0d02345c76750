"""The `netsvc` command. A subcommand is imported only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

import click

from netsvc import __version__
from netsvc.base.text import escape

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["SUBCOMMANDS", "main"]

#: By name, in the order of --help: the module and attribute of the command, and its line in the list.
SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("netsvc.cli.run:run", "Run services in the foreground."),
    "check": ("netsvc.cli.run:check", "Check arguments or a configuration file, and print what would run."),
    "new": ("netsvc.cli.new:new", "Write the directory of a new service."),
    "init": ("netsvc.cli.init:init", "Write an example configuration file."),
    "schema": ("netsvc.cli.init:schema", "Write the JSON Schema of the configuration file."),
    "reload": ("netsvc.cli.reload:reload", "Reload the configuration of a running process."),
    "upgrade": ("netsvc.cli.reload:upgrade", "Replace a running process by the installed version."),
    "status": ("netsvc.cli.status:command", "Show the state of a running process."),
    "drain": ("netsvc.cli.drain:command", "Drain and stop a running process."),
    "list": ("netsvc.cli.run:list_services", "List the installed services."),
    "talk": ("netsvc.cli.talk:command", "Send lines to a server and print its answers."),
    "share": ("netsvc.cli.share:command", "Share files and directories over HTTP until Ctrl-C."),
    "passwd": ("netsvc.cli.passwd:command", "Write a line with the name of a user and the hash of a password."),
    "get": ("netsvc.cli.get:command", "Download files, over HTTP or TFTP, or from a files service."),
    "chat": ("netsvc.cli.chat:command", "Join a chat server."),
}


class _Subcommands(click.Group):
    """A group that imports its commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        if ctx.resilient_parsing and cmd_name in ("run", "check"):
            # A shell completes words: Twisted, which these import, takes too long.
            from netsvc.cli.completion import Arguments

            return Arguments(cmd_name)
        module, _, attribute = SUBCOMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(import_module(module), attribute))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command without importing any."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=line) for name, (_, line) in SUBCOMMANDS.items()]
        options = click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-") else []
        return [*(each for each in names if each.value.startswith(incomplete)), *options]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in SUBCOMMANDS:
            from difflib import get_close_matches

            close = get_close_matches(word, SUBCOMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else "netsvc --help lists the commands."
            ctx.fail(f"unknown command {escape(word)}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in SUBCOMMANDS.items()])


@click.group(cls=_Subcommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="netsvc %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run TCP and UDP services, control them, and talk to them.

    \b
    Examples:
      netsvc run --tcp 9001 --udp 9001       serve echo over TCP and UDP
      netsvc status                          watch it, in another terminal
      netsvc talk 9001                       talk to it, line by line

    netsvc COMMAND --help explains a command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
