"""Opens names below one directory, and nothing else, whatever is swapped for a symbolic link meanwhile.

A path is never judged first and opened later: in between, it may have become another one. Either the kernel
resolves the name below the directory's descriptor (`openat2`), or we walk it ourselves over descriptors, one
component at a time, and never let the system follow a link.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from netsvc.services.files import openat2

__all__ = ["OutsideError", "Root", "walk"]

#: O_NONBLOCK: to open a FIFO must not wait for its writer. O_NOCTTY: a terminal must not become ours.
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: With O_PATH a directory needs no read permission to be passed through, as in any other lookup.
DIRECTORY_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC

#: Symbolic links in one name, as Linux counts them (path_resolution(7)).
LINK_LIMIT = 40
#: Directories that a walk stands in at once: each is an open descriptor.
DEPTH_LIMIT = 128
#: How often openat2 is asked again after EAGAIN or EINTR.
TRIES = 16

#: What O_NOFOLLOW answers for a link: Linux, POSIX (with O_DIRECTORY: ENOTDIR), FreeBSD.
_MAYBE_A_LINK = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


class OutsideError(Exception):
    """The name leads outside the directory."""


class Root:
    """A directory that names are opened below. It is the same one until `close`, even if it is renamed.

    `resolve` is how the kernel is asked, where it can be; without it every name is walked. Raises `OSError`.
    """

    def __init__(self, path: str, *, resolve: Callable[[int, bytes, int], int] | None = openat2.open_beneath) -> None:
        self.descriptor = os.open(path, DIRECTORY_FLAGS)
        try:
            effective = os.access in os.supports_effective_ids
            if not os.access(".", os.R_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=effective):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._resolve = resolve if openat2.supported(self.descriptor) else None
            #: What an absolute link target may begin with: the directory as it was named, and as it really is.
            self._anchors = tuple(_parts(os.fsencode(name)) for name in (os.path.realpath(path), os.path.abspath(path)))
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.descriptor)

    def open(self, name: bytes) -> int:
        """Open `name` for reading and return the descriptor; it may be anything that can be opened (a FIFO, a device).

        Links that stay inside are followed, absolute ones too. Raises `OutsideError`, or `OSError` as open(2)
        does, or `ValueError` for a NUL.
        """
        if b"\0" in name:
            raise ValueError("a file name cannot hold a NUL")
        if name.startswith(b"/"):
            raise OutsideError
        if self._resolve is not None:
            for _ in range(TRIES):
                try:
                    return self._resolve(self.descriptor, name, READ_FLAGS)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EINTR):
                        continue
                    # An absolute link, which may still lead inside, or really a way out: the walk can tell.
                    if error.errno != errno.EXDEV:
                        raise
                    break
        return walk(self.descriptor, name, self._anchors)


def walk(
    root: int,
    name: bytes,
    anchors: tuple[list[bytes], ...] = (),
    read_link: Callable[..., bytes] = os.readlink,
) -> int:
    """Open `name` below the descriptor `root` for reading, component by component.

    A link is read and its target walked in its place; an absolute target must begin with one of `anchors`, and
    goes on from `root`. `..` goes back to the directory that we came from, never to whatever is its parent by now.
    `read_link` is called as `os.readlink` is. Raises `OutsideError`, or `OSError` as open(2) does (ELOOP after 40
    links, ENAMETOOLONG below 128 directories).
    """
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    pending = name.split(b"/")[::-1]
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
                    # It was a link a moment ago and is none now: look again, within the same limit.
                    pending.append(part)
                    continue
            if target.startswith(b"/"):
                pending += _inside(target, anchors)[::-1]
                while below:
                    os.close(below.pop())
            else:
                pending += target.split(b"/")[::-1]
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
