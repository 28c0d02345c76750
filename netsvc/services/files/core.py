"""What the files service may send: the files below its root. Knows no wire."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from time import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel
from twisted.python import usage

from netsvc.errors import MistakeError
from netsvc.interfaces import Context, Options
from netsvc.services.files.ahead import ReadAhead
from netsvc.services.files.beneath import OutsideError, Root
from netsvc.services.files.farewell import Farewells
from netsvc.services.files.sendfile import Shares
from netsvc.services.files.source import BusyError, OpenFile, RefusedError
from netsvc.settings import byte_count, encoding, seconds, shown_as, whole_number
from netsvc.text import escape

__all__ = ["ON_ITS_WAY", "FilesCore", "FilesOptions"]

#: Seconds for a name that a client has sent, or is about to send, when a drain begins.
ON_ITS_WAY = 0.25

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "permission denied",
    errno.ELOOP: "too many links",
    errno.ENAMETOOLONG: "name too long",
    # What open(2) says of a socket, a device without a driver, and (from the walk) a directory.
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


class FilesOptions(Options):
    """The options of the files service."""

    optParameters = [
        ["root", None, None, "The directory whose files are sent (required)", shown_as("DIR", _root_path)],
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
            0.1,
            "Seconds without a byte after which a file name is complete that no line end follows",
            seconds(0.01, 60),
        ],
        ["downloads", None, 1000, "The most downloads at once", whole_number(1, 1_000_000)],
        [
            "stall",
            None,
            30.0,
            "Seconds a client may take nothing before it may lose its place to another, once all are taken",
            seconds(0.1, 86400),
        ],
    ]
    optFlags = [["hidden", None, "Send files whose names, or whose directories' names, begin with a dot"]]
    limits = ("name-limit", "quiet", "downloads", "stall")

    #: The root's absolute path: the process may change its directory before it starts.
    root_path: str

    def postOptions(self) -> None:
        """Reject options without a root."""
        if self["root"] is None:
            raise usage.UsageError("files needs --root DIR, the directory whose files are sent")
        self.root_path = os.path.abspath(self["root"])


def _is_hidden(name: bytes) -> bool:
    return any(part.startswith(b".") and part not in (b".", b"..") for part in name.split(b"/"))


def _size_of_regular(descriptor: int) -> int:
    """Return the size of an open regular file; close anything else."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return status.st_size


