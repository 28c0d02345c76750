"""On a port bound to every address, an answer leaves from the address that was asked."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol

from netsvc.guard import Guard
from netsvc.listen.port import adopt
from netsvc.listen.sockets import bind
from netsvc.plan.address import parse_address
from netsvc.reactor.pktinfo import find_info, is_default_source, join_controls, source_of
from tests.builders.processes import PATIENCE

#: Every address of 127.0.0.0/8 is the loopback's; for a peer at 127.0.0.1 the system answers from 127.0.0.1.
OTHERS = ("127.0.0.2", "127.0.0.3")


class Answering(DatagramProtocol):
    """Answers at once, unless it is told to keep the peers."""

    transport: Any

    def __init__(self) -> None:
        self.keeps = False
        self.kept: list[Any] = []

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        if self.keeps:
            self.kept.append(peer)
        else:
            self.transport.write(data, peer)


@contextmanager
def bound(address: str, *, limited: bool = True) -> Iterator[Any]:
    from twisted.internet import reactor

    port: Any = adopt(reactor, bind(parse_address(address, "datagram")), Answering())
    if limited:
        port.sessions = Guard(reactor).sessions("x udp")
    try:
        yield port
    finally:
        port.stopReading()
        port.connectionLost()


@contextmanager
def client() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(PATIENCE)
        yield made


def asked(port: Any, peer: socket.socket, host: str, data: bytes = b"hello") -> str:
    """Ask a port at an address; return the address that the answer came from."""
    peer.sendto(data, (host, port.getHost().port))
    port.doRead()
    answer, (answering, _) = peer.recvfrom(100)
    assert answer == data
    return str(answering)


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("address", ["0", "udp:0", "127.0.0.2:0"])
def test_an_answer_leaves_from_the_address_that_was_asked(address: str, limited: bool, batches: bool) -> None:
    with bound(address, limited=limited) as port, client() as peer:
        if not batches:
            # As on a system without recvmmsg.
            del port._receive
        for host in OTHERS[:1] if "." in address else (*OTHERS, "127.0.0.1", OTHERS[0]):
            # Long enough for it to see what the system would choose.
            assert {asked(port, peer, host) for _ in range(40)} == {host}


def test_what_is_the_choice_of_the_system_is_left_to_it_until_the_peer_was_silent() -> None:
    with bound("0") as port, client() as peer:
        for host, set_by_us in ((OTHERS[0], True), ("127.0.0.1", False)):
            for _ in range(40):
                asked(port, peer, host)
            [session] = port.sessions.all()
            assert (session.source is not None) == set_by_us
        # Its routes are looked up again once it was not heard of for a while.
        port.sessions._grow_old()
        asked(port, peer, "127.0.0.1")
        assert session.source is not None


@pytest.mark.parametrize("limited", [True, False])
def test_what_is_sent_later_leaves_from_the_address_that_was_asked(limited: bool) -> None:
    with bound("0", limited=limited) as port, client() as one, client() as other:
        port.protocol.keeps = True
        for peer, host in ((one, OTHERS[0]), (other, OTHERS[1])):
            peer.sendto(b"hello", (host, port.getHost().port))
            port.doRead()
        # Without limits, nothing is remembered but the last one.
        peers = ((one, 0), (other, 1)) if limited else ((other, 1),)
        for peer, number in peers:
            port.write(b"later", port.protocol.kept[number])
            assert peer.recvfrom(100)[1][0] == OTHERS[number]


def test_a_broadcast_is_answered_from_an_address_of_the_host() -> None:
    for address in ("0", "udp:0"):
        with bound(address) as port, client() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            assert asked(port, peer, "127.255.255.255").startswith("127.")
            assert port.dropped == 0


def test_the_source_names_no_interface_but_for_a_link_local_address() -> None:
    def ipv6(host: str, interface: int) -> bytes:
        return socket.inet_pton(socket.AF_INET6, host) + struct.pack("=i", interface)

    ipv4 = struct.pack("=i4s4s", 3, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 255]))
    assert source_of(ipv4) == [(socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 0, bytes([192, 0, 2, 1]), bytes(4)))]
    for host, interface in (("2001:db8::1", 0), ("fe80::1", 3), ("::ffff:192.0.2.1", 0)):
        assert source_of(ipv6(host, 3)) == [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, ipv6(host, interface))]
    for host in ("ff02::1", "::ffff:224.0.0.1", "::ffff:255.255.255.255"):
        assert source_of(ipv6(host, 3)) is None
    assert source_of(b"") is None


def test_an_unreachable_peer_has_no_default_source() -> None:
    [source] = source_of(struct.pack("=i4s4s", 0, bytes([127, 0, 0, 1]), bytes(4))) or []
    assert is_default_source([source], socket.AF_INET, ("127.0.0.1", 9))
    assert not is_default_source([source], socket.AF_INET, ("255.255.255.255", 9))
    assert is_default_source(None, socket.AF_INET, ("127.0.0.1", 9))


@pytest.mark.parametrize("address", ["0", "udp:0"])
def test_datagrams_of_one_batch_are_told_apart(address: str) -> None:
    with bound(address) as port, client() as one, client() as other:
        sent = [(peer, host, b"x" * size) for size, host in enumerate(OTHERS * 20) for peer in (one, other)]
        for peer, host, data in sent:
            peer.sendto(data, (host, port.getHost().port))
        port.read_waiting()
        for peer, host, data in sent:
            answer, (answering, _) = peer.recvfrom(100)
            assert (answer, answering) == (data, host)


def test_peers_beyond_those_that_are_kept_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsvc.reactor.batch._MOST_ADDRESSES", 2)
    with bound("0") as port, client() as one, client() as two, client() as three:
        for peer in (one, two, three, one, two, three):
            assert asked(port, peer, OTHERS[0]) == OTHERS[0]


def test_the_local_address_is_found_among_other_ancillary_data() -> None:
    info = struct.pack("=i4s4s", 0, bytes([127, 0, 0, 1]), bytes(4))
    local, other = (socket.IPPROTO_IP, 8, info), (socket.SOL_SOCKET, 29, b"12345")
    for controls in ([local], [other, local], [other, other, local, other]):
        joined = join_controls(controls)
        assert find_info(joined) == find_info(joined + bytes(50)) == info
        # Every part of it, and anything else, is something or nothing.
        for size in range(len(joined)):
            assert find_info(joined[:size]) in (b"", *(info[:part] for part in range(13)))
    assert find_info(b"") == find_info(bytes(256)) == find_info(join_controls([other])) == b""
    assert find_info(b"\xff" * 64) == find_info(b"\x01" + bytes(63)) == b""
