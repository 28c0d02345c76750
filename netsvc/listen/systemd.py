"""Finds the sockets that systemd has opened for this process: socket activation (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from twisted.python.systemd import ListenFDs

from netsvc.base.text import escape
from netsvc.base.values import Kind
from netsvc.listen.sockets import is_bound_to
from netsvc.plan.address import Address

_TYPES = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_SETTINGS = {"stream": "ListenStream=", "datagram": "ListenDatagram="}


def keep_from_children() -> None:
    """Make processes that this one executes not inherit the sockets that systemd has passed (sd_listen_fds(3)).

    They would keep the ports open.
    """
    for _, number in activated():
        # The number may be wrong in an environment that systemd has not made.
        with suppress(OSError):
            os.set_inheritable(number, False)


def activated() -> list[tuple[str, int]]:
    """List the names and descriptors of all sockets that systemd has passed."""
    if "LISTEN_FDS" not in os.environ and "twisted.internet.endpoints" not in sys.modules:
        # Most processes get none, and the import takes time.
        return []
    # Reading the environment takes the descriptors out of it, and Twisted has done so for its own endpoint.
    from twisted.internet.endpoints import _SystemdParser

    found: Any = _SystemdParser._sddaemon
    return list(zip(found._names, found.inheritedDescriptors(), strict=False))


def activate(sockets: Sequence[tuple[str, int]]) -> None:
    """Use the sockets that systemd has passed to the predecessor of this process."""
    from twisted.internet.endpoints import _SystemdParser

    names, numbers = zip(*sockets, strict=True)
    _SystemdParser._sddaemon = ListenFDs(list(numbers), names)


def systemd_socket(address: Address) -> socket.socket:
    """Return a duplicate of the socket that a `systemd:` address names. The original stays open for a reload.

    The sockets of one `.socket` unit share their name; the one of the address's kind is used. Raises `ValueError` if
    there is none, or more than one.
    """
    passed = activated()
    name = address.arguments.get("name")
    if name is None:
        wanted = address.arguments["index"]
        found = [number for _, number in passed][int(wanted) :][:1]
    else:
        wanted = name
        found = [number for given, number in passed if given == name]
    if not found:
        raise ValueError(not_passed(wanted))
    copies = [socket.socket(fileno=os.dup(number)) for number in found]
    fitting = [each for each in copies if _fits(each, address.kind)]
    for each in copies:
        if len(fitting) != 1 or each is not fitting[0]:
            each.close()
    if len(fitting) != 1:
        raise ValueError(_unfit(escape(wanted), address.kind, len(fitting)))
    return fitting[0]


def passed_socket(address: Address, reactor: Any) -> socket.socket | None:
    """Return a duplicate of the socket that systemd has passed and that is bound as `address` would be, or None.

    It must not be open in the reactor already: another address has named it.
    """
    for _, copy in _copies():
        if _fits(copy, address.kind) and is_bound_to(copy, address) and not _is_open(copy, reactor):
            return copy
        copy.close()
    return None


def passed_at(port: int, kind: Kind) -> str:
    """Return the name of the socket that systemd has passed with a port, as an address; empty if there is none."""
    for name, copy in _copies():
        with copy:
            place = copy.getsockname()
            if port and _fits(copy, kind) and isinstance(place, tuple) and place[1] == port:
                return f"systemd:{name}"
    return ""


def is_activated(bound: Any) -> bool:
    """Return whether a socket is one that systemd has passed, or a duplicate."""
    found = False
    for _, copy in _copies():
        with copy:
            found = found or os.path.sameopenfile(copy.fileno(), bound.fileno())
    return found


def unused(sockets: Iterable[Any]) -> list[str]:
    """Return the names of the sockets that systemd has passed and that are none of `sockets`."""
    used = {os.fstat(each.fileno()).st_ino for each in sockets}
    names = []
    for name, copy in _copies():
        with copy:
            if os.fstat(copy.fileno()).st_ino not in used:
                names.append(name)
    return names


def _copies() -> Iterator[tuple[str, socket.socket]]:
    """Yield the names and duplicates of the sockets that systemd has passed. The caller closes them."""
    for name, number in activated():
        # An endpoint of Twisted closes the one that it has used.
        with suppress(OSError):
            yield name, socket.socket(fileno=os.dup(number))


def _is_open(passed: socket.socket, reactor: Any) -> bool:
    inode = os.fstat(passed.fileno()).st_ino
    readers: list[Any] = getattr(reactor, "getReaders", list)()
    return any(os.fstat(each.fileno()).st_ino == inode for each in readers if each.fileno() >= 0)


def _fits(passed: socket.socket, kind: Kind) -> bool:
    # A stream that does not listen is a connection.
    listens = kind == "datagram" or bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return passed.type == _TYPES[kind] and listens


def _unfit(wanted: str, kind: Kind, count: int) -> str:
    if count:
        return (
            f"systemd passed {count} {kind} sockets named {wanted}; give each a .socket unit of its own, with its "
            "FileDescriptorName="
        )
    cure = f"its .socket unit needs {_SETTINGS[kind]}{' and Accept=no' if kind == 'stream' else ''}"
    return f"the socket {wanted} that systemd passed is not one for {kind}s; {cure}"


def not_passed(wanted: str) -> str:
    """Return the error message for a socket that systemd has not passed."""
    return f"systemd passed no socket {escape(wanted)}; is it run by a .socket unit?"
