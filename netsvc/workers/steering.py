"""Keeps what comes new away from sockets that are about to be closed, among those that share a port.

The kernel chooses one of them for each connection and each UDP peer, by a program that any of them may bring
(socket(7), SO_ATTACH_REUSEPORT_CBPF). A connection that is on its way to a socket which is closed would be reset.
"""

from __future__ import annotations

import ctypes
import socket
import struct

__all__ = ["SETTLE", "steer", "unsteer"]

#: Seconds for connections that are on their way to arrive: some round trips on earth.
SETTLE = 0.6

#: From Linux's asm-generic/socket.h; Python's socket module has neither.
_ATTACH, _DETACH = 51, 68
#: An instruction of linux/filter.h, and the program's: load, divide and keep the rest, return.
_INSTRUCTION = struct.Struct("HBBI")
_LOAD, _MODULO, _RETURN = 0x20, 0x94, 0x16
#: What is loaded: a number for each packet, of which a connection has one that counts; or one that all of a peer have.
_RANDOM, _HASH = (0x1_0000_0000 - 0x1000) + 56, (0x1_0000_0000 - 0x1000) + 32


def steer(bound: socket.socket, count: int) -> None:
    """Have all that comes new go to the first `count` of the sockets that were bound to the port of `bound`.

    The order is that in which they began to listen, or were bound. Raises `OSError`.
    """
    load = _RANDOM if bound.type == socket.SOCK_STREAM else _HASH
    code = b"".join(
        _INSTRUCTION.pack(*each) for each in ((_LOAD, 0, 0, load), (_MODULO, 0, 0, count), (_RETURN, 0, 0, 0))
    )
    program = ctypes.create_string_buffer(code, len(code))
    bound.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HP", 3, ctypes.addressof(program)))


def unsteer(bound: socket.socket) -> None:
    """Let the kernel choose as it does without a program. Raises `OSError`, also if there is none."""
    bound.setsockopt(socket.SOL_SOCKET, _DETACH, struct.pack("i", 0))
