"""Talks to a server of the same process over a real socket, while the reactor turns."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater

#: Turns of the reactor, without anything moving, after which nothing will.
STILL = 200


def reactor() -> Any:
    """Return the reactor that the tests run in."""
    from twisted.internet import reactor as running

    return running


def turn() -> Deferred[None]:
    """Fire at the reactor's next turn."""
    return deferLater(reactor(), 0, lambda: None)


@inlineCallbacks
def converse(
    connection: socket.socket,
    data: bytes,
    *,
    read: bool = True,
    half_close: bool = False,
    watch: Callable[[], None] = lambda: None,
) -> Generator[Deferred[None], None, tuple[int, bytes]]:
    """Send `data`, and read meanwhile if `read` says so; return how much was sent, and what came.

    Ends with the stream, or when nothing moves any more.
    """
    connection.setblocking(False)
    rest, received, still = memoryview(data), bytearray(), 0
    while still < STILL:
        still += 1
        try:
            if rest:
                rest = rest[connection.send(rest[:65536]) :]
                still = 0
                if not rest and half_close:
                    connection.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        try:
            chunk = connection.recv(65536) if read else b""
            if chunk:
                still = 0
                received += chunk
            elif read:
                break
        except BlockingIOError:
            pass
        watch()
        yield turn()
    return len(data) - len(rest), bytes(received)
