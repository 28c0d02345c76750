"""The kernel is told how fast to send, where it would be true to it."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from netsvc.guard.tcp import pace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux paces")

SO_MAX_PACING_RATE = 47


class Bottom:
    """A transport that owns a socket."""

    def __init__(self, own: Any) -> None:
        self.socket = own


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()):
        accepted, _ = port.accept()
        with accepted:
            yield accepted


def rate_of(connection: socket.socket) -> int:
    [rate] = struct.unpack("@L", connection.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))
    return int(rate)


@pytest.mark.parametrize("rate", [700_000, 1_000_000, 50_000_000])
def test_the_kernel_has_the_rate_and_holds_little_more_than_it_sends_soon(server: socket.socket, rate: int) -> None:
    assert pace(Bottom(server), rate)
    assert rate_of(server) == rate
    waiting = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    assert waiting == max(128 * 1024, rate // 4)


def test_what_may_wait_in_the_kernel_is_bounded(server: socket.socket) -> None:
    assert pace(Bottom(server), 1_000_000)
    server.setblocking(False)
    waiting = 0
    try:
        while waiting < 100_000_000:
            waiting += server.send(bytes(65536))
    except BlockingIOError:
        pass
    # Of which the first ten segments went at once.
    assert waiting < 10 * 65536 + 128 * 1024 + 4 * 65536


def test_below_what_goes_unpaced_it_is_for_somebody_else(server: socket.socket) -> None:
    segment = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    assert not pace(Bottom(server), 10 * segment - 1)
    assert rate_of(server) >= (1 << 32) - 1
    assert pace(Bottom(server), 10 * segment)


def test_above_what_is_worth_it_it_is_for_somebody_else_too(server: socket.socket) -> None:
    assert not pace(Bottom(server), 50_000_001)
    assert rate_of(server) >= (1 << 32) - 1


def test_the_rate_can_be_changed(server: socket.socket) -> None:
    assert pace(Bottom(server), 2_000_000)
    assert pace(Bottom(server), 1_000_000)
    assert rate_of(server) == 1_000_000


def test_what_is_not_tcp_is_not_paced(server: socket.socket) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not pace(Bottom(one), 1_000_000)
    assert not pace(Bottom(one), 1_000_000)
    assert not pace(StringTransport(), 1_000_000)
    assert not pace(None, 1_000_000)
