"""The files below one root: what may be sent, how many at once, and the access log. Knows no wire form."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python import usage

from netsvc.base.errors import UserError
from netsvc.base.requests import log_event, request_event
from netsvc.base.text import escape
from netsvc.interfaces import Context, Options
from netsvc.options import byte_count, encoding, seconds, shown_as, whole_number
from netsvc.services.files.access import FilesAccess
from netsvc.services.files.archive import ArchiveLimits, Tree
from netsvc.services.files.coding import ENDINGS, IDENTITY
from netsvc.services.files.digest import Digests
from netsvc.services.files.download import Shares
from netsvc.services.files.file import DirectoryError, FileBusyError, FileRefusedError, OpenFile, ReadAhead
from netsvc.services.files.headers import cache_control, origins
from netsvc.services.files.media_type import charset
from netsvc.services.files.names import readings, shown
from netsvc.services.files.receipt import SENT, Receipts
from netsvc.services.files.root import LINKS, Directory, OutsideError, Root
from netsvc.services.files.small import SentRecord, SmallFile, SmallFiles
from netsvc.services.files.transport import HalfClosed

T = TypeVar("T")

#: How much longer the rest of a name is awaited if what has been sent so far is no file, than if it is one.
PATIENCE = 5

#: Seconds that a drain waits for a name that is on its way.
ON_ITS_WAY = 0.25

#: Sizes that a file of /proc or /sys may have, and the bytes of its content at most.
_PSEUDO_SIZES = (0, os.sysconf("SC_PAGE_SIZE"))
_PSEUDO_LIMIT = 1024 * 1024

_NOTHING: Mapping[str, object] = MappingProxyType({})

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "permission denied",
    errno.ELOOP: "too many links",
    errno.ENAMETOOLONG: "name too long",
    # See `Root.open`, and open(2) of a device without a driver.
    # A file system may restrict names.
    errno.EINVAL: "not a file name",
    errno.EILSEQ: "not a file name",
    errno.ENXIO: "not a regular file",
    errno.ENODEV: "not a regular file",
    errno.EISDIR: "not a regular file",
}


def _legacy_encoding(value: Any) -> str:
    name = encoding(value)
    if "\n".encode(name) != b"\n":
        raise ValueError("an encoding in which a line ends with the byte 0A, such as gbk, big5 or latin-1")
    return name


def _root_path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("the path of a directory")
    return value


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("the path of a file")
    return value


def _links(value: str) -> str:
    if value not in LINKS:
        raise ValueError("inside, follow or none")
    return value


def _ports(value: str) -> range:
    first, _, last = str(value).partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
        raise ValueError("two port numbers from 1024 to 65535, such as 50000-50999")
    return range(int(first), int(last) + 1)


class FilesOptions(Options):
    """The options of the files service."""

    optParameters = [
        ["root", None, None, "The directory to send files from (required)", shown_as("DIR", _root_path)],
        [
            "encoding",
            None,
            "gbk",
            "The text encoding of file names that are not UTF-8",
            shown_as("ENCODING", _legacy_encoding),
        ],
        ["name-limit", None, 4096, "The longest file name, in bytes", byte_count(1, 65536)],
        [
            "quiet",
            None,
            0.4,
            "Seconds of silence that complete the name of a file sent without a line end; if there is no such file, "
            f"{PATIENCE} times as many",
            seconds(0.01, 60),
        ],
        ["downloads", None, 1000, "Downloads at a time", whole_number(1, 1_000_000)],
        [
            "stall",
            None,
            30.0,
            "Seconds without progress after which a download may lose its place, once all are taken",
            seconds(0.1, 86400),
        ],
        ["cache-control", None, None, "The header Cache-Control of files over HTTP", shown_as("VALUE", cache_control)],
        [
            "cors",
            None,
            None,
            "Origins whose pages may read files, or * for any",
            shown_as("ORIGINS", origins),
        ],
        [
            "charset",
            None,
            "utf-8",
            "The charset of texts over HTTP that do not begin with a mark of their own, or none",
            shown_as("CHARSET", charset),
        ],
        [
            "links",
            None,
            "inside",
            "Which symbolic links to follow: inside (those that stay below the root), follow (all), or none",
            shown_as("inside|follow|none", _links),
        ],
        ["token", None, None, "Serve HTTP only to clients that send the token in this file", shown_as("FILE", _path)],
        [
            "users",
            None,
            None,
            "Serve HTTP only to users in this file, lines USER:HASH of `netsvc passwd`",
            shown_as("FILE", _path),
        ],
        [
            "archives",
            None,
            4,
            "Directories that are sent as zip or tar archives at a time, half of them to one address; 0: none",
            whole_number(0, 100),
        ],
        ["archive-size", None, 16 * 1024**3, "The most bytes of the files of an archive", byte_count(1, 1024**5)],
        ["archive-entries", None, 50_000, "The most files and directories of an archive", whole_number(1, 1_000_000)],
        ["archive-time", None, 3600.0, "Seconds in which an archive must have been sent", seconds(1, 86400)],
        ["tftp-ports", None, None, "The UDP ports of TFTP transfers (default: any)", shown_as("FIRST-LAST", _ports)],
        ["tftp-transfers", None, 500, "TFTP transfers at a time", whole_number(1, 60_000)],
        ["tftp-peer", None, 100, "TFTP transfers of one address at a time", whole_number(1, 60_000)],
    ]
    optFlags = [
        ["hidden", None, "Send files whose names, or whose directories' names, begin with a dot"],
        [
            "precompressed",
            None,
            "Send FILE.br, .zst or .gz to clients that accept it",
        ],
        ["no-listing", None, "Do not list directories over HTTP"],
        ["plain-passwords", None, "Take tokens and passwords without TLS, from other machines, too"],
    ]
    limits = (
        *("name-limit", "quiet", "downloads", "stall", "archives", "archive-size", "archive-entries", "archive-time"),
        *("tftp-transfers", "tftp-peer"),
    )

    #: The root's absolute path: the process may change its directory before it opens the root.
    root_path: str

    def postOptions(self) -> None:
        """Reject options without a root."""
        if self["root"] is None:
            raise usage.UsageError("files needs --root DIR, the directory to send files from")
        self.root_path = os.path.abspath(self["root"])
        for name in ("token", "users"):
            if self[name] is not None:
                self[name] = os.path.abspath(self[name])


@lru_cache(maxsize=128)
def _in_brackets(*values: object) -> str:
    return f" ({' '.join(map(str, values))})" if values else ""


def _is_hidden(name: bytes) -> bool:
    return any(part.startswith(b".") and part not in (b".", b"..") for part in name.split(b"/"))


def _regular(descriptor: int) -> tuple[int, int, int]:
    """Return the descriptor of an open regular file, its size and its time of change. Closes anything else, and raises.

    The files of /proc and /sys have no blocks and a size of 0 or of one page, whatever their content: a copy of it is
    returned.
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefusedError("not a regular file")
        size = status.st_size
        if not status.st_blocks and size in _PSEUDO_SIZES and hasattr(os, "memfd_create"):
            start = os.pread(descriptor, size or _PSEUDO_LIMIT + 1, 0)
            if len(start) != size:
                return *_copied(descriptor, start), status.st_mtime_ns
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size, status.st_mtime_ns


