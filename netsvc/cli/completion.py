"""What a shell completes after `netsvc run` and `netsvc check`. Read from sources and metadata: Twisted takes too long.

The names are the first arguments of calls: `Setting("drain", …)`, `ServicePlugin("chat", …)`; and what a service's
files have in `optParameters`, `optFlags`, `streams` and `datagrams`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

_HERE = Path(__file__).parents[1]
_SETTINGS = (_HERE / "config" / "settings.py", _HERE / "config" / "arguments.py")
#: Python files that are read of each directory, and bytes of each.
_MOST_FILES, _LARGEST = 50, 256 * 1024


class Arguments(click.Command):
    """Stands for `run` or `check` while a shell completes its arguments, which the twistd plugin has too."""

    def __init__(self, name: str) -> None:
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=complete_value)
        super().__init__(name, params=[words], context_settings={"ignore_unknown_options": True}, add_help_option=False)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the options."""
        names = [f"--{name}" for name in option_names(incomplete)]
        return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


def complete_value(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a file, and for the first argument of `check` a service."""
    items = [CompletionItem(incomplete, type="file")]
    if ctx.info_name == "check" and not ctx.params.get("words"):
        items += [CompletionItem(name) for name in services() if name.startswith(incomplete)]
    return items


def option_names(incomplete: str = "--") -> Iterator[str]:
    """Yield the names of options: the options of a service only if `incomplete` begins with its name."""
    yield from ("tcp", "udp", "reload-on-change", "reactor")  # Short forms, and what only `run` has.
    for file in _SETTINGS:
        yield from _first_arguments(_parse(file), "Setting")
    for name, target in services().items():
        yield name
        if incomplete.startswith(f"--{name}-"):
            yield from (f"{name}-{option}" for option in (*_options_of(target), "limit", "drain"))


def services() -> dict[str, str]:
    """Return the services by name, with their targets, `package.module:attribute`."""
    found: dict[str, str] = {}
    for directory in dict.fromkeys(sys.path):
        for file in _python_files(Path(directory, "twisted", "plugins")):
            for call in _calls(_parse(file), "ServicePlugin"):
                with suppress(IndexError, ValueError):
                    name, target = (ast.literal_eval(argument) for argument in call.args[:2])
                    found.setdefault(str(name), str(target))
    for point in entry_points(group="netsvc.services"):
        found.setdefault(point.name, point.value)
    return found


def _options_of(target: str) -> Iterator[str]:
    """Yield the options and protocols in the file of a module, or in the files of a package."""
    path = target.partition(":")[0].replace(".", "/")
    for directory in sys.path:
        for file in (*_python_files(Path(directory, path)), Path(directory, f"{path}.py")):
            if file.is_file():
                yield from _declared(_parse(file))


def _declared(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if getattr(target, "id", "") in ("optParameters", "optFlags"):
            entries = node.value.elts if isinstance(node.value, ast.List) else []
            yield from (name for each in entries if isinstance(each, ast.List) for name in _texts(each.elts[:1]))
    for call in _calls(tree, "Service"):
        for keyword in call.keywords:
            if keyword.arg in ("streams", "datagrams") and isinstance(keyword.value, ast.Dict):
                yield from _texts(keyword.value.keys)


def _texts(nodes: Any) -> Iterator[str]:
    return (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _first_arguments(tree: ast.AST, function: str) -> Iterator[str]:
    return (name for call in _calls(tree, function) for name in _texts(call.args[:1]))


def _calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function:
            yield node


def _parse(file: Path) -> ast.AST:
    with suppress(OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        if file.stat().st_size <= _LARGEST:
            return ast.parse(file.read_bytes())
    return ast.Module([], [])


def _python_files(directory: Path) -> list[Path]:
    with suppress(OSError, ValueError):
        return sorted(directory.glob("*.py"))[:_MOST_FILES]
    return []
