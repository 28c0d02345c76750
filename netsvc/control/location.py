"""Where the control sockets of a process are.

    BASE/config-NAME/control           of the process that runs with a configuration file
    BASE/config-NAME/pid-PID-NS        the same process by its pid; in BASE/user-UID if it runs without a file

BASE is `/run/netsvc`, `$XDG_RUNTIME_DIR/netsvc`, `/run/user/UID/netsvc`, or `control` in the directory of `--state`:
the first that root or the user of the process owns, and in which that user has or can create a directory. Only root
can create one in `/run/netsvc`. So there its owner is the user to whom root has given this configuration file, and
clients trust the process of this user.

Where there is no such directory, the sockets have names in the abstract namespace (unix(7)), `@netsvc-config-NAME-NS`
and `@netsvc-pid-PID-NS`. Any user can take these: a client believes nothing before it has checked the user and the
process at the other end.

NS is the number of the pid namespace of the process. Containers may share the network, and with it the abstract
namespace, or a directory.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress

from netsvc.base.paths import make_directory, open_directory

#: The directory of the system, in which root alone creates directories.
SYSTEM_BASE = "/run/netsvc"
#: The name of the socket of a configuration file in its directory.
CONFIG_SOCKET = "control"

#: Characters of a readable key; the path of a socket has at most 107 bytes (unix(7)).
_LONGEST_KEY = 50
_ABSTRACT = "\0netsvc-"
#: The name of a socket of a pid, as a path or as /proc writes an abstract name.
_PID_SOCKET = re.compile(r"(?:@netsvc-|/(?:.*/)?)pid-([1-9]\d{0,9})-(\d+)")


def _namespace() -> int:
    """Return the number of the pid namespace of this process (namespaces(7)); 0 if the system does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def config_keys(path: str) -> list[str]:
    """Return the names of the directories for the process that was started with the configuration file at `path`.

    There are two if the path has a symbolic link: a new release may change it, and the file may be named either way.
    """
    return [_config_key(place) for place in dict.fromkeys((os.path.abspath(path), os.path.realpath(path)))]


def _config_key(path: str) -> str:
    # As systemd escapes a path, so that a unit can name the directory (systemd.unit(5), RuntimeDirectory=).
    escaped = re.sub(rb"[^\w./]", _escape, os.fsencode(path.strip("/"))).replace(b"/", b"-").decode("ascii")
    if len(escaped) > _LONGEST_KEY:
        # Loads OpenSSL, which takes longer than the rest of a command.
        import hashlib

        escaped = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return f"config-{escaped}"


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\x%02x" % found[0][0]


def pid_key(pid: int) -> str:
    """Return the name of the socket of a process of this pid namespace."""
    return f"pid-{pid}-{_namespace()}"


def read_pid(name: str) -> int:
    """Return the pid in the name of a socket, as in /proc/net/unix; 0 if the socket is not a process's."""
    match = _PID_SOCKET.fullmatch(name)
    return int(match[1]) if match else 0


def abstract_pid_name(pid: int) -> str:
    """Return the abstract name of the socket of a process."""
    return f"{_ABSTRACT}{pid_key(pid)}"


def abstract_config_name(key: str) -> str:
    """Return the abstract name of the socket of a configuration file."""
    return f"{_ABSTRACT}{key}-{_namespace()}"


def bases(user: int, state: str | None = None) -> list[str]:
    """List the directories that may be BASE for a process of this user, the preferred one first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    found = [SYSTEM_BASE]
    # Root's sockets are in the system's directory, not in that user's whose environment root has.
    if user:
        found += [f"{runtime}/netsvc"] if os.path.isabs(runtime) else []
        found += [f"/run/user/{user}/netsvc"]
    if state is not None:
        found.append(os.path.join(os.path.abspath(state), "control"))
    return list(dict.fromkeys(found))


def prepare_directories(
    config: str | None, state: str | None = None, user: int | None = None, group: int | None = None
) -> Sequence[str]:
    """Return the directories for the sockets of a process, and create them for `user` and `group` if necessary.

    The first is for its pid. Without a file it is the only one. Returns none if there is no BASE.
    """
    owner = os.geteuid() if user is None else user
    keys = [f"user-{owner}"] if config is None else config_keys(config)
    for base in bases(owner, state):
        with suppress(OSError):
            if _make_base(base, owner, group):
                directories = [os.path.join(base, key) for key in keys]
                for directory in directories:
                    _make_own(directory, owner, group)
                return directories
    return ()


def _make_base(base: str, owner: int, group: int | None) -> bool:
    """Create BASE if possible; return whether only root and the owner can change it. Raises `OSError`."""
    if base != SYSTEM_BASE:
        # Its parent exists: a runtime directory or a state directory.
        os.close(open_directory(os.path.dirname(base)))
        _make(base, owner, group)
    elif os.geteuid() == 0:
        with suppress(FileExistsError):
            os.mkdir(base)
            # Whatever the umask: users must reach their own directories in it.
            os.chmod(base, 0o755)  # noqa: S103
    status = os.lstat(base)
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, owner) and not status.st_mode & 0o022


def _make(directory: str, owner: int, group: int | None) -> None:
    is_ours = owner == os.geteuid()
    make_directory(directory, None if is_ours else owner, None if is_ours else group)


def _make_own(directory: str, owner: int, group: int | None) -> None:
    """Create a directory of the owner, which only the owner can change. Raises `OSError`."""
    _make(directory, owner, group)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != owner and os.path.dirname(directory) == SYSTEM_BASE:
            # Root starts this configuration for another user now.
            os.fchown(descriptor, owner, -1 if group is None else group)
        if os.fstat(descriptor).st_uid != owner:
            raise PermissionError(f"{directory} belongs to another user")
        # Others could hold a lock of a directory that they can open.
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def is_granted(name: str, user: int) -> bool:
    """Return whether root has given the directory of this socket to this user: see the top of this module."""
    directory = os.path.dirname(name)
    if os.path.dirname(directory) != SYSTEM_BASE:
        return False
    try:
        base, given = os.stat(SYSTEM_BASE), os.stat(directory)
    except OSError:
        return False
    return not base.st_uid and not base.st_mode & 0o022 and given.st_uid == user


def is_same_file(config: str, pid: int) -> bool:
    """Return whether a path is the same file for a process as for this one.

    In a mount namespace of its own it may be another one. True if that cannot be determined.
    """
    try:
        mine, its = (os.stat(f"/proc/{each}/ns/mnt").st_ino for each in ("self", pid))
    except OSError:
        return True
    if mine == its:
        return True
    try:
        return os.path.samefile(config, f"/proc/{pid}/root{os.path.abspath(config)}")
    except OSError:
        return False
