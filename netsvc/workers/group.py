"""The ports shared by several workers. The main process binds them and serves none."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.protocol import DatagramProtocol, Factory

from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.listen.opening import ListenError, listen
from netsvc.listen.port import OpenPort
from netsvc.listen.quiet import quietly
from netsvc.listen.socket_file import watch_file
from netsvc.listen.systemd import is_activated
from netsvc.plan.address import Address, is_group
from netsvc.reactor.accept import BACKLOG
from netsvc.reactor.datagrams import make_room

_INET = (socket.AF_INET, socket.AF_INET6)


class PortGroup:
    """The sockets of one address, one for each of several workers. `opened` is the port of the first.

    Each worker has its own TCP or UDP socket; the kernel distributes connections and peers among them by their
    addresses (socket(7), SO_REUSEPORT): a UDP peer stays with one worker. UNIX sockets and stream sockets of systemd
    are `common` to all workers. This process keeps all sockets open: datagrams for a worker that has died wait for the
    next one, and connections for another one (`netsvc.workers.cover`).
    """

    def __init__(self, opened: OpenPort, *, common: bool) -> None:
        self.opened = opened
        self.common = common
        self._first: Any = opened.socket
        self._beside: list[socket.socket] = []
        self._workers = 1
        self._released = False
        # shutdown() would end the socket for every process.
        opened.port._shouldShutdown = False  # type: ignore[attr-defined]
        if not common:
            # Only after the port is open: a second netsvc of the same user must get the error that it is in use.
            self._first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def offered(self, name: str, address: Address, key_files: Mapping[str, str]) -> OfferedPort:
        """Describe the sockets to another process."""
        return OfferedPort(
            "listener",
            name,
            address.kind,
            address.endpoint,
            [self._first, *self._beside],
            self,
            self.opened.files(),
            key_files,
        )

    def pause(self) -> None:
        """Do nothing: only the workers accept."""

    def resume(self) -> None:
        """Do nothing, as for `pause`."""

    def own(self, files: Sequence[str]) -> None:
        """Remove these files when the group is closed."""
        self.opened.own(files)

    def release(self) -> None:
        """Close the sockets in this process only; `close` does nothing after that."""
        self._released = True
        quietly(self.opened.release)
        self._close_beside()

    def adopt(self, beside: Sequence[int]) -> None:
        """Use the sockets with these descriptors for further workers."""
        self._beside += [socket.socket(fileno=descriptor) for descriptor in beside]
        self._workers = 1 + len(self._beside)

    def steer(self, workers: int) -> None:
        """Steer new connections and peers to the sockets of the first `workers` workers, or to all sockets."""
        # If the kernel refuses, a few connections may be lost.
        with suppress(OSError):
            if self._beside and workers <= len(self._beside):
                steer(self._first, workers)
            elif self._beside:
                unsteer(self._first)

    def grow(self, workers: int) -> None:
        """Bind sockets for `workers` workers; nothing arrives at them before `resize`. Raises `OSError`.

        TCP sockets do not listen before. UDP sockets cannot do without that: new datagrams are steered to the others.
        """
        while not self.common and len(self._beside) < workers - 1:
            self._keep_datagrams()
            self._beside.append(_bind_like(self._first, None))
            # Again: a socket that was alone at its port could not be steered before.
            self._keep_datagrams()

    def _keep_datagrams(self) -> None:
        """Let datagrams wait for no worker that still starts: seconds later, their answers would come all at once."""
        if self._first.type == socket.SOCK_DGRAM:
            with suppress(OSError):
                steer(self._first, self._workers)

    def resize(self, workers: int) -> None:
        """Use the sockets of `workers` workers, bound by `grow`, and close all others. Raises `OSError`."""
        if not self.common and workers > self._workers:
            # A BPF program for fewer sockets would send nothing to the new ones.
            with suppress(OSError):
                unsteer(self._first)
        if not self.common and self._first.type == socket.SOCK_STREAM:
            for bound in self._beside[self._workers - 1 : workers - 1]:
                bound.listen(self._backlog)
        while len(self._beside) > workers - 1:
            self._beside.pop().close()
        self._workers = workers

    @property
    def _backlog(self) -> int:
        return getattr(self.opened.port, "backlog", None) or BACKLOG

    def socket_of(self, worker: int) -> Any:
        """Return the socket of one worker, counted from 0."""
        return self._beside[worker - 1] if self._beside and worker else self._first

    def close(self) -> None:
        """Close the sockets in this process at once, and remove the file; workers may still have theirs open."""
        if self._released:
            return
        first = self._first
        self.opened.abandon()
        # If the file could not be removed, the port is still open.
        first.close()
        self._close_beside()

    def _close_beside(self) -> None:
        while self._beside:
            self._beside.pop().close()


def _bind_like(first: socket.socket, backlog: int | None) -> socket.socket:
    bound = socket.socket(first.family, first.type)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        if first.type == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            # Datagrams wait here for the worker from now on.
            make_room(bound)
        bound.bind(first.getsockname())
        if first.type == socket.SOCK_STREAM and backlog is not None:
            bound.listen(backlog)
    except OSError:
        bound.close()
        raise
    return bound


def open_group(reactor: Any, address: Address, workers: int, sockets: Sockets | None = None) -> PortGroup:
    """Bind the sockets of one address for several workers. Raises `ListenError`.

    The first of `sockets`, if given, is used instead of a new one. If another process has passed further sockets of the
    group, they are adopted; sockets bound in addition do not listen before `resize` (see `PortGroup.grow`).
    """
    protocol: Any = Factory() if address.kind == "stream" else DatagramProtocol()
    protocol.noisy = False
    results: list[Any] = []
    # Twisted's log line "starting on" would be wrong: this process serves nothing.
    opening = quietly(listen, reactor, address, protocol, sockets)
    opening.addBoth(results.append)
    if not results:
        opening.cancel()
        raise ListenError("it did not open immediately and cannot be shared by several workers")
    if not isinstance(results[0], OpenPort):
        raise results[0].value
    [opened] = results
    opened.pause()
    watch_file(opened, address.text)
    if opened.socket is None:
        opened.abandon()
        raise ListenError("it is not a socket that several workers can share")
    is_systemds = ":systemd:" in address.endpoint or is_activated(opened.socket)
    # A multicast goes to every socket of its group, and so would be answered by every worker.
    is_common = opened.socket.family not in _INET or is_group(opened.socket.getsockname()[0])
    group = PortGroup(opened, common=is_common or (is_systemds and address.kind == "stream"))
    beside = None if sockets is None else sockets.beside
    if beside is not None and sockets is not None:
        if not group.common:
            group.adopt(beside)
            sockets.beside = None
        return group
    try:
        group.grow(workers)
        group.resize(workers)
    except OSError as error:
        place = opened.place()
        group.close()
        if is_systemds:
            raise ListenError(
                "this user may not bind further sockets beside the one of systemd, and workers cannot share one, "
                "as a peer must stay with one worker; give udp:PORT, or leave out --workers"
            ) from error
        raise ListenError(f"it cannot be bound at {place} for every worker: {error.strerror}") from error
    return group


#: Seconds for connections on their way to arrive: several of the longest round trips on earth.
SETTLE = 0.6

#: SO_ATTACH_REUSEPORT_CBPF and SO_DETACH_REUSEPORT_BPF of asm-generic/socket.h; Python's socket module lacks them.
_ATTACH, _DETACH = 51, 68
#: An instruction (linux/filter.h), and the operations of the program: load, modulo, return.
_INSTRUCTION = struct.Struct("HBBI")
_LOAD, _MODULO, _RETURN = 0x20, 0x94, 0x16
#: The loaded value: a random number for each packet (only one packet of a connection counts), or a hash that is equal
#: for all packets of a peer.
_RANDOM, _HASH = (0x1_0000_0000 - 0x1000) + 56, (0x1_0000_0000 - 0x1000) + 32


def steer(bound: socket.socket, count: int) -> None:
    """Distribute new connections and peers among the first `count` sockets of the port of `bound`.

    The order is that in which they began to listen, or were bound. After that, the other sockets can be closed without
    a reset of connections on their way to them (socket(7), SO_ATTACH_REUSEPORT_CBPF). Raises `OSError`.
    """
    load = _RANDOM if bound.type == socket.SOCK_STREAM else _HASH
    code = b"".join(
        _INSTRUCTION.pack(*each) for each in ((_LOAD, 0, 0, load), (_MODULO, 0, 0, count), (_RETURN, 0, 0, 0))
    )
    program = ctypes.create_string_buffer(code, len(code))
    bound.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HP", 3, ctypes.addressof(program)))


def unsteer(bound: socket.socket) -> None:
    """Restore the kernel's own distribution. Raises `OSError`, also if no program is attached."""
    bound.setsockopt(socket.SOL_SOCKET, _DETACH, struct.pack("i", 0))
