"""Writes the manual page `docs/netsvc.1` from the help of the commands: `python -m tests.docs.manual`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest.mock import patch

import click

from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.cli.run import RUN_OPTIONS
from netsvc.config.discovery import discover
from netsvc.config.example import OWN_SERVICES
from netsvc.config.help import help_page
from tests.builders.processes import ROOT

MANUAL = ROOT / "docs" / "netsvc.1"
_WIDTH = 78


def manual() -> str:
    """Write the page, in the language of man(7)."""
    with patch.dict(os.environ, {"COLUMNS": str(_WIDTH)}):
        return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    catalogue = discover()
    # Whatever else is installed.
    catalogue.services = {name: catalogue.services[name] for name in OWN_SERVICES}
    yield '.\\" Written by python -m tests.docs.manual from the help of the commands.'
    yield '.TH NETSVC 1 "" "" "User Commands"'
    yield from (".SH NAME", "netsvc \\- run TCP and UDP services, control them, and talk to them")
    yield from (".SH SYNOPSIS", "\\fBnetsvc\\fR \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...")
    yield from _section("EXAMPLES", (main.help or "").partition("Examples:\n")[2].partition("\n\n")[0])
    yield ".SH COMMANDS"
    with click.Context(main, info_name="netsvc", terminal_width=_WIDTH, **main.context_settings) as above:
        for name in SUBCOMMANDS:
            if name not in ("run", "check"):
                command = main.get_command(above, name)
                assert command is not None
                # click keeps it, with the names of the first use: a test may have used the command alone.
                command._help_option = None
                with click.Context(command, above, name, terminal_width=_WIDTH) as context:
                    yield from _section(f"netsvc {name}", command.get_help(context), ".SS")
    yield from _section("RUN AND CHECK", help_page(catalogue, "all", command="netsvc run", more=RUN_OPTIONS))
    yield from (".SH SEE ALSO", "\\fBtwistd\\fR(1), whose plugin \\fBnetsvc\\fR has the options of \\fBnetsvc run\\fR")


def _section(title: str, text: str, macro: str = ".SH") -> Iterator[str]:
    """Yield a section with preformatted text."""
    yield f"{macro} {title.upper() if macro == '.SH' else title}"
    yield ".nf"
    for line in text.strip("\n").splitlines():
        escaped = line.rstrip().replace("\\", "\\e").replace("-", "\\-")
        yield f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
    yield ".fi"


if __name__ == "__main__":
    MANUAL.write_text(manual(), "utf-8")
