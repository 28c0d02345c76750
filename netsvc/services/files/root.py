"""Opens names below one directory, and nothing else, whatever is swapped for a symbolic link meanwhile.

A path is never checked first and opened later: in between it may have become another one. Either the kernel resolves
the name below the directory's descriptor (openat2(2), which neither Python nor the C library wraps), or we walk it
over descriptors, one component at a time, and never let the system follow a link.

Only a regular file is opened. Anything else is recognized before: to open a FIFO, even for a moment, would let its
waiting writer go on and end by SIGPIPE, and to open a device may do what the device is for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any

#: In case that a file is replaced after the look at it. O_NONBLOCK: opening a FIFO must not wait for a writer.
#: O_NOCTTY: a terminal must not become ours.
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: With O_PATH, passing through a directory needs no read permission, as in any other lookup.
DIRECTORY_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: Of openat2, which only Linux has. Such a descriptor is a place, and opens nothing (open(2)).
_LOOK_FLAGS = getattr(os, "O_PATH", 0) | os.O_CLOEXEC

#: Symbolic links in one name, as Linux counts them (path_resolution(7)).
LINK_LIMIT = 40
#: Directories that a walk keeps open at once.
DEPTH_LIMIT = 128
#: How often openat2 is tried again after EAGAIN or EINTR.
TRIES = 16

#: The errors of O_NOFOLLOW for a link: Linux, POSIX (with O_DIRECTORY: ENOTDIR), FreeBSD.
_MAYBE_A_LINK = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)

#: From linux/openat2.h: no step of the resolution may follow a link as in /proc/PID/fd, or any link, or leave the
#: directory.
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

#: Which symbolic links are followed: those that stay inside the directory, all, or none.
LINKS = {
    "inside": _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS,
    "follow": _RESOLVE_NO_MAGICLINKS,
    "none": _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS,
}

#: The system call's number on every architecture but these (Linux 5.1 unified the numbers).
_NUMBER = 437
_OTHER_NUMBERS = ("alpha", "mips")


class OutsideError(Exception):
    """The name leads outside the directory."""


class _How(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_SIZE = ctypes.sizeof(_How)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_How),
    ctypes.c_size_t,
)


@lru_cache(maxsize=8)
def _how(flags: int, resolve: int) -> Any:
    # The kernel only reads it.
    return ctypes.pointer(_How(flags, 0, resolve))


def open_beneath(directory: int, name: bytes, flags: int, resolve: int = LINKS["inside"]) -> int:
    """Open `name` below the descriptor `directory` with openat2(2), and return the new descriptor.

    `resolve` is one of `LINKS`.

    Raises `OSError`: EXDEV for a name that would leave the directory (an absolute link always does), EAGAIN when a
    directory moved meanwhile so that the kernel cannot tell, EINTR for a signal.
    """
    descriptor: int = _syscall(_NUMBER, directory, name, _how(flags, resolve), _SIZE)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return descriptor


def openat2_supported(directory: int, machine: str = platform.machine()) -> bool:
    """Return whether openat2 works: a kernel before 5.6 lacks it (ENOSYS), a seccomp filter may forbid it (EPERM)."""
    if sys.platform != "linux" or machine.startswith(_OTHER_NUMBERS):
        return False
    try:
        os.close(open_beneath(directory, b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Directory:
    """An open directory whose entries are listed. Every method raises `OSError`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def entries(self) -> Iterator[tuple[bytes, bool]]:
        """Yield each name, with whether it is a directory; a link to one is not."""
        with os.scandir(self._descriptor) as found:
            for each in found:
                yield os.fsencode(each.name), each.is_dir(follow_symlinks=False)

    def status_of(self, name: bytes) -> os.stat_result:
        """Return the status of an entry, of a link itself."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def status(self) -> os.stat_result:
        """Return the status of the directory."""
        return os.fstat(self._descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class Root:
    """A directory that names are opened below. It stays the same one until `close`, even if it is renamed.

    `links` is one of `LINKS`. A name itself never leads out of the directory; with `follow`, links do.
    `resolve` opens a name where openat2 is supported; None walks every name. Raises `OSError`.
    """

    def __init__(
        self, path: str, *, links: str = "inside", resolve: Callable[[int, bytes, int], int] | None = open_beneath
    ) -> None:
        self.descriptor = os.open(path, DIRECTORY_FLAGS)
        self._holders = 1
        try:
            effective = os.access in os.supports_effective_ids
            if not os.access(".", os.R_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=effective):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._links = links
            if links != "inside" and resolve is not None:
                resolve = partial(open_beneath, resolve=LINKS[links])
            self._resolve = resolve if openat2_supported(self.descriptor) else None
            #: What an absolute link target may begin with: the directory as it was given, and its real path.
            self._anchors = tuple(_parts(os.fsencode(name)) for name in (os.path.realpath(path), os.path.abspath(path)))
        except BaseException:
            os.close(self.descriptor)
            raise

    def hold(self) -> None:
        """Keep the directory open until `close` has been called once more."""
        self._holders += 1

    def close(self) -> None:
        """Close the directory, unless somebody holds it."""
        self._holders -= 1
        if not self._holders:
            self._close()

    def _close(self) -> None:
        os.close(self.descriptor)

    def open(self, name: bytes) -> int:
        """Open the regular file `name` for reading and return the descriptor.

        Links that stay inside are followed, absolute ones too, unless `links` says otherwise. Raises `OutsideError`, or
        `OSError` as open(2) does (ELOOP for a link that is not followed, EISDIR or ENXIO for anything but a regular
        file), or `ValueError` for a NUL.

        A file that is replaced meanwhile may be opened whatever it is; look at the descriptor.
        """
        return self._opened(name, READ_FLAGS, is_directory=False)

    def open_directory(self, name: bytes) -> Directory:
        """Open the directory `name`, to list it. Raises as `open` does."""
        return Directory(self._opened(name.rstrip(b"/") or b".", LIST_FLAGS, is_directory=True))

    def names(self, name: bytes, most: int) -> tuple[list[bytes], os.stat_result]:
        """Return the names in the directory `name`, one more than `most` at most, and its status. Raises as `open`."""
        directory = self.open_directory(name)
        try:
            return [each for each, _ in islice(directory.entries(), most + 1)], directory.status()
        finally:
            directory.close()

    def status(self, name: bytes) -> os.stat_result:
        """Return the status of what `name` leads to; a name without a slash is not followed if it is a link.

        Raises `OSError` for a name that would leave the directory, and where openat2 is not supported.
        """
        if b"/" not in name:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        if self._resolve is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if self._links == "follow":
            name = _collapsed(name)
        seen = self._resolve(self.descriptor, name, _LOOK_FLAGS)
        try:
            return os.fstat(seen)
        finally:
            os.close(seen)

    def _opened(self, name: bytes, flags: int, *, is_directory: bool) -> int:
        if b"\0" in name:
            raise ValueError("a file name cannot hold a NUL")
        if name.startswith(b"/"):
            raise OutsideError
        if self._links == "follow":
            name = _collapsed(name)
            if self._resolve is None:
                if not is_directory:
                    _check_regular(os.stat(name, dir_fd=self.descriptor).st_mode)
                return os.open(name, flags, dir_fd=self.descriptor)
        if self._resolve is not None:
            for _ in range(TRIES):
                try:
                    if not is_directory:
                        seen = self._resolve(self.descriptor, name, _LOOK_FLAGS)
                        try:
                            _check_regular(os.fstat(seen).st_mode)
                        finally:
                            os.close(seen)
                    return self._resolve(self.descriptor, name, flags)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EINTR):
                        continue
                    # A name that leaves, or an absolute link that may still lead inside: the walk tells them apart.
                    if error.errno != errno.EXDEV:
                        raise
                    break
        read_link = _refuse_link if self._links == "none" else os.readlink
        return walk(self.descriptor, name, self._anchors, read_link, is_directory=is_directory)


def _refuse_link(name: bytes, *, dir_fd: int) -> bytes:
    """Read a link as `os.readlink` does, and raise the `OSError` of one that is not followed."""
    os.readlink(name, dir_fd=dir_fd)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _collapsed(name: bytes) -> bytes:
    """Return a name without `..`, which would lead to another place behind a link. Raises `OutsideError`."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part != b"..":
            parts += [part] if part not in (b"", b".") else []
        elif parts:
            parts.pop()
        else:
            raise OutsideError
    slash = b"/" * (bool(parts) and name.endswith((b"/", b"/.", b"/..")))
    return b"/".join(parts) + slash or b"."


