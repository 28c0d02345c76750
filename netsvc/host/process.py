"""What belongs to the whole process: its signals, and how many descriptors it may open."""

from __future__ import annotations

import codecs
import os
import pwd
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from netsvc.errors import StartError
from netsvc.text import escape

__all__ = [
    "SIGNALS",
    "allow_descriptors",
    "prepare_shedding",
    "root_warnings",
    "take_over_hangup",
    "take_over_signals",
    "take_over_upgrade",
]

#: What the first user of a system is there in a user namespace that has all of its users (user_namespaces(7)).
_ALL_USERS = ("0", "0", "4294967295")

#: What each signal does to the process that was started; docs/operations.md is made of it.
SIGNALS: Mapping[str, str] = {
    "SIGTERM": "drain, and end; a repetition changes nothing",
    "SIGINT": "the same; a second one does not wait any longer",
    "SIGHUP": "read the configuration again, as `netsvc reload` does; when its terminal is gone, drain and end",
    "SIGUSR1": "open log files anew, after something has moved them",
    "SIGUSR2": "upgrade, as `netsvc upgrade` does",
}

#: Descriptors. More than any machine has ports and memory for; a hard limit may be "infinity".
_ENOUGH = 1 << 20


def allow_descriptors() -> None:
    """Raise the soft limit of open files, commonly 1,024, to the hard one: each connection is a descriptor.

    The soft limit is low for the sake of programs that use select(2), as Go and nginx know too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def root_warnings(
    options: Mapping[str, Any], user: int | None = None, users: Path = Path("/proc/self/uid_map")
) -> list[str]:
    """Say that the process will run as root, if it will: twistd sheds that where `options` tell it to.

    Root of a container is root, unless a user namespace makes somebody else of it: `users` is the map of that.
    """
    if (os.geteuid() if user is None else user) != 0 or options.get("uid"):
        return []
    with suppress(OSError):
        if tuple(users.read_text("ascii").split()) != _ALL_USERS:
            return []
    return [
        "running as root: whoever gets the better of a service has the whole system; start it as another user, or with "
        "twistd --uid USER --gid GROUP, which binds the ports first"
    ]


def prepare_shedding(options: Mapping[str, Any]) -> None:
    """See that twistd can do what `options` tell it, once the ports are bound. Raises `StartError`.

    Those are `uid`, and `chroot`, which it does first: whatever it needs then it has to find there.
    """
    root, user = options.get("chroot"), options.get("uid")
    base = (root or "").rstrip("/")
    shown, mistakes = escape(base), []
    # Before a reactor listens it opens this, to have a descriptor left for a peer when there are no more.
    if root and not os.path.exists(f"{base}/dev/null"):
        cure = f"mkdir -p {shown}/dev && mknod -m 666 {shown}/dev/null c 1 3"
        mistakes.append(f"--chroot {shown}: there is no {shown}/dev/null; make one: {cure}")
    if root and user is not None and not _is_listed(user, f"{base}/etc/passwd"):
        cure = f"mkdir -p {shown}/etc && getent passwd {user} >> {shown}/etc/passwd"
        mistakes.append(f"--chroot {shown}: {shown}/etc/passwd does not list the user {user} of --uid; {cure}")
    if user is not None and not root:
        try:
            pwd.getpwuid(user)
        except KeyError:
            mistakes.append(f"--uid {user}: there is no such user; give one that getent passwd lists")
    if mistakes:
        raise StartError("\n".join(mistakes))
    if root:
        # getaddrinfo() needs it for any name or address, and Python would look for its file in the other root.
        codecs.lookup("idna")


def _is_listed(user: int, path: str) -> bool:
    try:
        with open(path, errors="replace") as users:
            return any(line.split(":")[2:3] == [str(user)] for line in users)
    except OSError:
        return False


def take_over_signals(reactor: Any, force: Callable[[], None]) -> None:
    """Stand before the reactor's handlers of SIGTERM and SIGINT: each stops the reactor, once.

    Repeats change nothing (a container runtime sends several, and the reactor would log a traceback for
    each), but a repeated SIGINT calls `force`: somebody at the keyboard does not want to wait. To be called
    when the reactor runs, in the main thread; where the reactor has no handlers, nothing is done.
    """
    received: list[int | None] = []

    def on_signal(number: int, frame: FrameType | None) -> Any:
        received.append(number)
        if len(received) == 1:
            return originals[number](number, frame)
        if number == signal.SIGINT:
            force()

    originals: dict[int, Callable[[int, FrameType | None], Any]] = {}
    # A reactor that something else has stopped is not to be stopped by a signal once more.
    reactor.addSystemEventTrigger("before", "shutdown", received.append, None)
    for number in (signal.SIGTERM, signal.SIGINT):
        original = signal.getsignal(number)
        if callable(original) and original is not signal.default_int_handler:
            originals[number] = original
            signal.signal(number, on_signal)


def take_over_hangup(reactor: Any, reload: Callable[[], None], has_terminal: Callable[[], bool] | None = None) -> None:
    """Have SIGHUP call `reload` from the reactor; several that come at once are one.

    But when the terminal that the process belongs to is gone, and SIGHUP says that, it is a SIGTERM: who closes the
    window of a server that runs in it does not want to have it for ever. Not so if SIGHUP was ignored (nohup).
    """
    looks = has_terminal or _has_terminal
    had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and looks()
    waiting = False

    def on_hangup(_number: int, _frame: FrameType | None) -> None:
        nonlocal waiting
        if had_terminal and not looks():
            signal.raise_signal(signal.SIGTERM)
        elif not waiting:
            waiting = True
            reactor.callFromThread(hung_up)

    def hung_up() -> None:
        nonlocal waiting
        waiting = False
        reload()

    signal.signal(signal.SIGHUP, on_hangup)


def take_over_upgrade(reactor: Any, upgrade: Callable[[], object]) -> None:
    """Have SIGUSR2 call `upgrade` from the reactor."""
    signal.signal(signal.SIGUSR2, lambda number, frame: reactor.callFromThread(upgrade))


def _has_terminal() -> bool:
    """Tell whether there is a terminal that controls this process (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
