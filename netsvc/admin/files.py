"""The files of the page, read once: a process that has changed its root or its user could not read them later."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

__all__ = ["PageFile", "read_page"]

_KINDS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "draw.js": "text/javascript; charset=utf-8",
    "figures.js": "text/javascript; charset=utf-8",
    "rows.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """What is answered: a content type, and the bytes."""

    kind: str
    body: bytes


def read_page() -> Mapping[str, PageFile]:
    """Read all, by their paths. `/` is the page itself."""
    directory = files("netsvc.admin").joinpath("page")
    return {
        "/" if name == "index.html" else f"/{name}": PageFile(kind, directory.joinpath(name).read_bytes())
        for name, kind in _KINDS.items()
    }
