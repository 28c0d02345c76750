"""A place on sys.path where a test installs distributions, modules and plugin files."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import twisted.plugins

SERVICE = """
from twisted.internet.protocol import Protocol
from netsvc.service import Service
service = Service({name!r}, "Found by a test", streams={{"tcp": Protocol}})
"""


class Place:
    """A directory on sys.path, where distributions and plugin files can be put."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return file

    def module(self, name: str, service: str) -> Path:
        return self.write(f"{name}.py", SERVICE.format(name=service))

    def distribution(self, name: str, entry_points: str, version: str = "1.0") -> Path:
        directory = f"{name.replace('-', '_')}-{version}.dist-info"
        self.write(f"{directory}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return self.write(f"{directory}/entry_points.txt", f"[netsvc.services]\n{entry_points}\n")

    def plugin_file(self, name: str, text: str) -> Path:
        return self.write(f"twisted/plugins/{name}.py", "from netsvc.service import ServicePlugin\n" + text)


def new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Put a fresh directory on sys.path for one test; afterwards, forget what was imported from it."""
    path = tmp_path / "site"
    (path / "twisted/plugins").mkdir(parents=True)
    loaded = set(sys.modules)
    monkeypatch.syspath_prepend(path)
    # Twisted made this list from sys.path when it was imported.
    monkeypatch.setattr(twisted.plugins, "__path__", [*twisted.plugins.__path__, str(path / "twisted/plugins")])
    yield Place(path)
    for name in set(sys.modules) - loaded:
        if str(path) in str(getattr(sys.modules[name], "__file__", None)):
            forget(name)


def forget(name: str) -> None:
    """Take a module out of memory, so that it is imported anew."""
    del sys.modules[name]
    if name.startswith("twisted.plugins."):
        delattr(twisted.plugins, name.rpartition(".")[2])
