"""`netsvc new`: writes the directory of a new service, which installs, runs and passes its tests."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from netsvc.base.errors import StartError
from netsvc.base.text import escape

__all__ = ["new", "render"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Each file of the new directory, and its template in `netsvc/cli/scaffold/`.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "netsvc.toml": "netsvc.toml",
    "$module.py": "service.py",
    "twisted/plugins/netsvc_${module}_plugin.py": "plugin.py",
    "tests/test_$module.py": "test_service.py",
    ".github/workflows/test.yml": "test.yml",
    ".gitignore": "gitignore",
}
#: A line `%% WORD…` begins a part of a template for services that all WORDs are said of, up to the next `%%`.
_MARK = "%%"


@click.command()
@click.argument("name")
@click.option("--stream", "kinds", flag_value="stream", help="A stream protocol only (TCP).")
@click.option("--datagram", "kinds", flag_value="datagram", help="A datagram protocol only (UDP).")
@click.option(
    "--coroutine", "form", flag_value="coroutine", default=True, help="Protocols as async functions (default)."
)
@click.option("--class", "form", flag_value="class", help="Twisted classes.")
def new(name: str, kinds: str | None, form: str) -> None:
    """Write the directory of a new service.

    NAME is also the name of the directory. It contains a service with an option, a limit and a metric, its tests, a
    configuration file and what is needed to install it. Without --stream or --datagram it speaks both.

    \b
    Examples:
      netsvc new lights
      netsvc new lights --datagram
      netsvc new lights --class
    """
    _check(name)
    words = {form, *((kinds, f"only-{kinds}") if kinds else ("stream", "datagram", "both"))}
    directory = Path(name)
    try:
        directory.mkdir()
        for path, text in render(name, words):
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    except FileExistsError:
        raise StartError(f"{name} already exists and is not changed; choose another name") from None
    except OSError as error:
        raise StartError(
            f"{escape(str(error.filename))}: {error.strerror}; use a directory that can be written"
        ) from None
    click.echo(f"wrote {name}/; its README.md begins with the commands to install, test and run it")


def _check(name: str) -> None:
    """Raise `StartError` for a name that cannot be one of a service and of a module."""
    from netsvc.config.arguments import OPTIONS, SHORTHANDS
    from netsvc.config.discovery import discover
    from netsvc.config.settings import SETTINGS

    module = _module(name)
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise StartError(f"{escape(name)}: not the name of a service; use at most 40 of a-z, 0-9 and single hyphens")
    if name in {*OPTIONS, *SHORTHANDS, *SETTINGS, "help", "version"}:
        raise StartError(f"{name} is the name of an option of netsvc; choose another name")
    if name in discover().services:
        raise StartError(f"{name} is the name of an installed service; choose another name")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in {"netsvc", "twisted", "tests"}:
        raise StartError(f"{name} would be the Python module {module}, which exists already; choose another name")


def _module(name: str) -> str:
    return name.replace("-", "_")


def render(name: str, words: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file.

    `words` choose parts of the templates: `stream`, `datagram`, `both`, `only-stream`, `only-datagram`; `coroutine`,
    `class`.
    """
    values = {"name": name, "module": _module(name)}
    for path, template in _FILES.items():
        text = files("netsvc.cli").joinpath("scaffold", f"{template}.txt").read_text("utf-8")
        yield Template(path).substitute(values), Template(_select(text, words)).substitute(values)


def _select(text: str, words: set[str]) -> str:
    """Return the lines of a template that these words choose."""
    kept, wanted = [], set[str]()
    for line in text.splitlines(keepends=True):
        if line.startswith(_MARK):
            wanted = set(line.removeprefix(_MARK).split())
        elif wanted <= words:
            kept.append(line)
    return "".join(kept)