def _copied(descriptor: int, start: bytes) -> tuple[int, int]:
    """Copy a file without a size of its own, which begins with `start`, to memory, and close it."""
    content = start
    while data := os.pread(descriptor, _PSEUDO_LIMIT + 1 - len(content), len(content)):
        content += data
    if len(content) > _PSEUDO_LIMIT:
        raise FileBusyError("too large for a file without a size")
    copy = os.memfd_create("netsvc", os.MFD_CLOEXEC)
    try:
        os.write(copy, content)
    except BaseException:
        os.close(copy)
        raise
    os.close(descriptor)
    return copy, len(content)


class FilesCore:
    """Opens files below the root, a limited number at once, and writes the access log."""

    def __init__(self, options: FilesOptions, context: Context) -> None:
        self.context = context
        self._seconds: Callable[[], float] = context.reactor.seconds
        self.name_limit: int = options["name-limit"]
        self.quiet: float = options["quiet"]
        #: Called when a drain begins, to close the connections that wait for a request.
        self.waiting: set[Callable[[], None]] = set()
        #: Called then as well, by protocols whose connections can have several requests.
        self.drains: list[Callable[[], None]] = []
        self.draining = False
        self.ahead = ReadAhead(context.reactor)
        self.digests = Digests(context.reactor)
        self.receipts = Receipts(context.reactor)
        self.shares = Shares(context.reactor)
        self.lingering = HalfClosed(context.reactor)
        #: The open files, each with the time when it was last read, in the order of these times.
        self._open: dict[OpenFile, float] = {}
        self._encoding: str = options["encoding"]
        self._hidden = bool(options["hidden"])
        self.small = SmallFiles()
        self.lists = not options["no-listing"]
        self.precompressed = bool(options["precompressed"])
        self.cache_control: str | None = options["cache-control"]
        self.cors: tuple[str, ...] | None = options["cors"]
        self.charset: bytes = options["charset"].encode("ascii")
        self._download_limit: int = options["downloads"]
        # Kept, as each method of an object that a download keeps costs 64 bytes.
        self._moved, self._closed = self._file_moved, self._file_closed
        self._stall: float = options["stall"]
        self.stall = self._stall
        self.archives: int = options["archives"] if self.lists else 0
        self.archive_limits = ArchiveLimits(options["archive-size"], options["archive-entries"])
        self.archive_time: float = options["archive-time"]
        self.tftp_ports: range | None = options["tftp-ports"]
        self.tftp_transfers: int = options["tftp-transfers"]
        self.tftp_peer: int = options["tftp-peer"]
        self._shown: str = options["root"]
        self._path = options.root_path
        self.links: str = options["links"]
        #: None if everybody is admitted.
        self.access: FilesAccess | None = None
        if options["token"] is not None or options["users"] is not None:
            plain = bool(options["plain-passwords"])
            self.access = FilesAccess(options["token"], options["users"], context.reactor, context.log, plain=plain)
        self._root: Root | None = None
        self._drained: Deferred[None] | None = None
        #: The delayed call of `_end_waiting`.
        self._ending: Any = None
        metrics = context.metrics
        self._requests = metrics.counter("requests", "Requests that have ended, by how", ["result"])
        #: The counters of `_requests` by result.
        self._ended: dict[str, Any] = {}
        self._sent = self._requests.labels(SENT)
        self._bytes = metrics.counter("sent_bytes", "Bytes of files, of requests that have ended")
        self._downloading = metrics.gauge("downloads", "Files that are being sent")

    @property
    def downloads(self) -> int:
        """The number of open files."""
        return len(self._open)

    @property
    def confidential(self) -> tuple[str, ...]:
        """See `IServiceInstance`."""
        return ("http",) if self.access is not None and not self.access.plain else ()

    def notes(self, protocols: Collection[str]) -> list[str]:
        """See `IServiceInstance`."""
        others = [name for name in ("classic", "tftp") if name in protocols]
        if self.access is None or not others:
            return []
        return [f"token and users are for http only: {' and '.join(others)} serve everybody"]

    def check(self) -> None:
        """Raise `UserError` if the root cannot be opened, read and searched, or the files of users not read."""
        self.open_root().close()
        if self.access is not None:
            self.access.read()

    def start(self) -> None:
        """Open the root. Raises `UserError`."""
        if self.access is not None:
            self.access.start()
        self._root = self.open_root()
        self.draining = False
        self._downloading.add_function(self._open.__len__)

    def drain(self) -> Deferred[None] | None:
        """Close connections that wait for a name, after `ON_ITS_WAY` seconds, and refuse names from then on.

        The Deferred fires when no file is open any more.
        """
        if not self.waiting:
            self._end_waiting()
        elif self._ending is None:
            self._ending = self.context.reactor.callLater(ON_ITS_WAY, self._end_waiting)
        if self._ending is None and not self._open:
            return None
        if self._drained is None:
            self._drained = Deferred()
        return self._drained

    def _end_waiting(self) -> None:
        self._ending = None
        self.draining = True
        for end in [*self.waiting, *self.drains]:
            end()
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._open and self._ending is None and self._drained is not None:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def stop(self) -> None:
        """Close the root."""
        self._downloading.remove_function(self._open.__len__)
        self.digests.close()
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._root is not None:
            self._root.close()
            self._root = None

    def shown(self, name: bytes) -> bytes:
        """Return a requested name as UTF-8, if it is text, for the access log."""
        return shown(name, self._encoding)

    def find_small(self, path: bytes) -> SmallFile | None:
        """Return a small file that is in memory, if it has not changed."""
        return self.small.get(self._root, path) if self._root is not None and not self.draining else None

    def ask_digest(
        self, file: OpenFile, path: bytes, client: str | None, answer: Callable[[bytes | None], None]
    ) -> Callable[[], None]:
        """Ask for the digest of an open file; see `Digests.ask`."""

        def answer_all(digest: bytes | None) -> None:
            # What is kept in memory has no digest in its headers.
            self.small.forget(path)
            answer(digest)

        return self.digests.ask(file, client, answer_all)

    def find(self, name: bytes) -> tuple[OpenFile, bytes]:
        """Open the file that a requested name means; return it and its path. The caller closes it.

        The first of the name's `readings` that can be opened is meant. Raises only `FileRefusedError`.
        """
        return self._found(name, self.open)

    def find_directory(self, name: bytes) -> tuple[Directory, bytes]:
        """Open the directory that a requested name means, to list it; return it and its path, as `find`."""
        return self._found(name, self._open_directory) if name else (self._open_directory(b"."), b"")

    def _found(self, name: bytes, opening: Callable[[bytes], T]) -> tuple[T, bytes]:
        refusal = FileRefusedError("not a file name")
        for path in readings(name, self._encoding):
            try:
                return opening(path), path
            except (FileBusyError, DirectoryError):
                raise
            except FileRefusedError as refused:
                refusal = refused
        raise refusal

    def open(self, name: bytes) -> OpenFile:
        """Open a regular file by its path below the root. The caller closes it.

        When all places are taken, the download that has stalled longest is evicted. Raises only `FileRefusedError`,
        whatever the name.
        """
        file = self._placed(*self._open_regular(name))
        if len(self._open) > self._download_limit and not self._make_room():
            file.close()
            raise FileBusyError("too many downloads")
        return file

    def encoded(self, file: OpenFile, name: bytes, codings: Sequence[str]) -> tuple[OpenFile, str] | None:
        """Return the first of `codings` that an open file is stored in as well, open in its place.

        A stored one is a regular file that is not older. The coding is "" for the file as it is. None, if there is none
        of them; the file is closed then.
        """
        for coding in codings:
            if coding == IDENTITY:
                return file, ""
            try:
                found = self._open_regular(name + ENDINGS[coding])
            except FileRefusedError:
                continue
            if found[2] < file.modified:
                os.close(found[0])
                continue
            # In this order, so that a drain does not end in between.
            encoded = self._placed(*found)
            file.close()
            return encoded, coding
        file.close()
        return None

    def _open_regular(self, name: bytes) -> tuple[int, int, int]:
        return self._opened(name, lambda root: _regular(root.open(name)))

    def _placed(self, descriptor: int, size: int, modified: int) -> OpenFile:
        file = OpenFile(descriptor, size, self._moved, self._closed, modified)
        self._open[file] = self.context.reactor.seconds()
        return file

    def _open_directory(self, name: bytes) -> Directory:
        return self._opened(name, lambda root: root.open_directory(name))

    def directory_path(self, name: bytes) -> bytes:
        """Return the path of the directory that a requested name means, with a slash; empty for the root. As `find`."""
        directory, path = self.find_directory(name)
        directory.close()
        return path.strip(b"/") + b"/" if path.strip(b"/") else b""

    def tree(self) -> Tree:
        """Return what an archive is made of. The caller closes its root. Raises `FileRefusedError`."""
        root = self._opened(b".", lambda root: root)
        root.hold()
        return Tree(root, lambda name: _regular(root.open(name)), self.shows, self.text_of)

    def text_of(self, name: bytes) -> str:
        """Return a name as text."""
        return self.shown(name).decode("utf-8", "replace")

    def follow(self, name: bytes) -> os.stat_result | None:
        """Return the status of the file or directory at a path below the root; None if it is not served."""
        try:
            try:
                descriptor = self._opened(name, lambda root: root.open(name))
            except DirectoryError:
                directory = self._open_directory(name)
                try:
                    return directory.status()
                finally:
                    directory.close()
        except FileRefusedError:
            return None
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def shows(self, name: bytes) -> bool:
        """Return whether a file of this name is listed."""
        return self._hidden or not name.startswith(b".")

    def _opened(self, name: bytes, opening: Callable[[Root], T]) -> T:
        """Call a function that opens something below the root. Raises only `FileRefusedError`."""
        if self._root is None or self.draining:
            raise FileBusyError("draining")
        if not name or b"\0" in name:
            raise FileRefusedError("not a file name")
        if (name.startswith(b".") or b"/." in name) and not self._hidden and _is_hidden(name):
            raise FileRefusedError("hidden")
        try:
            return opening(self._root)
        except OutsideError:
            raise FileRefusedError("outside the root") from None
        except OSError as error:
            reason = _REASONS.get(error.errno or 0)
            if error.errno == errno.ELOOP and self.links == "none":
                reason = "a symbolic link"
            if reason is None:
                raise FileBusyError(f"cannot be opened ({error.strerror})") from error
            raise (DirectoryError if error.errno == errno.EISDIR else FileRefusedError)(reason) from error

    def _make_room(self) -> bool:
        """Evict the download that has stalled longest, if one has: clients that never read cannot keep all places."""
        stalled, moved = next(iter(self._open.items()))
        if self.context.reactor.seconds() - moved < self._stall:
            return False
        stalled.evict()
        stalled.close()
        return True

    def record(  # noqa: PLR0917
        self, peer: str, name: bytes, size: int, started: float, result: str, answer: Mapping[str, object] = _NOTHING
    ) -> None:
        """Write the access line of a request, and count it.

        `size` is the number of bytes sent, `started` the time when the request arrived. `answer` has more fields of a
        protocol, which end the line.
        """
        counter = self._ended.get(result)
        if counter is None:
            counter = self._ended[result] = self._requests.labels(result)
        counter.inc()
        self._bytes.inc(size)
        shown = escape(name)
        seconds = self.context.reactor.seconds() - started
        log_event(
            request_event(self.context.log, peer=peer, name=shown, size=size, seconds=seconds, result=result, **answer),
            f'{peer} "{shown}" {size} bytes in {seconds:.3f} s: {result}{_in_brackets(*answer.values())}',
        )

    def sent_record(self, name: bytes, size: int, answer: Mapping[str, object]) -> SentRecord:
        """Prepare the access lines of a file that is sent whole."""
        shown = escape(name)
        event = request_event(self.context.log, name=shown, size=size, result=SENT, **answer)
        return SentRecord(size, event, f'"{shown}" {size} bytes in', f"s: {SENT}{_in_brackets(*answer.values())}")

    def record_sent(self, sent: SentRecord, peer: str, started: float) -> None:
        """Do what `record` does, for a file that is sent again and again."""
        size, event, before, after = sent
        self._sent.inc()
        self._bytes.inc(size)
        event = event.copy()
        event["peer"] = peer
        seconds = event["seconds"] = self._seconds() - started
        log_event(event, f"{peer} {before} {seconds:.3f} {after}")

    def _file_moved(self, file: OpenFile) -> None:
        # Reinserted, to be the last one.
        self._open.pop(file, None)
        self._open[file] = self.context.reactor.seconds()

    def _file_closed(self, file: OpenFile) -> None:
        del self._open[file]
        self.ahead.forget(file)
        self._check_drained()

    def open_root(self) -> Root:
        """Open the directory that names are below. Raises `UserError`."""
        try:
            return Root(self._path, links=self.links)
        except OSError as error:
            problem, cure = {
                errno.ENOENT: ("no such directory", "create it or give another root"),
                errno.ENOTDIR: ("not a directory", "give another root"),
                errno.EACCES: ("permission denied", "let this user read and search it or give another root"),
            }.get(error.errno or 0, (str(error.strerror).lower(), "give another root"))
            raise UserError([f"files root {escape(self._shown)}: {problem}; {cure}"]) from None
