"""A port bound to a multicast group is a member of it, at an interface that can be chosen."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol

from netsvc.listen.opening import ListenError, listen
from netsvc.listen.port import OpenPort
from netsvc.listen.sockets import join_group
from netsvc.plan.address import parse_address
from netsvc.workers.group import open_group
from tests.builders.processes import PATIENCE


class Echo(DatagramProtocol):
    """Answers each datagram, and keeps it."""

    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.got.append(data)
        self.transport.write(data.upper(), peer)


def opening(address: str) -> Any:
    from twisted.internet import reactor

    results: list[Any] = []
    listen(reactor, parse_address(address, "datagram"), Echo()).addBoth(results.append)
    return results[0]


@contextmanager
def opened(address: str) -> Iterator[Any]:
    made = opening(address)
    if not isinstance(made, OpenPort):
        pytest.skip(f"there is no multicast here: {made.value}")
    try:
        yield made.port
    finally:
        made.abandon()


@contextmanager
def sender() -> Iterator[socket.socket]:
    """Make a socket that sends to groups at the loopback interface."""
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        made.settimeout(PATIENCE)
        yield made


@pytest.mark.parametrize("address", ["239.1.2.3%lo:0", "udp:0:interface=239.1.2.3%1"])
def test_what_is_sent_to_the_group_arrives_and_is_answered(address: str) -> None:
    with opened(address) as port, sender() as peer:
        peer.sendto(b"hello", ("239.1.2.3", port.getHost().port))
        port.doRead()
        assert port.protocol.got == [b"hello"]
        assert peer.recvfrom(100)[0] == b"HELLO"


def test_another_group_is_not_received() -> None:
    with opened("239.1.2.3%lo:0") as port, sender() as peer:
        place = port.getHost().port
        peer.sendto(b"hello", ("239.1.2.4", place))
        port.doRead()
        assert port.protocol.got == []


def test_an_interface_that_does_not_exist_is_named_with_the_form() -> None:
    failure = opening("239.1.2.3%nosuch:9001")
    assert isinstance(failure.value, ListenError)
    assert all(word in str(failure.value) for word in ("nosuch", "239.1.2.3", "interface", "239.1.2.3%eth0:9001"))


def test_a_group_of_one_link_needs_an_interface() -> None:
    failure = opening("[ff02::7]:9001")
    assert all(word in str(failure.value) for word in ("ff02::7", "interface", "[ff02::7%eth0]:9001"))


def test_to_join_twice_or_what_is_no_group_is_nothing() -> None:
    with opened("239.1.2.3%lo:0") as port:
        join_group(port.socket, "lo")
    with socket.socket(type=socket.SOCK_DGRAM) as plain, socket.socket() as stream:
        plain.bind(("127.0.0.1", 0))
        join_group(plain)
        stream.bind(("127.0.0.1", 0))
        join_group(stream)


def test_a_socket_that_cannot_join_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(("239.1.2.3", 0))
        with pytest.raises(OSError, match="device"):
            join_group(bound, "999999")


def test_workers_share_one_socket_of_a_group_so_that_one_of_them_answers() -> None:
    from twisted.internet import reactor

    try:
        group = open_group(reactor, parse_address("239.1.2.3%lo:0", "datagram"), 3)
    except ListenError as error:
        pytest.skip(f"there is no multicast here: {error}")
    try:
        assert group.common
        assert len({group.socket_of(worker).fileno() for worker in range(3)}) == 1
    finally:
        group.close()
