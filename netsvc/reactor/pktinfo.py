"""The local address of each datagram on a wildcard port, so that its answer can leave from there (ip(7), ipv6(7)).

Otherwise the system chooses the source of an answer by its route. If a host has several addresses, that can be another
one than was asked, and a connected client, a NAT or a firewall drops the answer.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

__all__ = [
    "CONTROL_ROOM",
    "Source",
    "find_info",
    "is_default_source",
    "join_controls",
    "local_address",
    "request_info",
    "source_of",
]

#: The ancillary data of sendmsg(2) that sets the source of a datagram; None if the system chooses it.
Source = list[tuple[int, int, bytes]] | None

#: Not in Python's socket module; from Linux's bits/in.h.
_IP_PKTINFO = 8
#: Interface, local address, destination; and address, interface.
_IPV4_INFO, _IPV6_INFO = struct.Struct("=i4s4s"), struct.Struct("=16si")
_IPV4_TYPE, _IPV6_TYPE = (socket.IPPROTO_IP, _IP_PKTINFO), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
#: The header of an item of ancillary data: the length of both, level, type; and what its place is a multiple of.
_CONTROL, _ALIGNMENT = struct.Struct("@Nii"), struct.calcsize("@N")
#: Bytes for ancillary data: a socket that was passed to us may have other options on.
CONTROL_ROOM = 256


def request_info(bound: socket.socket) -> bool:
    """Make a socket report the local address of each datagram, if it is bound to every address and is able to."""
    try:
        if not ipaddress.ip_address(bound.getsockname()[0]).is_unspecified:
            return False
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            bound.setsockopt(*_IPV4_TYPE, 1)
    except (OSError, ValueError):
        return False
    return True


def find_info(controls: bytes) -> bytes:
    """Return what the system reports of the local address among all ancillary data (cmsg(3)); empty if nothing."""
    place = 0
    while place + _CONTROL.size <= len(controls):
        length, level, kind = _CONTROL.unpack_from(controls, place)
        if length < _CONTROL.size:
            break
        if (level, kind) in (_IPV4_TYPE, _IPV6_TYPE):
            return controls[place + _CONTROL.size : place + length]
        place += -(-length // _ALIGNMENT) * _ALIGNMENT
    return b""


def join_controls(controls: list[tuple[int, int, bytes]]) -> bytes:
    """Return ancillary data as the system writes it, from what `socket.recvmsg` makes of it."""
    parts = ((_CONTROL.pack(_CONTROL.size + len(data), level, kind), data) for level, kind, data in controls)
    return b"".join(head + data + bytes(-len(data) % _ALIGNMENT) for head, data in parts)


def source_of(info: bytes) -> Source:
    """Return what makes an answer leave from the address that a datagram with this `info` was sent to."""
    if len(info) == _IPV4_INFO.size:
        # For a broadcast and a multicast this is the address of the interface. Without the interface, the route of the
        # answer is the system's.
        local = _IPV4_INFO.unpack(info)[1]
        return [(*_IPV4_TYPE, _IPV4_INFO.pack(0, local, bytes(4)))]
    if len(info) != _IPV6_INFO.size:
        return None
    local, interface = _IPV6_INFO.unpack(info)
    address = ipaddress.IPv6Address(local)
    if address.is_multicast or (address.ipv4_mapped is not None and not _is_unicast(address.ipv4_mapped)):
        return None
    return [(*_IPV6_TYPE, _IPV6_INFO.pack(local, interface if address.is_link_local else 0))]


def local_address(source: Source, family: int) -> tuple[Any, ...] | None:
    """Return the address that `source` sets, as bind(2) takes it, with port 0; None if the system chooses it."""
    if source is None:
        return None
    [(_, _, data)] = source
    if family == socket.AF_INET:
        return (socket.inet_ntop(family, _IPV4_INFO.unpack(data)[1]), 0)
    local, interface = _IPV6_INFO.unpack(data)
    return (socket.inet_ntop(family, local), 0, 0, interface)


def _is_unicast(address: ipaddress.IPv4Address) -> bool:
    return not address.is_multicast and address != ipaddress.IPv4Address("255.255.255.255")


def is_default_source(source: Source, family: int, peer: Any) -> bool:
    """Return whether the system would choose this source for a datagram to `peer` anyway."""
    if source is None:
        return True
    [(_, _, data)] = source
    asked = _IPV6_INFO.unpack(data)[0] if family == socket.AF_INET6 else _IPV4_INFO.unpack(data)[1]
    try:
        # Sends nothing.
        with socket.socket(socket.AddressFamily(family), socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            chosen = probe.getsockname()[0]
    except OSError:
        return False
    return bool(socket.inet_pton(family, chosen.partition("%")[0]) == asked)
