"""Binds the sockets of an address, and explains why one cannot be bound."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from netsvc.base.paths import open_directory
from netsvc.base.text import host_port
from netsvc.plan.address import Address, bound_path, is_group, split_endpoint, written_path
from netsvc.reactor.accept import BACKLOG

_FIRST_UNPRIVILEGED_PORT = 1024
#: Not in Python's socket module; from Linux's linux/in.h and linux/in6.h.
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
#: The errors of a socket of an address family that the kernel lacks (IPv6, with ipv6.disable=1), and of binding an
#: address that the machine does not have.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
#: The errors of what this user may not do, and another may.
_FORBIDDEN = (errno.EACCES, errno.EPERM)
#: The state in /proc/net/tcp that does not block a port for a socket with SO_REUSEADDR (include/net/tcp_states.h).
_TIME_WAIT = "06"


def bind(address: Address, *, beside: bool = False) -> socket.socket:
    """Bind a socket; Twisted does not set IPV6_V6ONLY, nor accept a scoped address. Raises `OSError`.

    With `beside`, other sockets with SO_REUSEPORT may be bound to the same port (socket(7)).
    """
    kind = socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM
    for family, place in _candidates(address, kind):
        bound = None
        try:
            bound = socket.socket(family, kind)
            bound.setblocking(False)
            if beside:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if kind == socket.SOCK_STREAM:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Set regardless of the system's default: every interface includes IPv4 (RFC 3493, section 5.3).
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host is not None)
            bound.bind(place)
            if kind == socket.SOCK_STREAM:
                bound.listen(BACKLOG)
            else:
                join_group(bound, (address.host or "").partition("%")[2])
        except OSError as error:
            if bound is not None:
                bound.close()
            if address.host is None and error.errno in _NOT_HERE:
                # A machine without IPv6.
                continue
            raise
        return bound
    raise OSError(errno.EADDRNOTAVAIL, "no address is known")


def _interface_index(interface: str) -> int:
    """Return the number of an interface; 0 for none. Raises `OSError`."""
    if not interface or (interface.isdecimal() and len(interface) < 10):
        return int(interface or 0)
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise OSError(errno.ENODEV, f"no interface is called {interface}") from None


def join_group(bound: socket.socket, interface: str = "") -> None:
    """Make a socket that is bound to a multicast group a member of it: binding alone receives nothing.

    `interface` is a name or number; by default the system chooses the one on the route to the group. Does nothing for
    any other socket, and for one that is a member already. Raises `OSError`.
    """
    name = bound.getsockname()
    if bound.type != socket.SOCK_DGRAM or not isinstance(name, tuple) or not is_group(name[0]):
        return
    group = ipaddress.ip_address(name[0].partition("%")[0])
    index = _interface_index(interface)
    # Without this, a socket gets what comes to the groups of any socket of the host, at any interface.
    if isinstance(group, ipaddress.IPv4Address):
        level, option, only_own = socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _IP_MULTICAST_ALL
        value = struct.pack("=4s4si", group.packed, bytes(4), index)
    else:
        level, option, only_own = socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _IPV6_MULTICAST_ALL
        value = struct.pack("=16si", group.packed, index or name[3])
    with suppress(OSError):
        bound.setsockopt(level, only_own, 0)
    try:
        bound.setsockopt(level, option, value)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise


def _candidates(address: Address, kind: socket.SocketKind) -> Iterator[tuple[socket.AddressFamily, Any]]:
    if address.host is None:
        if socket.has_ipv6:
            yield socket.AF_INET6, ("::", address.port)
        yield socket.AF_INET, ("0.0.0.0", address.port)
        return
    if is_group(address.host):
        # getaddrinfo(3) takes no interface for most groups.
        group, _, interface = address.host.partition("%")
        if ":" in group:
            yield socket.AF_INET6, (group, address.port, 0, _interface_index(interface))
        else:
            yield socket.AF_INET, (group, address.port)
        return
    try:
        found = _look_up(address.host, address.port, kind)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL, f"no address is known for {address.host} ({reason})") from None
    # A name with several addresses has been resolved.
    yield found[0]


def _look_up(host: str, port: int, kind: socket.SocketKind) -> list[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, place) for family, _, _, _, place in found))


def resolve(address: Address) -> list[Address]:
    """Return an address for each IP address of a host name that this machine has.

    An address without a name is returned as it is, and so is one whose name has no address here: binding it explains
    why.
    """
    if address.scheme != "inet" or address.host is None or _is_ip(address.host):
        return [address]
    kind = socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM
    try:
        found = _look_up(address.host, address.port, kind)
    except (OSError, UnicodeError):
        return [address]
    hosts = [_numeric_host(place) for family, place in found if _is_here(family, place)]
    prefixes = address.text.removesuffix(address.endpoint)
    resolved = []
    for host in hosts:
        place = host_port(host, address.port)
        resolved.append(replace(address, text=f"{prefixes}{place}", endpoint=place, host=host))
    return resolved or [address]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _numeric_host(place: Any) -> str:
    """Return the host of a socket address, with the interface of a link-local one."""
    scope = place[3] if len(place) == 4 else 0
    return f"{place[0]}%{scope}" if scope and "%" not in place[0] else str(place[0])


def _is_here(family: socket.AddressFamily, place: Any) -> bool:
    """Return whether the machine has an address. Binds a datagram socket to it, on a port that the system chooses."""
    try:
        _probe(family, place)
    except OSError as error:
        return error.errno not in _NOT_HERE
    return True


def _probe(family: socket.AddressFamily, place: Any) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((place[0], 0, *place[2:]))


def unusable(address: Address) -> str:
    """Return why this machine cannot bind an address now, as `explain` does; an empty string if it can.

    Opens no port and changes nothing. So it does not see that a port is in use, or that this user lacks a privilege.
    """
    try:
        if address.scheme in ("unix", "unixgram"):
            path = unix_path(address)
            if not path.startswith("@"):
                os.close(open_directory(os.path.dirname(path)))
                if os.path.exists(path) and not Path(path).is_socket():
                    return _not_a_socket(path)
        elif address.scheme in ("inet", "tcp", "tcp6", "ssl") and address.host is not None:
            if is_group(address.host):
                # To join it would be seen in the network.
                _interface_index(address.host.partition("%")[2])
            else:
                for family, place in _candidates(address, socket.SOCK_DGRAM):
                    _probe(family, place)
    except OSError as error:
        return "" if error.errno in _FORBIDDEN else explain(error, address)
    return ""


def _not_a_socket(path: str) -> str:
    return f"{path} is a file, not a socket; remove it or choose another address"


def unix_path(address: Address) -> str:
    """Return the path in a `unix:` or `unixgram:` address."""
    positional, named = split_endpoint(address.endpoint)
    return named.get("path") or named.get("address") or "".join(positional[1:2])


def is_bound_to(bound: socket.socket, address: Address) -> bool:
    """Return whether a socket is bound as `address` would be: to the same path, or the same host and port."""
    name = bound.getsockname()
    if address.scheme in ("unix", "unixgram"):
        path = unix_path(address)
        if path.startswith("@"):
            return isinstance(name, bytes) and name == os.fsencode(bound_path(path))
        return isinstance(name, str) and bool(name) and os.path.abspath(name) == os.path.abspath(path)
    if address.scheme not in ("inet", "tcp", "tcp6", "ssl") or not isinstance(name, tuple) or name[1] != address.port:
        return False
    host = address.host
    if host is None:
        return is_dual(bound) or (name[0] == "0.0.0.0" and not _is_here(socket.AF_INET6, ("::", 0)))
    return not is_dual(bound) and _is_ip(host) and ipaddress.ip_address(name[0]) == ipaddress.ip_address(host)


def is_dual(bound: socket.socket) -> bool:
    """Return whether an IP socket serves every address, IPv4 and IPv6."""
    return bound.getsockname()[0] == "::" and not bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def bind_unix(bound: socket.socket, path: str | bytes, mode: int) -> None:
    """Bind a UNIX socket, whose file gets this mode. Raises `OSError`.

    The umask sets the mode: after a chmod(2) of the path, another user who may write in the directory could have
    replaced the file by a link, and root would change the mode of another file.
    """
    name = os.fsdecode(path)
    if not name.startswith("\0"):
        # Where root may not follow a link, nothing is bound. A directory that is replaced now gets only a socket.
        os.close(open_directory(os.path.dirname(name)))
    umask = os.umask(0o777 & ~mode)
    try:
        bound.bind(path)
    finally:
        os.umask(umask)


def bind_unix_datagram(path: str, mode: int) -> socket.socket:
    """Bind a UNIX datagram socket; replace the file of a socket whose process has ended. Raises `OSError`."""
    # The file outlives its process, and a datagram socket has no lock file; so try to connect.
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bind_unix(bound, path, mode)
    except OSError:
        bound.close()
        raise
    return bound


def bind_beside(address: Address, others: Sequence[Any]) -> socket.socket:
    """Bind a socket to the port of open sockets, which otherwise do not share it. Raises `OSError`."""
    try:
        _set_shared(others, True)
        bound = bind(address, beside=True)
        # Shared only during the bind, so that no other process can bind the port.
        _set_shared([bound], False)
        return bound
    finally:
        _set_shared(others, False)


def _set_shared(sockets: Sequence[Any], shared: bool) -> None:
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)


def explain(error: Exception, address: Address) -> str:
    """Return one line with the reason why a port cannot be opened, and the cure."""
    cause: Any = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    port: Any = getattr(error, "port", None) or address.port
    port = written_path(os.fsdecode(port)) if isinstance(port, str | bytes) else port
    if number == errno.EADDRINUSE and (place := address.arguments.get("path") or port) and isinstance(place, str):
        path = Path(place)
        if path.exists() and not path.is_socket():
            return _not_a_socket(place)
    # Twisted's error if a running process holds the lock file of a UNIX socket.
    if number == errno.EADDRINUSE or cause == "Cannot acquire lock":
        what = address.arguments.get("path") or (f"port {port}" if isinstance(port, int) else port)
        return f"{what} is in use{_holders(address, port)}; stop what uses it or choose another address"
    if number in _FORBIDDEN and isinstance(port, int) and 0 < port < _FIRST_UNPRIVILEGED_PORT:
        return (
            f"port {port} is privileged; choose one from {_FIRST_UNPRIVILEGED_PORT} up, or start as root "
            "with --uid and --gid, or grant CAP_NET_BIND_SERVICE"
        )
    if number in (errno.ENODEV, errno.EINVAL, errno.EADDRNOTAVAIL) and is_group(address.host or ""):
        host = (address.host or "").partition("%")[0]
        example = host_port(f"{host}%eth0", address.port)
        return f"the group {host} cannot be joined ({cause.strerror}); name an interface, as in {example}"
    if number == errno.EADDRNOTAVAIL:
        reason = cause.strerror if cause.strerror.startswith("no address") else "this machine has no such address"
        return f"{reason}; try 127.0.0.1, or a bare port for every interface"
    if number == errno.ENOENT:
        return "the directory of that path does not exist; create it first"
    return str(getattr(cause, "strerror", None) or cause)


def _holders(address: Address, port: Any) -> str:
    """Return the addresses at which `port` is in use, as text; empty if they are not known."""
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
