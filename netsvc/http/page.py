"""The files of a page that belongs to the program: read once, and sent as they are."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

#: Content types by the suffix of a name.
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """The content type and the body of a file of a page, and a strong validator for it (RFC 9110, section 8.8.3)."""

    kind: str
    body: bytes
    etag: str


def read_page(package: str) -> Mapping[str, PageFile]:
    """Read the files of the directory `page` of a package, by their paths; `/` is `index.html`.

    Once: a process that has changed its root directory or its user could not read them later.
    """
    page: dict[str, PageFile] = {}
    for file in files(package).joinpath("page").iterdir():
        suffix = f".{file.name.rpartition('.')[2]}"
        if suffix in _KINDS:
            body = file.read_bytes()
            path = "/" if file.name == "index.html" else f"/{file.name}"
            page[path] = PageFile(_KINDS[suffix], body, f'"{sha256(body).hexdigest()[:16]}"')
    return page
