"""A datagram port reads so many datagrams in a row."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import DatagramProtocol

from netsvc.sockets import DATAGRAMS_A_TURN, read_datagrams
from tests.conftest import LoggedErrors


class Flooded:
    """A port whose socket always has one more datagram."""

    connected = 1
    maxPacketSize = 100
    addressFamily = socket.AF_INET6

    def __init__(self, waiting: int = 10**6, fault: Exception | None = None) -> None:
        self.socket: Any = self
        self.protocol: Any = self
        self.waiting = waiting
        self.fault = fault
        self.got: list[Any] = []

    def recvfrom(self, _size: int) -> tuple[bytes, Any]:
        if not self.waiting:
            raise BlockingIOError
        self.waiting -= 1
        return b"", ("::1", 54321, 0, 0)

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.got.append((data, peer))
        if self.fault:
            raise self.fault


def test_a_flood_of_empty_datagrams_leaves_others_their_turn() -> None:
    port = Flooded()
    read_datagrams(port)
    assert port.got == [(b"", ("::1", 54321))] * DATAGRAMS_A_TURN


def test_what_waits_is_read_and_no_more() -> None:
    port = Flooded(3)
    read_datagrams(port)
    assert len(port.got) == 3


def test_a_closed_port_is_not_read() -> None:
    port = Flooded()
    port.connected = 0
    read_datagrams(port)
    assert port.got == []


def test_a_fault_costs_one_datagram(logged_errors: LoggedErrors) -> None:
    port = Flooded(3, ValueError("no"))
    read_datagrams(port)
    assert len(port.got) == 3
    assert len(logged_errors.flush(ValueError)) == 3


def test_real_ports_take_turns() -> None:
    from twisted.internet import reactor

    from netsvc.address import parse_address
    from netsvc.sockets import adopt, bound_socket

    port: Any = adopt(reactor, bound_socket(parse_address("127.0.0.1:0", "datagram")), DatagramProtocol())
    try:
        assert port.doRead.func is read_datagrams
    finally:
        port.stopReading()
        port.connectionLost()