def _check_regular(mode: int) -> None:
    """Raise the `OSError` for the mode of anything but a regular file: that of open(2) for a socket, or a directory."""
    if not stat.S_ISREG(mode):
        error = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(error, os.strerror(error))


def walk(
    root: int,
    name: bytes,
    anchors: tuple[list[bytes], ...] = (),
    read_link: Callable[..., bytes] = os.readlink,
    *,
    is_directory: bool = False,
) -> int:
    """Open the regular file, or the directory, `name` below the descriptor `root` for reading, component by component.

    A link is read and its target walked in its place; an absolute target must begin with one of `anchors`, and
    continues from `root`. `..` returns to the directory that we came from, never to what may be its parent by now.
    `read_link` is called like `os.readlink`. Raises `OutsideError`, or `OSError` as open(2) does (ELOOP after 40
    links, ENAMETOOLONG below 128 directories).
    """
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    # With an empty part at the end, the one before it is opened as a directory.
    pending = [*([b""] if is_directory else []), *name.split(b"/")[::-1]]
    below: list[int] = []
    links = 0
    try:
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if not below:
                    raise OutsideError
                os.close(below.pop())
                continue
            here = below[-1] if below else root
            try:
                if not pending:
                    status = os.stat(part, dir_fd=here, follow_symlinks=False)
                    # O_NOFOLLOW refuses a link.
                    if not stat.S_ISLNK(status.st_mode):
                        _check_regular(status.st_mode)
                    return os.open(part, READ_FLAGS | os.O_NOFOLLOW, dir_fd=here)
                if len(below) == DEPTH_LIMIT:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                below.append(os.open(part, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=here))
                continue
            except OSError as error:
                if error.errno not in _MAYBE_A_LINK:
                    raise
                links += 1
                if links > LINK_LIMIT:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                target = _link_target(read_link, part, here)
                if target is None:
                    if error.errno == errno.ENOTDIR:
                        raise
                    # It is no longer a link: look again, within the same limit.
                    pending.append(part)
                    continue
            if target.startswith(b"/"):
                pending += _inside(target, anchors)[::-1]
                while below:
                    os.close(below.pop())
            else:
                pending += target.split(b"/")[::-1]
        if is_directory:
            return os.open(b".", LIST_FLAGS, dir_fd=below[-1] if below else root)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        for descriptor in below:
            os.close(descriptor)


def _link_target(read_link: Callable[..., bytes], name: bytes, directory: int) -> bytes | None:
    try:
        return read_link(name, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _inside(target: bytes, anchors: tuple[list[bytes], ...]) -> list[bytes]:
    """Return what follows an anchor in an absolute link target; what follows is then walked like any name."""
    parts = _parts(target)
    for anchor in anchors:
        if parts[: len(anchor)] == anchor:
            # A trailing slash asks for a directory.
            return [*parts[len(anchor) :], *([b""] if target.endswith((b"/", b"/.")) else [])]
    raise OutsideError
