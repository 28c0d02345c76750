"""The commands that help to write a configuration file: `netsvc init` and `schema`."""

from __future__ import annotations

import click

from netsvc.errors import StartError
from netsvc.text import escape

__all__ = ["init", "schema"]


@click.command()
@click.argument("file", default="netsvc.toml", metavar="[FILE]")
def init(file: str) -> None:
    """Write an example configuration file, netsvc.toml if FILE is not given.

    It has every key, most of them as comments with their defaults. A file that is there already stays as it is;
    - writes to the terminal.

    \b
    Examples:
      netsvc init
      netsvc init /etc/netsvc.toml
      netsvc init - | less
    """
    from netsvc.config.example import example
    from netsvc.discovery import discover

    text = example(discover())
    if file == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(file, "x", encoding="utf-8") as made:
            made.write(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):
            reason = "it is there already, and stays as it is"
        raise StartError(f"{escape(file)}: {reason}; name another file, or - for the terminal") from None
    click.echo(f"{escape(file)} is written; change it, then: netsvc check --config {escape(file)}")


@click.command()
def schema() -> None:
    """Write the JSON Schema of the configuration file, with the services that are installed here.

    Editors that know TOML complete and check with it: a file that begins with the line
    `#:schema netsvc.schema.json` names it to most of them.

    \b
    Example:
      netsvc schema > netsvc.schema.json
    """
    from netsvc.config.schema import write_schema
    from netsvc.discovery import discover

    click.echo(write_schema(discover()), nl=False)
