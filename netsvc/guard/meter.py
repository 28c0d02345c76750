"""Keeps a connection to so many bytes a second, where the kernel does not (`netsvc.guard.pace`).

They are counted where Twisted hands bytes to the kernel and takes them from it, at the socket, below TLS: an object
stands in the socket's place. It takes what may go from `Bucket`s, of which connections may share some, in portions.

When there is nothing left, the socket seems not to be ready, and its transport is taken out of the reactor until there
is. All that its protocol asks for meanwhile, to pause, resume, half-close, close or abort, happens or is remembered.
A peer's reset is seen within half a second or so.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from netsvc.guard.allowance import MOST, Allowance, Flushing, Reading, Writing
from netsvc.guard.buckets import Bucket
from netsvc.guard.tcp_info import socket_transport

__all__ = ["Source", "meter"]

_recv = socket.socket.recv
_send = socket.socket.send


#: Makes the buckets of a peer's connection when it first needs them: many connections are idle from the beginning.
Source = Callable[[str], Sequence[Bucket]]


def meter(transport: Any, clock: Any, read: Source | None, write: Source | None, peer: str = "") -> None:
    """Let a connection read and write what its buckets hold, and no more. None is no limit.

    Each connection may go beyond what is left by one call's worth (64 KiB or a quarter of the burst), which is taken
    from what comes later: over time it is exact. Those that wait for a shared bucket take turns. Of a transport
    without a socket nothing is metered.
    """
    lowest = socket_transport(transport)
    connection = getattr(lowest, "socket", None)
    if connection is None or not (read or write):
        return
    kind = _KINDS[False if read else None, False if write else None]
    lowest.socket = kind(connection, lowest, clock, peer)
    lowest.socket._reading, lowest.socket._writing = read, write
    # Its descriptor stays the same.
    lowest.fileno = lowest.socket.fileno


class _Metered(socket.socket):
    """A socket in another's place. What is not metered is the socket's own method, with nothing in between.

    What is metered and far from its limit is counted with as little as that takes: these methods run for every message.
    When a portion is used up and there is no other, the socket changes its class to one whose methods look first.
    """

    __slots__ = (
        "_clock",
        "_peer",
        "_read_most",
        "_readable",
        "_reading",
        "_transport",
        "_writable",
        "_write_most",
        "_writing",
    )

    #: Whether reading, or writing, is far from its limit; None where it has none.
    easy_to_read: bool | None = None
    easy_to_write: bool | None = None

    def __init__(self, replaced: socket.socket, transport: Any, clock: Any, peer: str) -> None:
        kind = (replaced.family, replaced.type, replaced.proto)
        super().__init__(*kind, fileno=replaced.detach())
        self.setblocking(False)
        # Here is what is read for every message; it costs a tenth more in another object.
        self._readable = self._writable = 0
        self._read_most = self._write_most = 0
        # An `Allowance`, or what makes its buckets, or None.
        self._reading: Any = None
        self._writing: Any = None
        self._transport = transport
        self._clock = clock
        self._peer = peer

    def close(self) -> None:
        """Close the socket, give back what was not used, and wait for nothing any more."""
        if self._readable or isinstance(self._reading, Allowance):
            self._read_allowance().end(self._readable)
        if self._writable or isinstance(self._writing, Allowance):
            self._write_allowance().end(self._writable)
        self._readable = self._writable = 0
        self._reading = self._writing = self._transport = None
        super().close()

    def _read_allowance(self) -> Any:
        if not isinstance(self._reading, Allowance):
            self._reading = Reading(self._transport, self._clock, self._reading(self._peer))
        return self._reading

    def _write_allowance(self) -> Any:
        if not isinstance(self._writing, Allowance):
            kind = Flushing if hasattr(self._transport, "wait_to_write") else Writing
            self._writing = kind(self._transport, self._clock, self._writing(self._peer))
        return self._writing

    def _ask_to_read(self) -> None:
        before = self._reading
        left, most = self._read_allowance().ask()
        if most >= MOST:
            # What is far from its limit needs none for its first portion: many connections never use it up.
            self._reading = before
        self._may_read(left, most)

    def _ask_to_write(self) -> None:
        before = self._writing
        left, most = self._write_allowance().ask()
        if most >= MOST:
            # As above.
            self._writing = before
        self._may_write(left, most)

    def _may_read(self, left: int, most: int) -> None:
        self._readable, self._read_most = left, most
        if self.easy_to_read is not (most >= MOST):
            self.__class__ = _KINDS[most >= MOST, self.easy_to_write]

    def _may_write(self, left: int, most: int) -> None:
        self._writable, self._write_most = left, most
        if self.easy_to_write is not (most >= MOST):
            self.__class__ = _KINDS[self.easy_to_read, most >= MOST]


class _Reads(_Metered):
    """A socket from which no more is read than may be."""

    __slots__ = ()

    easy_to_read: bool | None = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read; see recv(2)."""
        if self._readable <= 0:
            self._ask_to_read()
        data = _recv(self, min(size, self._read_most), flags)
        self._readable = left = self._readable - len(data)
        if left <= 0:
            self._may_read(*self._read_allowance().spend(left))
        return data

    def recvmsg(self, size: int, ancillary: int = 0, flags: int = 0) -> Any:
        """Read, and the descriptors that come along; see recvmsg(2)."""
        if self._readable <= 0:
            self._ask_to_read()
        message = super().recvmsg(min(size, self._read_most), ancillary, flags)
        self._readable = left = self._readable - len(message[0])
        if left <= 0:
            self._may_read(*self._read_allowance().spend(left))
        return message


