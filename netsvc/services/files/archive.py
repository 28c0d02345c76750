"""A directory as a zip or tar archive, made while it is sent: in pieces, from files opened below a root.

The same directory gives the same archive: names are sorted, and owners left out. An archive is complete, or it is an
error: a file that cannot be read to the size that it had when it was opened ends it.
"""

from __future__ import annotations

import errno
import os
import struct
import tarfile
import time
from collections.abc import Callable, Generator, Iterator
from stat import S_IFDIR, S_IFREG, S_IXUSR
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from netsvc.services.files.file import CutError, FileRefusedError
from netsvc.services.files.media_type import media_type
from netsvc.services.files.root import OutsideError, Root

#: Bytes of a piece, at least, except for the last one; and of one read.
PIECE, BLOCK = 256 * 1024, 64 * 1024
#: Directories below one another.
DEEPEST = 64
#: Bytes that are read for a piece, however little of them is left when they are compressed.
_MOST_READ = 4 * 1024 * 1024
#: Entries that are counted, before anything is sent, without a pause for others.
_AT_ONCE = 500

#: The times that DOS can write (APPNOTE.TXT, section 4.4.6), and the extra field with the time in UTC beside it.
_EARLIEST, _LATEST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
_TIMESTAMP, _HAS_MODIFIED = 0x5455, 1
_FILE, _PROGRAM, _DIRECTORY = 0o644, 0o755, 0o755

#: Ways to write an archive, with their media types.
KINDS = {"zip": b"application/zip", "tar": b"application/x-tar"}


class ArchiveRefusedError(Exception):
    """The directory is larger than the limits of an archive. The text is the reason in a word or two."""


class ArchiveLimits(NamedTuple):
    """The most bytes of files, and the most files and directories."""

    size: int
    entries: int


class Tree(NamedTuple):
    """What an archive is made of: a root, and what of it is served.

    `open_file` opens a regular file, and returns its descriptor, its size and the time of its change in nanoseconds, or
    raises `FileRefusedError`. `shows` returns whether a name is listed, and `text_of` a name as text.
    """

    root: Root
    open_file: Callable[[bytes], tuple[int, int, int]]
    shows: Callable[[bytes], bool]
    text_of: Callable[[bytes], str]


class _Entry(NamedTuple):
    """A file, or a directory, whose `descriptor` is -1. Its name is in bytes, and as text that no other entry has."""

    name: bytes
    text: str
    descriptor: int
    size: int
    modified: int
    mode: int


