"""Opens paths in directories that other users may change.

A path that root was given may run through a directory of another user, who can replace any part of it at any time: with
a link to a file of root, for example. So root opens it here component by component, each below the descriptor of the
one before, and works with the descriptor. It follows a symbolic link of another user only to what this user owns.
Other users have no more rights than the links that they follow, and open a path as usual.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Opens a directory in which the user may create files, but not list them (open(2)).
_PLACE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
#: Links that are followed, as by the kernel (path_resolution(7)).
_MOST_LINKS = 40


def open_path(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a file as `os.open` does, with the care described above. Raises `OSError`.

    With O_EXCL, a link is followed too: the file to which it leads must not exist.
    """
    if not _is_privileged():
        return os.open(os.path.realpath(path) if flags & os.O_EXCL else path, flags | os.O_CLOEXEC, mode)
    with _walked(os.fsdecode(path)) as (here, name, owners):
        if flags & os.O_CREAT:
            # Checked before a file is created: it would belong to root.
            _check(here, owners)
        descriptor = os.open(name, flags | _no_follow(here) | os.O_CLOEXEC, mode, dir_fd=here)
        try:
            _check(descriptor, owners)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def open_directory(path: str | os.PathLike[str]) -> int:
    """Open a directory, to use it as `dir_fd`. Raises `OSError`."""
    return open_path(path or ".", _PLACE)


@contextmanager
def parent_directory(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Open the directory of a path; yield its descriptor, and the last name of the path. Raises `OSError`.

    Work with the name and `dir_fd`: the directory stays the same one, even if the path leads elsewhere meanwhile.
    """
    directory, name = os.path.split(os.fspath(path))
    descriptor = open_directory(directory)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


def make_directory(path: str | os.PathLike[str], user: int | None = None, group: int | None = None) -> None:
    """Create a missing directory with mode 0700, owned by `user` and `group` if given, and its missing parents.

    A directory that exists is not changed. Raises `OSError`.
    """
    try:
        os.close(open_directory(path))
    except FileNotFoundError:
        path = os.path.abspath(path)
        _make_parents(os.path.dirname(path))
        with parent_directory(path) as (parent, name):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                # Another worker has made it, if it is a directory.
                os.close(os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=parent))
                return
            if user is not None or group is not None:
                _give(parent, name, -1 if user is None else user, -1 if group is None else group)


def _make_parents(path: str) -> None:
    try:
        os.close(open_directory(path))
    except FileNotFoundError:
        _make_parents(os.path.dirname(path))
        with parent_directory(path) as (parent, name), suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)


def _give(parent: int, name: str, user: int, group: int) -> None:
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # The owner of the parent can exchange its entries. An empty directory is all that root may lose by that.
        if os.fstat(made).st_uid != os.geteuid() or os.listdir(made):
            raise OSError(errno.EAGAIN, "another user replaced it")
        os.fchown(made, user, group)
    finally:
        os.close(made)


def alterable_part(path: str) -> str:
    """Return the part of a path that a user other than root can replace or change; an empty string if there is none.

    A missing file cannot be made by others if its directory cannot be changed by them.
    """
    path = os.path.realpath(path)
    parts = [os.sep]
    for name in path.split(os.sep)[1:]:
        parts.append(os.path.join(parts[-1], name))
    for part in parts:
        with suppress(FileNotFoundError):
            status = os.stat(part)
            # In a directory with the sticky bit, others cannot rename what they do not own.
            is_open = status.st_mode & 0o022 and not (status.st_mode & stat.S_ISVTX and part != path)
            if status.st_uid or is_open:
                return part
    return ""


def _is_privileged() -> bool:
    return os.geteuid() == 0 and hasattr(os, "O_PATH")


@contextmanager
def _walked(path: str) -> Iterator[tuple[int, str, set[int]]]:
    """Walk a path to its last component, which is not a link, and may be missing.

    Yield the descriptor of its directory, its name, and the other users whose links were followed.
    """
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    owners: set[int] = set()
    links = 0
    rest = _parts(path)
    here = os.open("/" if path.startswith("/") else ".", _PLACE)
    try:
        while True:
            part = rest.pop()
            if link := _read_link(here, part):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target, owner = link
                owners |= {owner} - {os.geteuid()}
                rest += _parts(target)
                below = os.open("/", _PLACE) if target.startswith("/") else os.dup(here)
            elif rest:
                below = os.open(part, _PLACE | _no_follow(here), dir_fd=here)
            else:
                yield here, part, owners
                return
            os.close(here)
            here = below
    finally:
        os.close(here)


def _parts(path: str) -> list[str]:
    """Split a path into its components, the last one first. `x/` is the directory x, and ends in `.`."""
    return [part or "." for part in path.split("/")][::-1]


def _read_link(here: int, part: str) -> tuple[str, int] | None:
    """Return the target and the owner of a link; None for anything else, and for a missing file."""
    try:
        entry = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(entry)
        is_link = stat.S_ISLNK(status.st_mode) and _no_follow(here)
        return (os.readlink("", dir_fd=entry), status.st_uid) if is_link else None
    finally:
        os.close(entry)


def _no_follow(here: int) -> int:
    """Return O_NOFOLLOW, or 0 in /proc, where only the kernel can follow links, and no user can replace them."""
    with suppress(OSError):
        if os.fstat(here).st_dev == os.stat("/proc").st_dev:
            return 0
    return os.O_NOFOLLOW


def _check(descriptor: int, owners: set[int]) -> None:
    """Raise `OSError` if one of the users whose links were followed does not own what they lead to."""
    owner = os.fstat(descriptor).st_uid
    for other in owners - {owner}:
        raise OSError(
            errno.ELOOP, f"a link of user {other} leads to a file of user {owner}, and is not followed as root"
        )