class _ReadsEasily(_Reads):
    """The same, far from the limit."""

    __slots__ = ()

    easy_to_read = True

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read; see recv(2)."""
        if flags or size > MOST:
            return super().recv(size, flags)
        data = _recv(self, size)
        self._readable = left = self._readable - len(data)
        if left <= 0:
            self._may_read(*self._read_allowance().spend(left))
        return data


class _Writes(_Metered):
    """A socket to which no more is written than may be."""

    __slots__ = ()

    easy_to_write: bool | None = False

    def send(self, data: Any, flags: int = 0) -> int:
        """Write; see send(2)."""
        if self._writable <= 0:
            self._ask_to_write()
        if len(data) > self._write_most:
            data = memoryview(data)[: self._write_most]
        return self._wrote(_send(self, data, flags))

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        """Write, and descriptors along with it; see sendmsg(2). Twisted sends one byte with each."""
        if self._writable <= 0:
            self._ask_to_write()
        return self._wrote(super().sendmsg(buffers, *arguments))

    def send_file(self, descriptor: int, offset: int, size: int) -> int:
        """Write from a file; see sendfile(2)."""
        if self._writable <= 0:
            self._ask_to_write()
        return self._wrote(os.sendfile(self.fileno(), descriptor, offset, min(size, self._write_most)))

    def _wrote(self, sent: int) -> int:
        self._writable = left = self._writable - sent
        if left <= 0:
            self._may_write(*self._write_allowance().spend(left))
        return sent


class _WritesEasily(_Writes):
    """The same, far from the limit."""

    __slots__ = ()

    easy_to_write = True

    def send(self, data: Any, flags: int = 0) -> int:
        """Write; see send(2)."""
        if flags or len(data) > MOST:
            return super().send(data, flags)
        sent = _send(self, data)
        self._writable = left = self._writable - sent
        if left <= 0:
            self._may_write(*self._write_allowance().spend(left))
        return sent


_READS = {None: (), False: (_Reads,), True: (_ReadsEasily,)}
_WRITES = {None: (), False: (_Writes,), True: (_WritesEasily,)}

#: The classes of metered sockets, by how easy it is to read and to write.
_KINDS: dict[tuple[bool | None, bool | None], Any] = {
    (read, write): type("Metered", (*_READS[read], *_WRITES[write]), {"__slots__": ()})
    for read in _READS
    for write in _WRITES
    if (read, write) != (None, None)
}
