"""Finds the sockets that systemd has opened for this process: socket activation (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.endpoints import _SystemdParser

from netsvc.address import Address
from netsvc.interfaces import Kind
from netsvc.text import escape

__all__ = ["not_passed", "passed_socket"]

_TYPES = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_SETTINGS = {"stream": "ListenStream=", "datagram": "ListenDatagram="}


def passed_socket(address: Address) -> socket.socket:
    """Return a copy of the socket that a `systemd:` address names; what was passed stays open, for a reload.

    Sockets of one `.socket` unit share their name: so it is the one of the address's kind. Raises `ValueError` if there
    is none, or more than one.
    """
    # Reading the environment takes the descriptors out of it, and Twisted has done so for its own endpoint.
    inherited: Any = _SystemdParser._sddaemon
    numbers = inherited.inheritedDescriptors()
    name = address.arguments.get("name")
    if name is None:
        index = address.arguments["index"]
        if int(index) >= len(numbers):
            raise ValueError(not_passed(index))
        wanted, found = index, [numbers[int(index)]]
    else:
        wanted = name
        found = [number for number, given in zip(numbers, inherited._names, strict=False) if given == name]
        if not found:
            raise ValueError(not_passed(name))
    copies = [socket.socket(fileno=os.dup(number)) for number in found]
    fitting = [each for each in copies if _fits(each, address.kind)]
    if len(fitting) == 1:
        [copy] = fitting
        copies.remove(copy)
    for each in copies:
        each.close()
    if len(fitting) == 1:
        return copy
    raise ValueError(_unfit(escape(wanted), address.kind, len(fitting)))


def _fits(passed: socket.socket, kind: Kind) -> bool:
    # A stream that does not listen is a connection.
    return passed.type == _TYPES[kind] and (kind == "datagram" or _listens(passed))


def _listens(passed: socket.socket) -> bool:
    return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _unfit(wanted: str, kind: Kind, count: int) -> str:
    if count:
        return (
            f"systemd passed {count} {kind} sockets named {wanted}; give each a .socket unit of its own, with its "
            "FileDescriptorName="
        )
    cure = f"its .socket unit needs {_SETTINGS[kind]}{' and Accept=no' if kind == 'stream' else ''}"
    return f"the socket {wanted} that systemd passed is not one for {kind}s; {cure}"


def not_passed(wanted: str) -> str:
    """Say that systemd has not passed a socket."""
    return f"systemd passed no socket {escape(wanted)}; is it run by a .socket unit?"
