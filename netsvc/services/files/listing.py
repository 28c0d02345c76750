"""Lists a directory: its entries, sorted, searched and in pages, as HTML or JSON.

Everything here runs in a thread, as a directory can have very many entries and a slow disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import merge
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote_from_bytes, urlencode

from netsvc.services.files.root import Directory

T = TypeVar("T")

#: Entries that are sorted at once.
RUN = 2000
#: Entries of a page of HTML, and of one answer as JSON.
PAGE_SIZE, JSON_SIZE = 1000, 10_000
#: Entries of a directory that are looked at; there may be more.
MOST_ENTRIES = 1_000_000
#: Characters of a search.
LONGEST_SEARCH = 200
SORTS = ("name", "size", "time")
_MOST_PARAMETERS = 10


def _read(name: str) -> str:
    return files("netsvc.services.files").joinpath("page", name).read_text("utf-8")


_CSS, _JS = _read("listing.css"), _read("listing.js")


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


#: The page runs nothing but its own style and script, whatever the names of files are.
POLICY = (
    f"default-src 'none'; style-src {_source(_CSS)}; script-src {_source(_JS)}; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'self'"
)


class Entry(NamedTuple):
    """A file or directory: its name on the disk, its size in bytes, and the time of its change in seconds."""

    name: bytes
    is_directory: bool
    size: int
    modified: float


@dataclass(frozen=True)
class Query:
    """What is asked of a listing."""

    sort: str = "name"
    descending: bool = False
    search: str = ""
    page: int = 1
    as_json: bool = False

    def written(self, **changes: object) -> str:
        """Write a link to this listing, with some changes."""
        query = replace(self, **changes)  # type: ignore[arg-type]
        plain = Query()
        values = {
            "sort": query.sort,
            "order": "desc" if query.descending else "asc",
            "search": query.search,
            "page": str(query.page),
        }
        usual = {"sort": plain.sort, "order": "asc", "search": "", "page": "1"}
        chosen = {name: value for name, value in values.items() if value != usual[name]}
        return f"?{urlencode({**chosen, **({'json': ''} if query.as_json else {})})}"


class Source(NamedTuple):
    """What a listing is made of besides the directory.

    `path` is that of the directory, with a slash at its end, or empty. `shows` returns whether a name is listed,
    `follow` the entry that a symbolic link is, if it is served, and `text_of` a name as text. `archives` are the kinds
    of archives that the directory can be downloaded as.
    """

    path: bytes
    shows: Callable[[bytes], bool]
    follow: Callable[[bytes], Entry | None]
    text_of: Callable[[bytes], str]
    archives: Sequence[str] = ()


class _Page(NamedTuple):
    entries: Sequence[Entry]
    #: Of all pages, and whether these are all entries of the directory.
    total: int
    pages: int
    is_complete: bool


def parse_query(text: bytes) -> Query:
    """Parse the query of a request. Raises `ValueError` with one line."""
    try:
        given = parse_qs(text.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise ValueError("too many parameters") from None
    values = {name: each[-1] for name, each in given.items()}
    sort, order, page = values.get("sort", "name"), values.get("order", "asc"), values.get("page", "1")
    search = values.get("search", "").strip()
    if sort not in SORTS:
        raise ValueError(f"sort must be one of {', '.join(SORTS)}")
    if order not in ("asc", "desc"):
        raise ValueError("order must be asc or desc")
    if not (page.isascii() and page.isdecimal() and 0 < int(page[:7]) <= MOST_ENTRIES and len(page) < 8):
        raise ValueError(f"page must be a number from 1 to {MOST_ENTRIES}")
    if len(search) > LONGEST_SEARCH:
        raise ValueError(f"search must have at most {LONGEST_SEARCH} characters")
    return Query(sort, order == "desc", search, int(page), "json" in values)


def make_listing(directory: Directory, query: Query, source: Source) -> bytes:
    """List a directory, and close it; return HTML or JSON. Raises `OSError`."""
    size = JSON_SIZE if query.as_json else PAGE_SIZE
    shown = slice((query.page - 1) * size, query.page * size)
    text_of = source.text_of
    try:
        found, is_complete = _scan(directory, query, source)
        if query.sort == "name":
            found = _sorted(
                found, lambda each: (not each[1], text_of(each[0]).casefold(), each[0]), reverse=query.descending
            )
            total = len(found)
            entries = _looked_at(directory, found[shown], source.follow)
        else:
            entries = _looked_at(directory, found, source.follow)
            entries = _sorted(
                entries, (lambda each: each.size) if query.sort == "size" else (lambda each: each.modified)
            )
            if query.descending:
                entries.reverse()
            total = len(entries)
            entries = entries[shown]
    finally:
        directory.close()
    page = _Page(entries, total, max(1, -(-total // size)), is_complete)
    return (_json if query.as_json else _html)(page, query, source)


def _sorted(values: list[T], key: Callable[[T], Any], *, reverse: bool = False) -> list[T]:
    """Sort a long list. One call of `sort` would keep the interpreter, and so every client, for a third of a second."""
    runs = [sorted(values[place : place + RUN], key=key, reverse=reverse) for place in range(0, len(values), RUN)]
    return list(merge(*runs, key=key, reverse=reverse))


def _scan(directory: Directory, query: Query, source: Source) -> tuple[list[tuple[bytes, bool]], bool]:
    """Return the names that are listed, with whether they are directories, and whether these are all."""
    wanted = query.search.casefold()
    found: list[tuple[bytes, bool]] = []
    for number, (name, is_directory) in enumerate(directory.entries()):
        if number == MOST_ENTRIES:
            return found, False
        if source.shows(name) and (not wanted or wanted in source.text_of(name).casefold()):
            found.append((name, is_directory))
    return found, True


def _looked_at(
    directory: Directory, names: Sequence[tuple[bytes, bool]], follow: Callable[[bytes], Entry | None]
) -> list[Entry]:
    """Look at entries; drop what is neither a file nor a directory, and what has gone meanwhile."""
    entries = []
    for name, _ in names:
        try:
            status = directory.status_of(name)
        except OSError:
            continue
        if stat.S_ISLNK(status.st_mode):
            if (target := follow(name)) is not None:
                entries.append(target)
        elif stat.S_ISDIR(status.st_mode):
            entries.append(Entry(name, True, 0, status.st_mtime))
        elif stat.S_ISREG(status.st_mode):
            entries.append(Entry(name, False, status.st_size, status.st_mtime))
    return entries


def _json(page: _Page, query: Query, source: Source) -> bytes:
    text_of = source.text_of
    listing = {
        "path": "/" + text_of(source.path),
        "total": page.total,
        "page": query.page,
        "pages": page.pages,
        "complete": page.is_complete,
        "archives": {kind: f"?{kind}" for kind in source.archives},
        "entries": [
            {
                "name": text_of(each.name),
                "url": quote_from_bytes(each.name) + "/" * each.is_directory,
                "type": "directory" if each.is_directory else "file",
                **({} if each.is_directory else {"size": each.size}),
                "modified": _utc(each.modified).isoformat(timespec="seconds").replace("+00:00", "Z"),
            }
            for each in page.entries
        ],
    }
    return json.dumps(listing, separators=(",", ":")).encode("ascii") + b"\n"


def _html(page: _Page, query: Query, source: Source) -> bytes:
    path, text_of = source.path, source.text_of
    title = escape("/" + text_of(path))
    parts = path.rstrip(b"/").split(b"/") if path else []
    # Relative: the root may be below a path that is not known here.
    crumbs = [f'<a href="./{"../" * len(parts)}">/</a>']
    for number, part in enumerate(parts):
        link = "./" + "../" * (len(parts) - number - 1)
        current = ' aria-current="page"' if number == len(parts) - 1 else ""
        crumbs.append(f'<a href="{escape(link)}"{current}>{escape(text_of(part))}</a>/')
    heads = "".join(_column(query, *column) for column in (("name", "Name", ""), ("size", "Size", " number")))
    heads += _column(query, "time", "Changed", " time")
    up = '<tr class="directory"><td><a href="../">..</a><td><td class="time">' if path else ""
    rows = "".join(_row(each, text_of) for each in page.entries)
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{value}">'
        for name, value in (("sort", query.sort), ("order", "desc" if query.descending else "asc"))
    )
    count = f"{'' if page.is_complete else 'at least '}{page.total} {'entry' if page.total == 1 else 'entries'}"
    if query.search:
        count += f' with “{escape(query.search)}” · <a href="{escape(query.written(search="", page=1))}">show all</a>'
    moves = []
    if query.page > 1:
        moves.append(f'<a rel="prev" href="{escape(query.written(page=min(query.page - 1, page.pages)))}">previous</a>')
    if query.page < page.pages:
        moves.append(f'<a rel="next" href="{escape(query.written(page=query.page + 1))}">next</a>')
    if page.pages > 1:
        moves.insert(0, f"page {query.page} of {page.pages}")
    if source.archives:
        links = " or ".join(f'<a rel="nofollow" href="?{kind}">{kind}</a>' for kind in source.archives)
        moves.append(f"download all as {links}")
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_CSS}</style>
<header>
<nav aria-label="Path">{"".join(crumbs)}</nav>
<form role="search">{hidden}<input type="search" name="search" value="{escape(query.search)}"
 maxlength="{LONGEST_SEARCH}" placeholder="Search here" aria-label="Search in this directory">
<button>Search</button></form>
</header>
<main>
<table>
<thead><tr>{heads}</thead>
<tbody>{up}{rows}</tbody>
</table>
<p class="soft">{" · ".join([count, *moves])}</p>
</main>
<script>{_JS}</script>
</html>
""".encode("utf-8", "replace")


