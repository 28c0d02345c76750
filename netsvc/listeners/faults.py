"""Explains why a port cannot be opened."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from netsvc.address import Address

__all__ = ["explain"]

_FIRST_UNPRIVILEGED_PORT = 1024
#: Holds no port for a socket with SO_REUSEADDR (include/net/tcp_states.h).
_TIME_WAIT = "06"


def explain(error: Exception, address: Address) -> str:
    """Say in one line why a port cannot be opened, and what to do about it."""
    cause: Any = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    port: Any = getattr(error, "port", None) or address.port
    port = os.fsdecode(port) if isinstance(port, bytes) else port
    if number == errno.EADDRINUSE and (place := address.arguments.get("path") or port) and isinstance(place, str):
        path = Path(place)
        if path.exists() and not path.is_socket():
            return f"{path} is a file, and no socket; remove it or choose another address"
    # How Twisted says that the lock file of a UNIX socket belongs to a process that runs.
    if number == errno.EADDRINUSE or cause == "Cannot acquire lock":
        what = address.arguments.get("path") or (f"port {port}" if isinstance(port, int) else port)
        return f"{what} is in use{_holders(address, port)}; stop what uses it or choose another address"
    if number in (errno.EACCES, errno.EPERM) and isinstance(port, int) and 0 < port < _FIRST_UNPRIVILEGED_PORT:
        return (
            f"port {port} is privileged; choose one from {_FIRST_UNPRIVILEGED_PORT} up, or start as root "
            "with --uid and --gid, or grant CAP_NET_BIND_SERVICE"
        )
    if number == errno.EADDRNOTAVAIL:
        reason = cause.strerror if cause.strerror.startswith("no address") else "this machine has no such address"
        return f"{reason}; try 127.0.0.1, or a bare port for every interface"
    if number == errno.ENOENT:
        return "the directory of that path does not exist; create it first"
    return str(getattr(cause, "strerror", None) or cause)


def _holders(address: Address, port: Any) -> str:
    """Name the addresses at which the system shows `port` in use; nothing where it does not tell."""
    if not isinstance(port, int) or address.arguments.get("path"):
        return ""
    tables = ("tcp", "tcp6") if address.kind == "stream" else ("udp", "udp6")
    found: dict[str, None] = {}
    for table in tables:
        with suppress(OSError):
            for row in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                _, local, _, status, *_ = row.split()
                host, _, number = local.partition(":")
                if int(number, 16) == port and status != _TIME_WAIT:
                    found[f"{_proc_host(host)}:{port}"] = None
    return f" at {', '.join(found)}" if found else ""


def _proc_host(text: str) -> str:
    # /proc/net writes an address as 32-bit words in the machine's byte order.
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    host = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return f"[{host}]" if ":" in host else host
