"""Opens ports: an address and a protocol in, listening ports out."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol

from netsvc.address import Address

__all__ = ["ListenError", "Listening", "check_address", "listen"]

#: Connections that may wait for accept(). Twisted's own 50 refuses clients in a burst; the kernel cuts this
#: to net.core.somaxconn.
BACKLOG = 4096
#: Bytes. No UDP datagram is longer than 65,507; Twisted's own 8,192 would cut one in silence.
LONGEST_DATAGRAM = 65535
#: Bytes. Linux lets a UNIX socket send what fits its send buffer, 212,992 bytes unless it asks for more.
LONGEST_UNIX_DATAGRAM = 212992

#: Endpoints whose backlog may be given, and is 50 where it is not.
_WITH_BACKLOG = ("tcp", "tcp6", "ssl", "unix")
_FIRST_UNPRIVILEGED_PORT = 1024


class ListenError(Exception):
    """A port could not be opened; the text says which, why, and the cure."""


class Listening:
    """The open ports of one listener: one, or two where a bare port had to be bound for each IP version."""

    def __init__(self, ports: list[IListeningPort]) -> None:
        self.ports = ports

    def places(self) -> list[str]:
        """Name where it listens, with the real port numbers."""
        return [_place(port) for port in self.ports]

    def take_waiting(self) -> None:
        """Read what the kernel has already accepted for us: closing the port would throw it away."""
        for port in self.ports:
            getattr(port, "doRead", lambda: None)()

    def stop(self) -> Deferred[Any]:
        """Close the ports. Fires when they are closed; never fails."""
        return DeferredList([maybeDeferred(port.stopListening) for port in self.ports], consumeErrors=True)


def _place(port: IListeningPort) -> str:
    host: Any = port.getHost()
    name = getattr(host, "name", None)
    if name is not None:
        return os.fsdecode(name)
    # Only a listener for every interface has this address: it serves IPv4 through the same socket.
    shown = "*" if host.host == "::" and _serves_ipv4(port) else host.host
    return f"[{shown}]:{host.port}" if ":" in shown else f"{shown}:{host.port}"


def _serves_ipv4(port: Any) -> bool:
    try:
        return not port.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except (AttributeError, OSError):
        return True


def check_address(address: Address) -> None:
    """Raise `ValueError` if Twisted cannot make sense of an address. Opens no port, but reads certificates."""
    if address.kind == "stream" and address.scheme != "inet":
        _endpoint(address, None)
    elif address.scheme == "systemd":
        _systemd_descriptor(address)


def listen(
    reactor: Any, address: Address, protocol: IProtocolFactory | AbstractDatagramProtocol
) -> Deferred[Listening]:
    """Open the port or ports of one address for a stream factory or a datagram protocol.

    The Deferred has its result at once for every kind of address but those of endpoint plugins that take
    their time. It fails with `ListenError`.
    """
    return _listen(reactor, address, protocol)


@inlineCallbacks
def _listen(reactor: Any, address: Address, protocol: Any) -> Any:
    try:
        if address.scheme == "inet":
            opened = _listen_inet(reactor, address, protocol)
        elif address.kind == "stream":
            opened = [(yield _endpoint(address, reactor).listen(protocol))]
        elif address.scheme == "unixgram":
            opened = [_listen_unix_datagram(reactor, address, protocol)]
        else:
            descriptor, family = _systemd_descriptor(address)
            opened = [reactor.adoptDatagramPort(descriptor, family, protocol, LONGEST_DATAGRAM)]
    except (CannotListenError, OSError, ValueError) as error:
        raise ListenError(explain(error, address)) from error
    return Listening(opened)


def _listen_inet(reactor: Any, address: Address, protocol: Any) -> list[IListeningPort]:
    def bind(host: str, port: int) -> IListeningPort:
        if address.kind == "stream":
            return cast(IListeningPort, reactor.listenTCP(port, protocol, backlog=BACKLOG, interface=host))
        return cast(IListeningPort, reactor.listenUDP(port, protocol, interface=host, maxPacketSize=LONGEST_DATAGRAM))

    if address.host is not None:
        return [bind(_literal(address.host, address.kind), address.port)]
    try:
        everywhere = bind("::", address.port)
    except CannotListenError as error:
        if getattr(error.socketError, "errno", None) not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        # A machine without IPv6.
        return [bind("0.0.0.0", address.port)]
    return [everywhere]


def _literal(host: str, kind: str) -> str:
    """Return the IP address of a host name, the first the system knows; Twisted binds to addresses only."""
    wanted = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
    try:
        found = socket.getaddrinfo(host, None, type=wanted, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL, f"no address is known for {host} ({reason})") from None
    return str(found[0][4][0])


def _endpoint(address: Address, reactor: Any) -> Any:
    text = address.text
    if address.scheme in _WITH_BACKLOG and ":backlog=" not in text:
        text = f"{text}:backlog={BACKLOG}"
    try:
        return serverFromString(reactor, text)
    except (KeyError, IndexError) as error:
        if address.scheme == "systemd":
            raise ValueError(f"systemd passed no socket {error.args[0]!r}; is it run by a .socket unit?") from None
        raise ValueError(f"{error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"wrong arguments for {address.scheme}: ({error})") from None
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  (an endpoint plugin, or OpenSSL, may raise anything)
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _listen_unix_datagram(reactor: Any, address: Address, protocol: Any) -> IListeningPort:
    path, mode = address.arguments["path"], int(address.arguments.get("mode", "666"), 8)
    # A socket file outlives its process, and a datagram socket has no lock file: ask whether anybody is there.
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
    return cast(IListeningPort, reactor.listenUNIXDatagram(path, protocol, LONGEST_UNIX_DATAGRAM, mode))


def _systemd_descriptor(address: Address) -> tuple[int, int]:
    from twisted.python.systemd import ListenFDs

    inherited = ListenFDs.fromEnvironment()
    family = getattr(socket, f"AF_{address.arguments.get('domain', '')}", None)
    if family is None:
        raise ValueError("systemd: needs domain=INET, INET6 or UNIX")
    try:
        if "name" in address.arguments:
            return inherited.inheritedNamedDescriptors()[address.arguments["name"]], family
        return inherited.inheritedDescriptors()[int(address.arguments["index"])], family
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"systemd passed no socket {error.args[0]!r}; is it run by a .socket unit?") from None


def explain(error: Exception, address: Address) -> str:
    """Say in one line why a port cannot be opened, and what to do about it."""
    cause: Any = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    port: Any = getattr(error, "port", None) or address.port
    if number == errno.EADDRINUSE:
        holder = _holder(address, port)
        return f"{port} is in use{holder}; stop what uses it or choose another address"
    if number in (errno.EACCES, errno.EPERM):
        if isinstance(port, int) and 0 < port < _FIRST_UNPRIVILEGED_PORT:
            return (
                f"port {port} is privileged; choose one from {_FIRST_UNPRIVILEGED_PORT} up, or start as root "
                "with --uid and --gid, or grant CAP_NET_BIND_SERVICE"
            )
        return f"permission denied for {port}"
    if number == errno.EADDRNOTAVAIL:
        reason = cause.strerror if cause.strerror.startswith("no address") else "this machine has no such address"
        return f"{reason}; try 127.0.0.1, or a bare port for every interface"
    return str(getattr(cause, "strerror", None) or cause)


def _holder(address: Address, port: Any) -> str:
    """Name the addresses at which the system shows `port` in use; nothing where it does not tell."""
    if not isinstance(port, int):
        return " by another process"
    tables = ("tcp", "tcp6") if address.kind == "stream" else ("udp", "udp6")
    listening = "0A" if address.kind == "stream" else "07"
    found = []
    for table in tables:
        try:
            rows = Path("/proc/net", table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            host, _, number = fields[1].partition(":")
            if int(number, 16) == port and fields[3] == listening:
                found.append(_proc_address(host))
    return f" at {', '.join(dict.fromkeys(found))}" if found else ""


def _proc_address(text: str) -> str:
    # /proc/net writes an address as 32-bit words in the machine's byte order.
    words = [int(text[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(text), 8)]
    packed = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