class FilesCore:
    """Opens files below the root, so many at once, and keeps the access log."""

    def __init__(self, options: FilesOptions, context: Context) -> None:
        self.context = context
        self.name_limit: int = options["name-limit"]
        self.quiet: float = options["quiet"]
        #: Called when a drain begins: a conversation that waits for a request puts its end here.
        self.waiting: set[Callable[[], None]] = set()
        self.draining = False
        self.ahead = ReadAhead(context.reactor)
        self.shares = Shares(context.reactor)
        self.farewells = Farewells(context.reactor)
        #: The files that are open now and when each was last read, in the order of these times.
        self._open: dict[OpenFile, float] = {}
        self._encoding: str = options["encoding"]
        self._hidden = bool(options["hidden"])
        self._download_limit: int = options["downloads"]
        self._stall: float = options["stall"]
        self._shown: str = options["root"]
        self._path = options.root_path
        self._root: Root | None = None
        self._drained: Deferred[None] | None = None
        #: The call that ends what waits for a name.
        self._ending: Any = None
        metrics = context.metrics
        self._requests = metrics.counter("requests", "Requests that have ended, by how", ["result"])
        self._bytes = metrics.counter("sent_bytes", "Bytes of files, of requests that have ended")
        self._downloading = metrics.gauge("downloads", "Files that are being sent")

    @property
    def downloads(self) -> int:
        """The files that are open now."""
        return len(self._open)

    def check(self) -> None:
        """Raise `MistakeError` if the root cannot be opened, read and searched."""
        self._open_root().close()

    def start(self) -> None:
        """Open the root. Raises `MistakeError`."""
        self._root = self._open_root()
        self.draining = False
        self._downloading.add_function(self._open.__len__)

    def drain(self) -> Deferred[None] | None:
        """End what waits for a name, and refuse new ones; the Deferred fires when no file is open any more.

        A name that is on its way is waited for, `ON_ITS_WAY` seconds.
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
        for end in list(self.waiting):
            end()
        self._look()

    def _look(self) -> None:
        """Say that the drain is over, if it is."""
        if not self._open and self._ending is None and self._drained is not None:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def stop(self) -> None:
        """Let go of the root."""
        self._downloading.remove_function(self._open.__len__)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._root is not None:
            self._root.close()
            self._root = None

    def decode(self, name: bytes) -> bytes:
        """Return the UTF-8 form of a name that is UTF-8 or in the legacy encoding.

        Raises `RefusedError` for a name that is neither. UTF-8 goes first: text in another encoding is rarely
        valid UTF-8, but nearly all UTF-8 is valid GBK.
        """
        try:
            name.decode()
        except UnicodeDecodeError:
            try:
                return name.decode(self._encoding).encode()
            except UnicodeError:
                raise RefusedError("not a file name") from None
        return name

    def open(self, name: bytes) -> OpenFile:
        """Open a regular file by its UTF-8 path below the root. The caller closes it.

        When all places are taken, the download that has stalled longest makes room. Raises `RefusedError`, and
        nothing else, for whatever name.
        """
        if self._root is None or self.draining:
            raise BusyError("draining")
        if not name or b"\0" in name:
            raise RefusedError("not a file name")
        if (name.startswith(b".") or b"/." in name) and not self._hidden and _is_hidden(name):
            raise RefusedError("hidden")
        try:
            descriptor = self._root.open(name)
            size = _size_of_regular(descriptor)
        except OutsideError:
            raise RefusedError("outside the root") from None
        except OSError as error:
            reason = _REASONS.get(error.errno or 0)
            if reason is None:
                raise BusyError(f"cannot be opened ({error.strerror})") from error
            raise RefusedError(reason) from error
        file = OpenFile(descriptor, size, self._file_moved, self._file_closed)
        self._open[file] = self.context.reactor.seconds()
        if len(self._open) > self._download_limit and not self._make_room():
            file.close()
            raise BusyError("too many downloads")
        return file

    def _make_room(self) -> bool:
        """End the download that has stalled longest, if any has: clients that never read cannot keep all places."""
        stalled, moved = next(iter(self._open.items()))
        if self.context.reactor.seconds() - moved < self._stall:
            return False
        stalled.give_way()
        stalled.close()
        return True

    def record(self, peer: str, name: bytes, size: int, started: float, result: str) -> None:
        """Write the access line of a request, and count it.

        `size` is the bytes that went out, `started` the time when it came.
        """
        self._requests.labels(result).inc()
        self._bytes.inc(size)
        shown = escape(name)
        seconds = self.context.reactor.seconds() - started
        log = self.context.log
        # The event that `log.info` would make, which takes longer than the disk takes to deliver a file; so does
        # Twisted to fill in a field. The fields are for those who read events rather than lines.
        log.observer(
            {
                "log_logger": log,
                "log_level": LogLevel.info,
                "log_namespace": log.namespace,
                "log_source": log.source,
                "log_format": "{line}",
                "log_time": time(),
                "line": f'{peer} "{shown}" {size} bytes in {seconds:.3f} s: {result}',
                "peer": peer,
                "name": shown,
                "size": size,
                "seconds": seconds,
                "result": result,
            }
        )

    def _file_moved(self, file: OpenFile) -> None:
        # To the end of the line.
        self._open.pop(file, None)
        self._open[file] = self.context.reactor.seconds()

    def _file_closed(self, file: OpenFile) -> None:
        del self._open[file]
        self.ahead.forget(file)
        self._look()

    def _open_root(self) -> Root:
        try:
            return Root(self._path)
        except OSError as error:
            problem, cure = {
                errno.ENOENT: ("no such directory", "create it or give another root"),
                errno.ENOTDIR: ("not a directory", "give another root"),
                errno.EACCES: ("permission denied", "let this user read and search it or give another root"),
            }.get(error.errno or 0, (str(error.strerror).lower(), "give another root"))
            raise MistakeError([f"files root {escape(self._shown)}: {problem}; {cure}"]) from None