class DirectoryArchive:
    """The pieces of an archive of a directory, made one at a time. `path` ends with a slash, or is empty."""

    def __init__(self, tree: Tree, path: bytes, name: str, kind: str, limits: ArchiveLimits) -> None:
        self._tree = tree
        self._path = path
        self._name = name
        self._limits = limits
        #: Files and directories that this user may not read, and that are left out.
        self.left_out = 0
        self._entries = 0
        self._size = 0
        self._pieces = self._make(_zip if kind == "zip" else _tar)

    def next(self) -> bytes | None:
        """Return the next piece, None at the end; an empty one while the directory is being measured.

        Raises `ArchiveRefusedError` for a directory that is too large, `CutError` for a file that has shrunk, and
        `OSError`. For a thread: it reads files.
        """
        return next(self._pieces, None)

    def close(self) -> None:
        """Close the files, while no piece is being made."""
        self._pieces.close()

    def _make(self, write: Callable[[Iterator[_Entry]], Iterator[bytes]]) -> Generator[bytes]:
        # First, so that what is too large is refused before anything is sent.
        for number, entry in enumerate(self._walk()):
            if entry.descriptor >= 0:
                os.close(entry.descriptor)
            if number % _AT_ONCE == 0:
                yield b""
        self._entries = self._size = self.left_out = 0
        yield from write(self._walk())

    def _walk(self) -> Iterator[_Entry]:
        return self._below(self._path, os.fsencode(self._name) + b"/", f"{self._name}/", ())

    def _below(self, path: bytes, name: bytes, text: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Entry]:
        """Yield a directory and what is in it; the caller closes the files. A link to a directory above is left out."""
        try:
            names, status = self._tree.root.names(path, self._limits.entries)
        except (OSError, OutsideError):
            if not above:
                raise
            self.left_out += 1
            return
        if len(names) > self._limits.entries:
            # These are not all.
            raise ArchiveRefusedError("too many files")
        place = (status.st_dev, status.st_ino)
        if place in above:
            return
        if len(above) == DEEPEST:
            raise ArchiveRefusedError("too deep")
        yield self._counted(_Entry(name, text, -1, 0, int(status.st_mtime), S_IFDIR | _DIRECTORY))
        texts: set[str] = set()
        for each in sorted(filter(self._tree.shows, names)):
            shown = self._tree.text_of(each).replace("\\", "_")
            while shown in texts:
                shown += "~"
            texts.add(shown)
            try:
                descriptor, size, modified = self._tree.open_file(path + each)
            except IsADirectoryError:
                yield from self._below(path + each + b"/", name + each + b"/", f"{text}{shown}/", (*above, place))
            except (OSError, OutsideError, FileRefusedError) as error:
                self.left_out += getattr(error, "errno", 0) == errno.EACCES
            else:
                mode = S_IFREG | (_PROGRAM if os.fstat(descriptor).st_mode & S_IXUSR else _FILE)
                entry = _Entry(name + each, text + shown, descriptor, size, modified // 10**9, mode)
                try:
                    self._counted(entry)
                except ArchiveRefusedError:
                    os.close(descriptor)
                    raise
                yield entry

    def _counted(self, entry: _Entry) -> _Entry:
        self._entries += 1
        self._size += entry.size
        if self._entries > self._limits.entries:
            raise ArchiveRefusedError("too many files")
        if self._size > self._limits.size:
            raise ArchiveRefusedError("too large")
        return entry


class _Sink:
    """What an archive is written to: keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: see `take`."""

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return data


def _content(entry: _Entry) -> Iterator[bytes]:
    """Read a file to the size that it had when it was opened, and close it. Raises `CutError` if it is shorter now."""
    try:
        offset = 0
        while offset < entry.size:
            data = os.pread(entry.descriptor, min(BLOCK, entry.size - offset), offset)
            if not data:
                raise CutError("file shrank")
            offset += len(data)
            yield data
    finally:
        os.close(entry.descriptor)


def _zip(entries: Iterator[_Entry]) -> Iterator[bytes]:
    sink = _Sink()
    writable: Any = sink
    # It writes sizes and checksums behind each file, as the sink cannot seek (APPNOTE.TXT, section 4.3.9).
    with ZipFile(writable, "w", ZIP_DEFLATED) as archive:
        for entry in entries:
            info = _zip_info(entry)
            if entry.descriptor < 0:
                info.CRC = 0
                archive.mkdir(info)
            else:
                with archive.open(info, "w") as file:
                    unsent = 0
                    for data in _content(entry):
                        file.write(data)
                        unsent += len(data)
                        if sink.size >= PIECE or unsent >= _MOST_READ:
                            unsent = 0
                            yield sink.take()
            if sink.size >= PIECE:
                yield sink.take()
    yield from _cut(sink.take())


def _zip_info(entry: _Entry) -> ZipInfo:
    moment = time.gmtime(entry.modified)[:6] if 0 <= entry.modified < 2**32 else _EARLIEST
    info = ZipInfo(entry.text, min(max(moment, _EARLIEST), _LATEST))
    info.external_attr = entry.mode << 16 | (0x10 if entry.descriptor < 0 else 0)
    if 0 <= entry.modified < 2**31:
        info.extra = struct.pack("<HHBl", _TIMESTAMP, 5, _HAS_MODIFIED, entry.modified)
    info.create_system = 3
    if entry.descriptor >= 0:
        info.file_size = entry.size
        info.compress_type = ZIP_DEFLATED
        # Deflate without compression for images and the like: it has an end, which readers of a stream need.
        info._compresslevel = 6 if _is_text(entry.name) else 0  # type: ignore[attr-defined]
    return info


def _is_text(name: bytes) -> bool:
    kind = media_type(name)
    return kind.startswith(b"text/") or kind.endswith((b"+xml", b"json", b"javascript", b"/xml"))


def _tar(entries: Iterator[_Entry]) -> Iterator[bytes]:
    sink = _Sink()
    total = 0
    for entry in entries:
        info = tarfile.TarInfo(os.fsdecode(entry.name))
        info.mode, info.mtime = entry.mode & 0o777, entry.modified
        if entry.descriptor < 0:
            info.type = tarfile.DIRTYPE
        else:
            info.size = entry.size
        total += sink.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if entry.descriptor >= 0:
            for data in _content(entry):
                total += sink.write(data)
                if sink.size >= PIECE:
                    yield sink.take()
            total += sink.write(bytes(-entry.size % tarfile.BLOCKSIZE))
        if sink.size >= PIECE:
            yield sink.take()
    total += sink.write(bytes(2 * tarfile.BLOCKSIZE))
    sink.write(bytes(-total % tarfile.RECORDSIZE))
    yield from _cut(sink.take())


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]
