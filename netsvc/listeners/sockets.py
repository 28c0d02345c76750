"""Binds sockets of our own, and gives them to a reactor."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IListeningPort
from twisted.internet.posixbase import PosixReactorBase

from netsvc.address import Address
from netsvc.udp import LONGEST_DATAGRAM, UDPPort, UNIXDatagramPort

__all__ = ["BACKLOG", "adopt", "bound_socket", "bound_unix_datagram"]

#: Connections that may wait for accept(). Twisted's own 50 refuses clients in a burst; the kernel cuts this
#: to net.core.somaxconn.
BACKLOG = 4096


def bound_socket(address: Address, *, beside: bool = False) -> socket.socket:
    """Bind a socket of our own: Twisted's own have no say in IPV6_V6ONLY, and none for a scoped address.

    With `beside`, others that have SO_REUSEPORT as well may have the port (socket(7)).
    """
    kind = socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM
    for family, place in _places(address, kind):
        bound = socket.socket(family, kind)
        try:
            bound.setblocking(False)
            if beside:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if kind == socket.SOCK_STREAM:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Whatever the system's default: every interface means IPv4 as well (RFC 3493, section 5.3).
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host is not None)
            bound.bind(place)
            if kind == socket.SOCK_STREAM:
                bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            if address.host is None and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                # A machine without IPv6.
                continue
            raise
        return bound
    raise OSError(errno.EADDRNOTAVAIL, "no address is known")


def _places(address: Address, kind: socket.SocketKind) -> Iterator[tuple[socket.AddressFamily, Any]]:
    if address.host is None:
        if socket.has_ipv6:
            yield socket.AF_INET6, ("::", address.port)
        yield socket.AF_INET, ("0.0.0.0", address.port)
        return
    try:
        found = socket.getaddrinfo(address.host, address.port, type=kind, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL, f"no address is known for {address.host} ({reason})") from None
    family, _, _, _, place = found[0]
    yield family, place


def adopt(reactor: Any, bound: socket.socket, protocol: Any) -> IListeningPort:
    """Give a bound socket to the reactor, which keeps a copy of the descriptor."""
    with bound:
        bound.setblocking(False)
        if bound.type == socket.SOCK_STREAM:
            adopted: IListeningPort = reactor.adoptStreamPort(bound.fileno(), bound.family, protocol)
        elif bound.family == socket.AF_UNIX:
            adopted = _started(UNIXDatagramPort(reactor, bound, protocol))
        elif isinstance(reactor, PosixReactorBase):
            adopted = _started(
                UDPPort._fromListeningDescriptor(reactor, bound.fileno(), bound.family, protocol, LONGEST_DATAGRAM)
            )
        else:
            adopted = reactor.adoptDatagramPort(bound.fileno(), bound.family, protocol, LONGEST_DATAGRAM)
    return adopted


def _started(port: Any) -> Any:
    """Start a port of ours. Whatever its protocol raises then, the socket is closed."""
    try:
        port.startListening()
    except BaseException:
        port.socket.close()
        raise
    return port


def bound_unix_datagram(path: str, mode: int) -> socket.socket:
    """Bind a UNIX datagram socket, over the file of one that nobody serves any more. Raises `OSError`."""
    # A socket file outlives its process, and a datagram socket has no lock file: ask whether anybody is there.
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bound.bind(path)
        os.chmod(path, mode)
    except OSError:
        bound.close()
        raise
    return bound
