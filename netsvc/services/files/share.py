"""Shares some files and directories over HTTP, below a path that only those who are given it know."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path
from stat import S_IFDIR, S_IFLNK
from types import MappingProxyType
from typing import Any
from urllib.parse import quote_from_bytes

from netsvc.base.errors import UserError
from netsvc.base.text import escape
from netsvc.http.connection import Exchange, HTTPFactory
from netsvc.interfaces import Context
from netsvc.service import Service
from netsvc.services.files.core import FilesCore, FilesOptions
from netsvc.services.files.file import OpenFile
from netsvc.services.files.http import LIMITS, TIMES, FilesSite
from netsvc.services.files.root import Directory, Root

#: Clients and files whose parts are added up.
MOST_PARTS = 1000

_NOTHING: Mapping[str, object] = MappingProxyType({})
_TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"


@dataclass(eq=False)
class SharedTransfer:
    """A file that is being sent: the client's address, the name, the whole size, and the file."""

    peer: str
    name: str
    size: int
    file: OpenFile

    @property
    def sent(self) -> int:
        """The position in the file, in bytes."""
        return self.file.offset


@dataclass(frozen=True)
class Sent:
    """An answer that has ended. `complete`: the client has now got all of a file, perhaps in several parts."""

    line: str
    size: int
    complete: bool


@dataclass(frozen=True)
class ShareObserver:
    """What is called when a transfer begins and ends, and when an answer has ended, in this order or at once."""

    began: Callable[[SharedTransfer], object]
    ended: Callable[[SharedTransfer], object]
    answered: Callable[[Sent], object]


