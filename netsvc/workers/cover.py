"""While a worker is replaced, the others accept the connections that arrive at its TCP sockets.

The kernel continues to distribute connections to the sockets of a worker that has died, as the parent keeps them open,
and restarts may have a long pause. So the parent passes these sockets to the workers that serve (unix(7), SCM_RIGHTS),
which accept at them until the next worker is ready. Datagrams wait for it: a peer stays with one worker.

A message is a JSON object with the index of the `worker` and the indices of the `listeners` whose sockets come with it;
none if it is ready again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import ANYTHING
from netsvc.listen.port import OpenPort, adopt
from netsvc.listen.quiet import quietly
from netsvc.reactor.accept import pause_when_full

#: Sockets in one message; the system accepts 253.
MOST_SOCKETS = 200
#: Bytes of a message: its numbers have at most six digits.
_LONGEST = 4096

_log = Logger(namespace="netsvc")


class CoverLink:
    """The parent's end of the link to one worker. `remote` is the end to pass to the worker."""

    def __init__(self) -> None:
        self._local, self.remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._local.setblocking(False)
        #: The workers whose sockets it has.
        self._covered: set[int] = set()

    def cover(self, gone: Mapping[int, Mapping[int, int]]) -> None:
        """Let the worker accept at the sockets of these workers and of no others.

        `gone` maps the index of each to the descriptor for each index of a listener.
        """
        for worker in self._covered - gone.keys():
            if self._send(worker, [], []):
                self._covered.discard(worker)
        for worker in gone.keys() - self._covered:
            pairs = list(gone[worker].items())
            for first in range(0, len(pairs), MOST_SOCKETS):
                part = pairs[first : first + MOST_SOCKETS]
                if self._send(worker, [index for index, _ in part], [descriptor for _, descriptor in part]):
                    self._covered.add(worker)

    def _send(self, worker: int, listeners: Sequence[int], descriptors: Sequence[int]) -> bool:
        message = json.dumps({"worker": worker, "listeners": listeners}).encode()
        try:
            socket.send_fds(self._local, [message], list(descriptors))
        except OSError:
            # It has ended, or does not read: it could not accept either.
            return False
        return True

    def close(self) -> None:
        """Close the link in this process."""
        self._local.close()
        self.remote.close()


class Cover(FileDescriptor):
    """The worker's end of the link, `descriptor`; None if the parent, of an older version, has none.

    `factory_of` returns the factory of a listener, or None if it has been closed.
    """

    def __init__(self, reactor: Any, descriptor: int | None, factory_of: Callable[[int], Any]) -> None:
        super().__init__(reactor)
        self._socket: socket.socket | None = None
        self._factory_of = factory_of
        #: By worker.
        self._ports: dict[int, list[OpenPort]] = {}
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            self._socket = socket.socket(fileno=descriptor)
            self._socket.setblocking(False)
            self.startReading()

    def fileno(self) -> int:
        """Return the descriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def doRead(self) -> Exception | None:
        """Read a message."""
        assert self._socket is not None
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, _LONGEST, MOST_SOCKETS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_DONE
        if not message:
            return CONNECTION_DONE
        sockets = [socket.socket(fileno=each) for each in descriptors]
        read = json.loads(message)
        if not read["listeners"]:
            self._relieve(read["worker"])
        # Without free descriptors some did not arrive.
        for index, bound in zip(read["listeners"], sockets, strict=False):
            with bound:
                self._accept_at(bound, read["worker"], index)
        return None

    def _accept_at(self, bound: socket.socket, worker: int, index: int) -> None:
        factory = self._factory_of(index)
        if factory is None:
            return
        try:
            port = quietly(adopt, self.reactor, bound, factory)
        except ANYTHING:
            _log.failure("the connections of worker {number} have to wait for its restart", number=worker + 1)
            return
        pause_when_full(port)
        self._ports.setdefault(worker, []).append(OpenPort(port))

    def _relieve(self, worker: int) -> None:
        for port in self._ports.pop(worker, ()):
            quietly(port.release)

    def end(self, *, take: bool) -> None:
        """Accept at no socket of another worker any more; `take`: first what waits, as no other process accepts it."""
        for worker in list(self._ports):
            for port in self._ports[worker] if take else ():
                port.take_waiting()
            self._relieve(worker)
        if self._socket is not None:
            self.stopReading()
            self._socket.close()
            self._socket = None

    def connectionLost(self, reason: Failure) -> None:
        """Close the link: the parent has ended."""
        super().connectionLost(reason)
        self.end(take=False)
