"""What the kernel tells of a connection is what happened to it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from netsvc.guard.tcp import read_tcp_info
from netsvc.reactor.hooks import socket_transport

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lays TCP_INFO out so")


class Bottom:
    """A transport that owns a socket."""

    def __init__(self, own: Any) -> None:
        self.socket = own


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()) as client:
        server, _ = port.accept()
        with server:
            yield server, client


@linux
def test_a_fresh_connection_has_received_nothing_and_nothing_is_outstanding(ends: Any) -> None:
    progress = read_tcp_info(Bottom(ends[0]))
    assert progress is not None
    assert (progress.received, progress.acknowledged, progress.outstanding) == (0, 0, 0)
    assert progress.timeout > 0


@linux
def test_bytes_count_when_they_have_come_and_when_they_are_acknowledged_not_when_they_are_read(ends: Any) -> None:
    server, client = ends
    client.sendall(b"x" * 300)
    server.sendall(b"y" * 500)
    # Over loopback a segment is delivered, and an acknowledgement comes back with the next one, before send returns.
    client.recv(500, socket.MSG_WAITALL)
    client.sendall(b"x" * 700)
    progress = read_tcp_info(Bottom(server))
    assert progress is not None
    assert (progress.received, progress.acknowledged, progress.outstanding) == (1000, 500, 0)


@linux
def test_a_peer_without_room_acknowledges_no_more(ends: Any) -> None:
    server, _ = ends
    server.setblocking(False)
    with suppress(BlockingIOError):
        while server.send(b"z" * 65536):
            pass
    first = read_tcp_info(Bottom(server))
    second = read_tcp_info(Bottom(server))
    assert first is not None and second is not None
    assert second.acknowledged == first.acknowledged > 0


def test_what_is_no_tcp_socket_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert read_tcp_info(Bottom(one)) is None
    assert read_tcp_info(Bottom(one)) is None
    assert read_tcp_info(StringTransport()) is None
    assert read_tcp_info(Bottom(None)) is None


def test_an_answer_that_is_too_short_tells_nothing() -> None:
    class Old:
        def getsockopt(self, *arguments: object) -> bytes:
            return bytes(104)

    assert read_tcp_info(Bottom(Old())) is None


def test_the_socket_is_below_all_wrappers() -> None:
    bottom: Any = Bottom(None)
    inner: Any = ProtocolWrapper(WrappingFactory(None), None)  # type: ignore[arg-type]
    outer: Any = ProtocolWrapper(WrappingFactory(None), None)  # type: ignore[arg-type]
    assert socket_transport(outer) is None, "not connected yet"
    inner.transport, outer.transport = bottom, inner
    assert socket_transport(outer) is bottom
    assert socket_transport(bottom) is bottom
    assert socket_transport(None) is None


def test_wrappers_around_each_other_have_no_bottom() -> None:
    loop: Any = Bottom(None)
    loop.transport = loop
    assert socket_transport(loop) is None