class SharedEntries(Directory):
    """The directory of what is shared, which is on no disk: its entries are like links."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._names = names
        self._modified = int(time.time())

    def entries(self) -> Iterator[tuple[bytes, bool]]:
        """See `Directory.entries`."""
        return ((name, False) for name in self._names)

    def status_of(self, name: bytes) -> os.stat_result:
        """See `Directory.status_of`."""
        return self._status(S_IFLNK | 0o777)

    def status(self) -> os.stat_result:
        """See `Directory.status`."""
        return self._status(S_IFDIR | 0o755)

    def _status(self, mode: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 1, 0, 0, 0, *(self._modified,) * 3))

    def close(self) -> None:
        """Do nothing."""


class SharedRoot(Root):
    """Files and directories from anywhere as the entries of one directory, which has nothing else. Raises `OSError`."""

    def __init__(self, shared: Mapping[bytes, str]) -> None:
        self._holders = 1
        self._entries: dict[bytes, tuple[Root, bytes]] = {}
        try:
            for name, path in shared.items():
                real = os.path.realpath(path)
                if os.path.isdir(real):
                    self._entries[name] = (Root(real), b"")
                else:
                    directory, file = os.path.split(real)
                    self._entries[name] = (Root(directory), os.fsencode(file))
        except BaseException:
            self._close()
            raise
        self._top = SharedEntries(self._entries)

    def _close(self) -> None:
        for root, _ in self._entries.values():
            root.close()

    def open(self, name: bytes) -> int:
        """Open a regular file; see `Root.open`."""
        root, rest = self._entry(name)
        if not rest:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return root.open(rest)

    def status(self, name: bytes) -> os.stat_result:
        """Return the status of a file; see `Root.status`."""
        root, rest = self._entry(name)
        return root.status(rest)

    def open_directory(self, name: bytes) -> Directory:
        """Open a directory to list it; see `Root.open_directory`."""
        if not name.strip(b"/."):
            return self._top
        root, rest = self._entry(name)
        return root.open_directory(rest)

    def _entry(self, name: bytes) -> tuple[Root, bytes]:
        """Return the root of a name, and the rest of it below that, which is empty for a directory that is shared."""
        first, slash, rest = name.lstrip(b"/").partition(b"/")
        if first in (b"", b"."):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if first not in self._entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        root, file = self._entries[first]
        if not file:
            return root, rest.lstrip(b"/")
        if slash:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return root, file


class ShareCore(FilesCore):
    """The files that are shared, by the names that they have in the share; a single directory is the root itself."""

    def __init__(
        self, options: FilesOptions, context: Context, shared: Mapping[bytes, str], watch: ShareObserver
    ) -> None:
        super().__init__(options, context)
        self._shared = shared
        self._watch = watch
        #: The file that was opened last, and its size.
        self.opened: tuple[OpenFile, int] | None = None
        #: Sizes of files by their names, and bytes that were sent of a file, by the client's host and the name.
        self._sizes: dict[bytes, int] = {}
        self._parts: dict[tuple[str, bytes], int] = {}

    def open_root(self) -> Root:
        """Open all that is shared. Raises `UserError`."""
        if not self._shared:
            return super().open_root()
        try:
            return SharedRoot(self._shared)
        except OSError as error:
            name = escape(str(error.filename or ""), 4096)
            raise UserError(
                [f"{name}: {(error.strerror or 'cannot be opened').lower()}; share something else"]
            ) from None

    def open(self, name: bytes) -> OpenFile:
        """Open a file; see `FilesCore.open`."""
        file = super().open(name)
        self.opened = file, file.size
        self._sizes.pop(name, None)
        self._sizes[name] = file.size
        _forget_oldest(self._sizes)
        return file

    def record(  # noqa: PLR0917  (as in `FilesCore`)
        self, peer: str, name: bytes, size: int, started: float, result: str, answer: Mapping[str, object] = _NOTHING
    ) -> None:
        """Report an answer that has ended."""
        super().record(peer, name, size, started, result, answer)
        status, method = answer.get("status"), answer.get("method")
        if method != "GET" or status not in (200, 206):
            return
        part = (peer.rpartition(":")[0], name)
        self._parts[part] = total = self._parts.pop(part, 0) + size
        _forget_oldest(self._parts)
        whole = status == 200 or total >= self._sizes.get(name, total + 1)
        complete = result.startswith("sent") and whole
        if complete:
            del self._parts[part]
        seconds = self.context.reactor.seconds() - started
        self._watch.answered(
            Sent(f"{peer} {escape(self.shown(name))}: {size} bytes in {seconds:.1f} s, {result}", size, complete)
        )


def _forget_oldest(table: dict[Any, Any]) -> None:
    if len(table) > MOST_PARTS:
        del table[next(iter(table))]


class ShareSite:
    """Answers requests below the path `/TOKEN/`, and no others; below `/` if the token is empty."""

    def __init__(self, core: ShareCore, token: str, watch: ShareObserver) -> None:
        self._core = core
        self._site = FilesSite(core)
        self._prefix = b"/" + token.encode("ascii") + b"/" * bool(token)
        self._watch = watch

    def serve(self, exchange: Exchange) -> None:
        """Answer a request; see `HTTPFactory`."""
        core, request, length = self._core, exchange.request, len(self._prefix)
        if not compare_digest(request.path[:length], self._prefix):
            exchange.answer(HTTPStatus.NOT_FOUND, b"404 Not Found\n", _TEXT)
            return
        request.path = b"/" + request.path[length:]
        core.opened = None
        self._site.serve(exchange)
        if core.opened is not None and exchange.waiting:
            file, size = core.opened
            name = escape(core.shown(request.path[1:]))
            transfer = SharedTransfer(exchange.peer.host, name, size, file)
            self._watch.began(transfer)
            exchange.when_ended(lambda: self._watch.ended(transfer))


def names_of(paths: Sequence[str], *, hidden: bool) -> dict[bytes, str]:
    """Return the names that paths have in a share, with the paths. Raises `UserError` with a line for each error."""
    errors: list[str] = []
    named: dict[bytes, str] = {}
    for path in paths:
        shown = escape(path, 4096)
        name = os.path.basename(os.path.abspath(path)) or "root"
        try:
            if not Path(path).is_dir() and not Path(path).is_file():
                os.stat(path)
                errors.append(f"{shown}: neither a file nor a directory; share one")
            elif not os.access(path, os.R_OK):
                errors.append(f"{shown}: permission denied; let this user read it")
        except (OSError, ValueError) as error:
            errors.append(f"{shown}: {(getattr(error, 'strerror', '') or str(error)).lower()}; check the path")
        if name.startswith(".") and not hidden and (len(paths) > 1 or Path(path).is_file()):
            errors.append(f"{shown}: hidden, because its name begins with a dot; share it with --hidden")
        if (other := named.get(os.fsencode(name))) is not None:
            errors.append(f"{shown}: {escape(other, 4096)} has the same name in the share; share them separately")
        named[os.fsencode(name)] = path
    if errors:
        raise UserError(errors)
    return named


def share(
    paths: Sequence[str], *, hidden: bool, token: str, watch: ShareObserver
) -> tuple[Service, dict[str, object], str]:
    """Return the service that shares paths, its settings, and where the share begins, as a path of a URL.

    Raises `UserError`.
    """
    named = names_of(paths, hidden=hidden)
    directory = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else None
    shared = {} if directory is not None else named

    def core(options: FilesOptions, context: Context) -> ShareCore:
        return ShareCore(options, context, shared, watch)

    def http(core: ShareCore) -> HTTPFactory:
        factory = HTTPFactory(core.context.reactor, ShareSite(core, token, watch).serve, limits=LIMITS, times=TIMES)
        core.drains.append(factory.drain)
        return factory

    service = Service("share", "Share files and directories", options=FilesOptions, core=core, streams={"http": http})
    settings: dict[str, object] = {"root": os.path.abspath(directory or os.path.dirname(os.path.abspath(paths[0])))}
    if hidden:
        settings["hidden"] = True
    start = f"/{token}/" if token else "/"
    if len(paths) == 1 and directory is None:
        start += quote_from_bytes(next(iter(named)))
    return service, settings, start
