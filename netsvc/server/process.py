"""The process itself: its signals, privileges, file descriptors, and its exit with an error."""

from __future__ import annotations

import atexit
import codecs
import os
import pwd
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger, LoggingFile

from netsvc.base.errors import StartError
from netsvc.base.paths import alterable_part
from netsvc.base.signals import Signals, process_signals
from netsvc.base.text import escape
from netsvc.log.formats import PRINTED

#: The line of /proc/PID/uid_map that maps all users of the system to themselves (user_namespaces(7)).
_ALL_USERS = ("0", "0", "4294967295")

#: What each signal does to the main process; docs/reference/process.md has this table.
SIGNALS: Mapping[str, str] = {
    "SIGTERM": "drain, and end; repeated signals are ignored",
    "SIGINT": "drain, and end; a second one cuts the drain short",
    "SIGHUP": "read the configuration again, as `netsvc reload` does; when its terminal was closed, drain and end",
    "SIGUSR1": "reopen the log files, after they were rotated",
    "SIGUSR2": "upgrade, as `netsvc upgrade` does",
}

_log = Logger(namespace="netsvc")

#: Descriptors: more than a machine has ports and memory for. The hard limit may be infinity.
_ENOUGH = 1 << 20


def allow_descriptors() -> None:
    """Raise the soft limit of open files, commonly 1,024, to the hard limit: each connection needs a descriptor.

    The default soft limit is low for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def root_warnings(
    options: Mapping[str, Any], user: int | None = None, users: Path = Path("/proc/self/uid_map")
) -> list[str]:
    """Return a warning if the process will run as root. `options` are the twistd options, which may drop privileges.

    Root in a container is root, unless a user namespace maps it to another user; `users` is the file of that map.
    """
    if (os.geteuid() if user is None else user) != 0 or options.get("uid"):
        return []
    with suppress(OSError):
        if tuple(users.read_text("ascii").split()) != _ALL_USERS:
            return []
    return [
        "running as root: a compromised service gives root access; start it as another user, or with "
        "twistd --uid USER --gid GROUP, which binds the ports first"
    ]


def prepare_shedding(options: Mapping[str, Any]) -> None:
    """Check that twistd can drop privileges as `options` request. Raises `StartError`.

    twistd applies `chroot` before `uid`: the files that it needs after that must exist below the new root.
    """
    root, user = options.get("chroot"), options.get("uid")
    base = (root or "").rstrip("/")
    shown, errors = escape(base), []
    # The reactor opens /dev/null to keep a descriptor in reserve.
    if root and not os.path.exists(f"{base}/dev/null"):
        cure = f"mkdir -p {shown}/dev && mknod -m 666 {shown}/dev/null c 1 3"
        errors.append(f"--chroot {shown}: there is no {shown}/dev/null; make one: {cure}")
    if root and user is not None and not _is_listed(user, f"{base}/etc/passwd"):
        cure = f"mkdir -p {shown}/etc && getent passwd {user} >> {shown}/etc/passwd"
        errors.append(f"--chroot {shown}: {shown}/etc/passwd does not list the user {user} of --uid; {cure}")
    if user is not None and not root:
        try:
            pwd.getpwuid(user)
        except KeyError:
            errors.append(f"--uid {user}: there is no such user; give one that getent passwd lists")
    if root and user is not None and os.geteuid() == 0:
        errors += _alterable(root)
    if errors:
        raise StartError("\n".join(errors))
    if root:
        # getaddrinfo() needs this codec, and Python would look for its module below the new root.
        codecs.lookup("idna")


def _alterable(root: str) -> list[str]:
    """Return an error for a root directory that others can change.

    twistd reads the groups of the user in it while it is root, for which the C library loads modules from there.
    """
    for name in ("", "etc", "etc/passwd", "etc/group", "etc/nsswitch.conf", "lib", "lib64", "usr/lib", "usr/lib64"):
        if part := alterable_part(os.path.join(root, name)):
            shown = escape(part)
            return [
                f"--chroot {escape(root)}: {shown} can be changed by users other than root, who could become root by "
                f"that; chown root {shown} && chmod go-w {shown}"
            ]
    return []


def _is_listed(user: int, path: str) -> bool:
    try:
        with open(path, errors="replace") as users:
            return any(line.split(":")[2:3] == [str(user)] for line in users)
    except OSError:
        return False


def take_over_signals(reactor: Any, force: Callable[[], None]) -> None:
    """Wrap the reactor's handlers of SIGTERM and SIGINT: the first signal stops the reactor.

    Repeated signals are ignored (container runtimes send several, and the reactor would log a traceback for each), but
    a repeated SIGINT calls `force`. Call it in the main thread when the reactor runs; a reactor without handlers gets
    none.
    """
    received: list[int | None] = []

    def on_signal(number: int, frame: FrameType | None) -> Any:
        received.append(number)
        if len(received) == 1:
            return originals[number](number, frame)
        if number == signal.SIGINT:
            force()

    originals: dict[int, Callable[[int, FrameType | None], Any]] = {}
    # Once the reactor is stopping for another reason, a signal must not stop it again.
    reactor.addSystemEventTrigger("before", "shutdown", received.append, None)
    for number in (signal.SIGTERM, signal.SIGINT):
        original = signal.getsignal(number)
        if callable(original) and original is not signal.default_int_handler:
            originals[number] = original
            signal.signal(number, on_signal)


def reload_on_hangup(reactor: Any, reload: Callable[[], None], signals: Signals = process_signals) -> None:
    """Call `reload` in the reactor on SIGHUP; several signals at once count as one."""
    waiting = False

    def on_hangup() -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            reactor.callFromThread(hung_up)

    def hung_up() -> None:
        nonlocal waiting
        waiting = False
        reload()

    signals.act_on(signal.SIGHUP, on_hangup)


def upgrade_on_signal(reactor: Any, upgrade: Callable[[], object], signals: Signals = process_signals) -> None:
    """Call `upgrade` in the reactor on SIGUSR2."""
    signals.act_on(signal.SIGUSR2, lambda: reactor.callFromThread(upgrade))


def start_error(errors: Sequence[str]) -> StartError:
    """Return the error that ends the process, after printing its lines where the user can see them.

    If twistd has redirected stderr to the log, the lines go to the real stderr, and to the log if that is elsewhere.
    Python does not print them again.
    """
    error = StartError("\n".join(errors))
    if isinstance(sys.stderr, LoggingFile):
        _print(error)
        for line in errors:
            _log.critical("{line}", line=line, **{PRINTED: True})
        error.code = 1
    return error


def _print(error: StartError) -> None:
    if sys.__stderr__ is not None:
        print(error, file=sys.__stderr__, flush=True)


def stop_reactor(reactor: Any) -> None:
    """Stop the reactor in its next turn, as a signal does. Does nothing if it is already stopping."""

    def stop() -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    reactor.callFromThread(stop)


def die(reason: str) -> None:
    """End the process from inside the running reactor, with `reason` on stderr and exit status 1."""
    from twisted.internet import reactor

    def leave() -> None:
        sys.stdout.flush()
        os._exit(1)

    _print(StartError(reason))
    _log.critical("{reason}", reason=reason, **{PRINTED: True})
    # The reactor swallows a SystemExit, and twistd's own cleanup must run.
    atexit.register(leave)
    reactor.stop()
