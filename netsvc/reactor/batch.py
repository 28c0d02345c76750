"""Datagrams received several at a time, by recvmmsg(2), and sent several at a time, by UDP_SEGMENT (udp(7)).

Both are of Linux, and neither needs a copy of the socket's state. Python wraps recvmsg(2), which makes a list, a tuple
and the text of an address for each datagram; recvmmsg fills memory that is made once.

Where there is the C extension, it receives, and it also sends the answers to what was received together, with
sendmmsg(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from netsvc.reactor.extension import native
from netsvc.reactor.pktinfo import CONTROL_ROOM

__all__ = [
    "BATCH",
    "MOST_IN_SERIES",
    "MOST_SERIES_BYTES",
    "Received",
    "make_datagrams",
    "make_receiver",
    "series_control",
]

#: Datagrams that are received at a time.
BATCH: int = 8 if native is None else native.BATCH
#: Bytes for one datagram, the longest of which has 65,527, and for its address, a `sockaddr_in6`.
_ROOM, _NAME_ROOM = 65536, 28
#: Addresses of peers that are kept in Python's form.
_MOST_ADDRESSES = 4096
#: Datagrams of one series, and their bytes together: what every Linux with UDP_SEGMENT takes.
MOST_IN_SERIES, MOST_SERIES_BYTES = 64, 65000

#: From linux/udp.h.
_UDP_SEGMENT = 103


class _Part(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """`struct msghdr`."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Message(ctypes.Structure):
    """`struct mmsghdr`, with the length of what was received."""

    _fields_ = [("header", _Header), ("length", ctypes.c_uint32)]


class _Addresses(dict[Any, tuple[Any, Any]]):
    """Addresses of peers, as the system wrote them, to those that a protocol gets and those that `sendto` takes."""

    def __init__(self, read: Callable[[Any], tuple[Any, Any]]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, name: Any) -> tuple[Any, Any]:
        if len(self) >= _MOST_ADDRESSES:
            self.clear()
        found = self[name] = self._read(name)
        return found


def _read_ipv4(name: bytes) -> tuple[Any, Any]:
    """Read a `sockaddr_in`."""
    address = (socket.inet_ntop(socket.AF_INET, name[4:8]), int.from_bytes(name[2:4], "big"))
    return address, address


def _read_ipv6(name: bytes) -> tuple[Any, Any]:
    """Read a `sockaddr_in6`. A protocol gets host and port only, as from Twisted."""
    host, number = socket.inet_ntop(socket.AF_INET6, name[8:24]), int.from_bytes(name[2:4], "big")
    flow, scope = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
    return (host, number), (host, number, flow, scope)


#: A datagram, its addresses as in `_Addresses`, and its ancillary data.
Received = tuple[bytes, tuple[Any, Any], bytes]


@dataclass(frozen=True)
class _Memory:
    """What all ports of the process receive into, one after the other.

    `slots` has for each datagram: where it begins, where its address and its ancillary data are, and the place of its
    length among the words of `area`.
    """

    receive: Any
    area: mmap.mmap
    #: The headers and the ancillary data: their address, their place in `area`, and what is there before each call.
    address: int
    headers: slice
    fresh: bytes
    slots: tuple[tuple[int, slice, slice, int], ...]
    #: What the headers point to.
    parts: Any


@cache
def _memory(family: int) -> _Memory | None:
    """Make the memory for sockets of a family; None where there is no recvmmsg."""
    receive = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None)
    if sys.platform != "linux" or receive is None:
        return None
    receive.restype = ctypes.c_int
    receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    header, name_size = ctypes.sizeof(_Message), 28 if family == socket.AF_INET6 else 16
    names = BATCH * _ROOM
    headers = names + BATCH * _NAME_ROOM
    controls = headers + BATCH * header
    end = controls + BATCH * CONTROL_ROOM
    # Private: a forked process has its own. The system provides only the pages that long datagrams need.
    area = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    parts = (_Part * BATCH)(*(_Part(base + number * _ROOM, _ROOM - 1) for number in range(BATCH)))
    slots = []
    for number in range(BATCH):
        place, name = headers + number * header, names + number * _NAME_ROOM
        control = controls + number * CONTROL_ROOM
        area[place : place + header] = bytes(
            _Message(
                _Header(
                    name=base + name,
                    name_length=_NAME_ROOM,
                    parts=ctypes.addressof(parts) + number * ctypes.sizeof(_Part),
                    part_count=1,
                    control=base + control,
                    control_length=CONTROL_ROOM,
                )
            )
        )
        length = (place + _Message.length.offset) // 4
        slots.append((number * _ROOM, slice(name, name + name_size), slice(control, control + CONTROL_ROOM), length))
    if receive(-1, base + headers, BATCH, 0, None) >= 0 or ctypes.get_errno() != errno.EBADF:
        # The system does not have it, or forbids it.
        return None
    return _Memory(receive, area, base + headers, slice(headers, end), area[headers:end], tuple(slots), parts)


def _is_udp(bound: Any) -> bool:
    return isinstance(bound, socket.socket) and bound.family in (socket.AF_INET, socket.AF_INET6)


def make_datagrams(bound: Any, *, controls: bool) -> Any:
    """Return a `netsvc.reactor.native.Datagrams` for a UDP socket; None if it is not one, or without the extension."""
    return native.Datagrams(bound, controls) if native is not None and _is_udp(bound) else None


def make_receiver(bound: Any, *, controls: bool) -> Callable[[], list[Received]] | None:
    """Return what receives up to `BATCH` datagrams of a UDP socket; None if it is not such a socket, or not possible.

    Fewer than `BATCH` mean that no more wait. Ancillary data is returned if `controls`, with zeros behind it. Raises
    `OSError`.
    """
    if not _is_udp(bound):
        return None
    memory = _memory(bound.family)
    if memory is None:
        return None
    receive, area, at_headers, headers, fresh = (
        memory.receive,
        memory.area,
        memory.address,
        memory.headers,
        memory.fresh,
    )
    addresses = _Addresses(_read_ipv6 if bound.family == socket.AF_INET6 else _read_ipv4)
    words = memoryview(area).cast("I")
    slots, fileno, dontwait = memory.slots, bound.fileno, socket.MSG_DONTWAIT

    def receive_some() -> list[Received]:
        area[headers] = fresh
        count = receive(fileno(), at_headers, BATCH, dontwait, None)
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        # Slices of a map are copies.
        if controls:
            return [
                (area[start : start + words[length]], addresses[area[name]], area[control])
                for start, name, control, length in slots[:count]
            ]
        return [
            (area[start : start + words[length]], addresses[area[name]], b"")
            for start, name, _, length in slots[:count]
        ]

    return receive_some


def series_control(size: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of sendmsg(2) that sends each `size` bytes as a datagram of their own."""
    return [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size))]
