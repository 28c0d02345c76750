"""`netsvc init` and `netsvc schema`: help for writing a configuration file."""

from __future__ import annotations

import click

from netsvc.base.errors import StartError
from netsvc.base.text import escape

__all__ = ["init", "schema"]


@click.command()
@click.argument("file", default="netsvc.toml", metavar="[FILE]")
def init(file: str) -> None:
    """Write an example configuration file.

    FILE is netsvc.toml if it is not given, - is standard output. The example has every key, most of them as comments
    with their defaults. An existing file is not changed.

    \b
    Examples:
      netsvc init
      netsvc init /etc/netsvc.toml
      netsvc init - | less
    """
    from netsvc.config.discovery import discover
    from netsvc.config.example import example

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
            reason = "already exists and is not changed"
        raise StartError(f"{escape(file)}: {reason}; name another file, or - for standard output") from None
    click.echo(f"wrote {escape(file)}; edit it, then run: netsvc check --config {escape(file)}")


@click.command()
def schema() -> None:
    """Write the JSON Schema of the configuration file.

    It includes the services that are installed. Editors use it to complete and check TOML; most find it by the first
    line of the configuration file, `#:schema netsvc.schema.json`.

    \b
    Example:
      netsvc schema > netsvc.schema.json
    """
    from netsvc.config.discovery import discover
    from netsvc.config.schema import write_schema

    click.echo(write_schema(discover()), nl=False)
