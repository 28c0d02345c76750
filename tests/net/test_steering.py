from __future__ import annotations

import os
import socket
import sys

import pytest

from netsvc.workers.group import steer, unsteer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def sharing(kind: socket.SocketKind, count: int) -> list[socket.socket]:
    """Bind sockets that share a port."""
    sockets: list[socket.socket] = []
    for _ in range(count):
        bound = socket.socket(type=kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(sockets[0].getsockname() if sockets else ("127.0.0.1", 0))
        bound.setblocking(False)
        if kind == socket.SOCK_STREAM:
            bound.listen(100)
        sockets.append(bound)
    return sockets


def reached(sockets: list[socket.socket]) -> set[int]:
    """Send to their port from forty others; tell which of them had any."""
    stream = sockets[0].type == socket.SOCK_STREAM
    peers = [socket.create_connection(sockets[0].getsockname()) for _ in range(40)] if stream else []
    for _ in range(0 if stream else 40):
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.sendto(b"hello", sockets[0].getsockname())
    found = set()
    for place, each in enumerate(sockets):
        try:
            while True:
                if stream:
                    each.accept()[0].close()
                else:
                    each.recv(10)
                found.add(place)
        except BlockingIOError:
            pass
    for peer in peers:
        peer.close()
    return found


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_comes_new_goes_to_the_first_sockets_until_that_is_undone(kind: socket.SocketKind) -> None:
    sockets = sharing(kind, 4)
    assert len(reached(sockets)) > 1
    steer(sockets[0], 2)
    assert reached(sockets) <= {0, 1}
    steer(sockets[0], 1)
    assert reached(sockets) == {0}
    unsteer(sockets[0])
    assert reached(sockets) - {0}
    for each in sockets:
        each.close()


def test_what_cannot_be_steered_is_an_error() -> None:
    with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match=r"argument|support|available"):
        steer(bound, 1)
    [alone] = sharing(socket.SOCK_DGRAM, 1)
    with alone, pytest.raises(OSError, match=os.strerror(2)):
        unsteer(alone)