def _column(query: Query, sort: str, title: str, kind: str) -> str:
    is_current = query.sort == sort
    descending = not query.descending if is_current else sort != "name"
    order = (" ↓" if query.descending else " ↑") if is_current else ""
    state = f' aria-sort="{"descending" if query.descending else "ascending"}"' if is_current else ""
    link = escape(query.written(sort=sort, descending=descending, page=1))
    return f'<th class="{kind.strip()}"{state}><a href="{link}">{title}{order}</a>'


def _row(entry: Entry, text_of: Callable[[bytes], str]) -> str:
    # A name such as `a:b` would be a URL of its own.
    link = "./" + quote_from_bytes(entry.name) + "/" * entry.is_directory
    name = escape(text_of(entry.name)) + "/" * entry.is_directory
    moment = _utc(entry.modified)
    return (
        f'<tr{" class=directory" * entry.is_directory}><td><a href="{escape(link)}">{name}</a>'
        f'<td class="number">{"" if entry.is_directory else _size(entry.size)}'
        f'<td class="time"><time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M} UTC</time>\n'
    )


def _size(count: int) -> str:
    """Write a number of bytes in at most four digits, in units of 1024."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.0f} PiB"


def _utc(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        # A file system can hold any number.
        return datetime.fromtimestamp(0, UTC)
