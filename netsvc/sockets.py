"""Binds sockets of our own, and gives them to a reactor."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import udp, unix
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from netsvc.address import Address

__all__ = ["BACKLOG", "DATAGRAMS_A_TURN", "adopt", "bound_socket", "bound_unix_datagram", "read_datagrams"]

#: Connections that may wait for accept(). Twisted's own 50 refuses clients in a burst; the kernel cuts this
#: to net.core.somaxconn.
BACKLOG = 4096
#: Bytes. No UDP datagram is longer than 65,507; Twisted's own 8,192 would cut one in silence.
LONGEST_DATAGRAM = 65535
#: Bytes. Linux lets a UNIX socket send what fits its send buffer, 212,992 bytes unless it asks for more.
LONGEST_UNIX_DATAGRAM = 212992
#: Datagrams that a port reads before it is the turn of others. Twisted counts bytes (256 KiB): empty datagrams
#: are none, and a flood of them would keep the reactor for as long as it lasts. It is more than the kernel keeps
#: for one socket (212,992 bytes, at 768 or more for a datagram), so that a drain loses none.
DATAGRAMS_A_TURN = 512

_log = Logger(namespace="netsvc.sockets")


def bound_socket(address: Address) -> socket.socket:
    """Bind a socket of our own: Twisted's own have no say in IPV6_V6ONLY, and none for a scoped address."""
    kind = socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM
    for family, place in _places(address, kind):
        bound = socket.socket(family, kind)
        try:
            bound.setblocking(False)
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
            adopted = _AdoptedUnixDatagramPort(reactor, bound, protocol)
            adopted.startListening()
        else:
            adopted = reactor.adoptDatagramPort(bound.fileno(), bound.family, protocol, LONGEST_DATAGRAM)
            if isinstance(adopted, udp.Port):
                adopted.doRead = partial(read_datagrams, adopted)  # type: ignore[method-assign]
    return adopted


def read_datagrams(port: Any) -> None:
    """Do what `doRead` of Twisted's datagram ports does, for so many datagrams and not for so many bytes."""
    for _ in range(DATAGRAMS_A_TURN):
        # The protocol may have closed the port.
        if not port.connected:
            return
        try:
            data, peer = port.socket.recvfrom(port.maxPacketSize)
        except (BlockingIOError, InterruptedError, ConnectionRefusedError):
            return
        try:
            # Of an IPv6 address, host and port alone, as Twisted has it.
            port.protocol.datagramReceived(data, peer[:2] if port.addressFamily == socket.AF_INET6 else peer)
        except Exception:  # noqa: BLE001  (one datagram's fault must not stop the port)
            _log.failure("a datagram could not be taken")


class _AdoptedUnixDatagramPort(unix.DatagramPort):
    """A UNIX datagram port over a socket that was bound by somebody else; Twisted adopts only UDP ones."""

    def __init__(self, reactor: Any, bound: socket.socket, protocol: Any) -> None:
        super().__init__(bound.getsockname(), protocol, LONGEST_UNIX_DATAGRAM, reactor=reactor)
        self._bound = bound.dup()

    def _bindSocket(self) -> None:
        self.connected = 1
        self.socket = self._bound
        self.fileno = self.socket.fileno  # type: ignore[method-assign]

    def doRead(self) -> None:
        read_datagrams(self)


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
