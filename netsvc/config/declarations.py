"""Says why a service that is declared in the current directory is not found: which of its declarations is missing.

A service is found by an entry point of an installed distribution, or by a file in `twisted/plugins/` on Python's path.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from difflib import get_close_matches
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from netsvc.base.files import read_file
from netsvc.base.text import escape
from netsvc.config.settings import GROUP

#: Files that are looked at, and their size in bytes.
_MOST_FILES, _LARGEST = 50, 256 * 1024

_INSTALL = "pip install -e ."


def why_missing(name: str, directory: str = ".") -> list[str]:
    """Return a line that says which declaration of service `name` is missing, with the cure; empty if unknown.

    `directory` is the project's. Nothing is imported.
    """
    here = Path(directory)
    project = _read_toml(here / "pyproject.toml").get("project", {})
    groups: dict[str, Any] = {**_groups_of_setup_cfg(here), **_dict(_dict(project).get("entry-points"))}
    called = str(_dict(project).get("name") or "")
    installed = _installed(called)
    if file := _file_that_calls(here / "twisted" / "plugins", "ServicePlugin", name):
        return [_why_no_file(name, file, called, installed, here)]
    if name in _dict(groups.get(GROUP)):
        done = "is not installed" if installed is None else f"was installed before that, as {installed.version}"
        return [f"{name} is declared by an entry point, but {called or 'the project'} {done}: {_INSTALL}"]
    for wrong in get_close_matches(GROUP, groups, 3):
        if name in _dict(groups[wrong]):
            return [f'{name} is declared in the group {escape(wrong)}: write "{GROUP}", and {_INSTALL}']
    if file := _file_that_calls(here, "Service", name):
        line = f'{name} = "{file.stem}:service"'
        return [
            f"{file} has the service {name}, but nothing declares it: write in pyproject.toml below "
            f'[project.entry-points."{GROUP}"] {line}, and {_INSTALL}'
        ]
    return []


def _why_no_file(name: str, file: Path, called: str, installed: Distribution | None, here: Path) -> str:
    hides = file.with_name("__init__.py")
    if hides.exists():
        return f"{hides} hides {file.name} from Twisted, which reads no plugins from a package; remove it"
    if installed is None:
        return f"{file} declares {name}, but {called or 'its project'} is not installed: {_INSTALL}"
    if str(here.resolve()) in map(os.path.realpath, sys.path):
        return f"{file} declares {name}, but Twisted does not read it; netsvc list shows why"
    if _is_editable(installed):
        cure = 'write dev-mode-dirs = ["."] below [tool.hatch.build] (hatchling), or package_dir with = . (setuptools)'
        return f"{file} declares {name}, but the editable install of {called} leaves it out: {cure}, and {_INSTALL}"
    cure = "add it to include (hatchling), or twisted.plugins to packages (setuptools), and install it again"
    return f"{file} declares {name}, but the installed {called} is without it: {cure}"


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_toml(file: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        return tomllib.loads(read_file(str(file), _LARGEST).decode())
    return {}


def _groups_of_setup_cfg(here: Path) -> dict[str, dict[str, str]]:
    """Return the entry points of a setup.cfg by group."""
    parser = ConfigParser(interpolation=None)
    with suppress(OSError, ValueError, ConfigError):
        parser.read_string(read_file(str(here / "setup.cfg"), _LARGEST).decode())
    groups = parser["options.entry_points"] if parser.has_section("options.entry_points") else {}
    return {
        group: {line.partition("=")[0].strip(): line for line in lines.splitlines() if "=" in line}
        for group, lines in groups.items()
    }


def _installed(called: str) -> Distribution | None:
    with suppress(PackageNotFoundError, ValueError):
        return distribution(called)
    return None


def _is_editable(installed: Distribution) -> bool:
    with suppress(ValueError):
        return bool(
            _dict(_dict(json.loads(installed.read_text("direct_url.json") or "{}")).get("dir_info")).get("editable")
        )
    return False


def _file_that_calls(directory: Path, function: str, name: str) -> Path | None:
    """Return the Python file of a directory that calls `function(name, …)`."""
    for file in _python_files(directory):
        with suppress(OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            for node in ast.walk(ast.parse(read_file(str(file), _LARGEST))):
                if isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
                    callee = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    if callee == function and first.value == name:
                        return file
    return None


def _python_files(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(directory.glob("*.py"))[:_MOST_FILES]
