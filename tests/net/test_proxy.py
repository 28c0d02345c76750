"""Behind `proxy:` the real client is seen, and whoever may not speak for one is refused, on both reactors."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from zope.interface import implementer

from netsvc.listen.opening import ListenError, check_address
from netsvc.listen.proxy import LATE, MALFORMED, UNTRUSTED, ProxyFactory
from netsvc.plan.address import Proxy, parse_address
from netsvc.reactor.epoll import NetsvcReactor
from tests.builders.processes import PATIENCE
from tests.builders.proxied import LOOPBACK, TCP4, V6, Inner, Inners, Served, on_reactor, v2

served = pytest.fixture(params=[EPollReactor, NetsvcReactor])(on_reactor)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("place", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1", "0", "unix:{}/s"])
def test_the_real_client_is_seen_from_the_beginning(
    served: Served, one_by_one: bool, place: str, tmp_path: Path
) -> None:
    seen: list[Any] = []

    class Looking(Inner):
        def connectionMade(self) -> None:
            super().connectionMade()
            seen.append((self.transport.getPeer(), self.transport.getHost()))

    served.factory.kind = Looking
    served.listen(f"proxy:trust=127.0.0.1,unix:{place.format(tmp_path)}")
    for header, peer, host in (
        (TCP4, IPv4Address("TCP", "192.0.2.9", 4000), IPv4Address("TCP", "192.0.2.1", 443)),
        (V6, IPv6Address("TCP", "2001:db8::9", 4000), IPv6Address("TCP", "2001:db8::1", 443)),
    ):
        if one_by_one:
            client = served.connect()
            for byte in header + b"hello":
                assert seen == []
                client.send(bytes([byte]))
                served.turn(3)
                if len(served.factory.built[-1:]) and seen:
                    break
            client.send(b"hello")
            inner = served.factory.built[-1]
        else:
            _, inner = served.inner(header + b"hello")
        served.until(lambda inner=inner: inner.received == b"hello")  # type: ignore[misc]
        assert seen.pop() == (peer, host)
        assert served.factory.addresses[-1] == peer
        assert inner.transport.protocol is inner
        assert served.refusals == []


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", v2(0, 0, b""), v2(0, 0x11, bytes(20)), v2(1, 0x31, bytes(216))]
)
def test_a_proxy_that_speaks_for_itself_is_the_peer(served: Served, header: bytes) -> None:
    served.listen(LOOPBACK)
    client, inner = served.inner(header + b"x")
    assert inner.transport.getPeer() == served.factory.addresses[0] == IPv4Address("TCP", *client.getsockname())
    assert inner.transport.getHost() == IPv4Address("TCP", *client.getpeername())
    assert "getHost" not in vars(inner.transport)
    served.until(lambda: inner.received == b"x")


def test_whoever_opens_a_unix_socket_is_the_peer_of_one_that_speaks_for_itself(served: Served, tmp_path: Path) -> None:
    served.listen(f"proxy:trust=unix:unix:{tmp_path}/s")
    _, inner = served.inner(b"PROXY UNKNOWN\r\n")
    assert isinstance(served.factory.addresses[0], UNIXAddress)
    assert inner.transport.getPeer() == UNIXAddress(None)


def test_the_limits_know_whether_something_came_with_the_header(served: Served, tmp_path: Path) -> None:
    # Of a UNIX socket the kernel does not tell what was received.
    served.listen(f"proxy:trust=unix:unix:{tmp_path}/s")
    _, silent = served.inner(b"PROXY UNKNOWN\r\n")
    _, early = served.inner(b"PROXY UNKNOWN\r\nx")
    beyond = [inner.transport.received - inner.transport.preamble for inner in (silent, early)]
    assert beyond == [0, 1]


def test_64_kib_behind_a_header_are_nothing_lost_and_nothing_twice(served: Served) -> None:
    served.listen(LOOPBACK)
    behind = os.urandom(3 * 65536)
    client = served.connect(TCP4 + behind[:65536])
    served.until(lambda: served.factory.built)
    rest = memoryview(behind[65536:])
    while rest:
        rest = rest[client.send(rest) :]
        served.turn(2)
    inner = served.factory.built[0]
    served.until(lambda: len(inner.received) >= len(behind))
    assert inner.received == behind


def test_any_segments_give_the_same(served: Served) -> None:
    served.listen(LOOPBACK)

    # Inside, for outside pytest-twisted would wrap it once more for each reactor.
    @settings(max_examples=25)
    @given(st.lists(st.integers(1, 60), max_size=6), st.binary(max_size=60), st.booleans())
    def check(cuts: list[int], behind: bytes, binary: bool) -> None:
        data, before = (V6 if binary else TCP4) + behind, len(served.factory.built)
        client = served.connect()
        for cut in [*cuts, len(data)]:
            client.sendall(data[:cut])
            data = data[cut:]
            served.turn(2)
        served.until(lambda: len(served.factory.built) > before)
        inner = served.factory.built[-1]
        served.until(lambda: inner.received == behind)
        assert inner.transport.getPeer().port == 4000
        client.close()
        served.until(lambda: "lost" in inner.events)

    check()


@pytest.mark.parametrize(
    ("trust", "place", "host"),
    [
        ("10.0.0.0/8,unix", "127.0.0.1:0", "127.0.0.1"),
        ("10.0.0.0/8", "0", "127.0.0.1"),
        ("0.0.0.0/0", "unix:{}/s", "unix"),
        ("::/0", "0", "127.0.0.1"),
    ],
)
def test_who_is_not_trusted_is_reset_at_once_and_told_nothing(
    served: Served, trust: str, place: str, host: str, tmp_path: Path
) -> None:
    served.listen(f"proxy:trust={trust.replace(':', chr(92) + ':')}:{place.format(tmp_path)}")
    for _ in range(2):
        # UNIX sockets have no reset.
        assert served.read(served.connect()) == (b"" if host == "unix" else b"<reset>")
    assert served.factory.addresses == []
    assert served.refusals == [(UNTRUSTED, host)] * 2


@pytest.mark.parametrize(
    ("trust", "good", "bad"),
    [
        ("192.0.2.0/24", ("192.0.2.7", "::ffff:192.0.2.7"), ("192.0.3.7", "::1", "fe80::1%eth0")),
        ("192.0.2.7", ("192.0.2.7",), ("192.0.2.8",)),
        ("192.0.2.7/24", ("192.0.2.99",), ("192.0.1.7",)),
        ("2001:db8::/32", ("2001:db8:1::9",), ("2001:db9::1", "192.0.2.7")),
        ("fe80::/10", ("fe80::1%eth0", "fe80::1"), ("::1",)),
        ("::ffff:192.0.2.0/120", ("192.0.2.7", "::ffff:192.0.2.7"), ("192.0.3.7",)),
        ("::/0", ("::1",), ("192.0.2.7",)),
        ("unix,::1", ("::1",), ("192.0.2.7", "a name")),
    ],
)
def test_networks_are_trusted_whatever_form_an_address_has(
    trust: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    factory = ProxyFactory(Inners(), Proxy((*trust.split(","),)), Clock())
    for host in good:
        assert factory.buildProtocol((IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)), host
    for host in bad:
        assert factory.buildProtocol((IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)) is None, host


def test_trust_may_change_for_the_next_connections() -> None:
    factory = ProxyFactory(Inners(), Proxy(("192.0.2.7",)), Clock())
    peer = IPv4Address("TCP", "192.0.2.7", 1)
    assert factory.buildProtocol(peer)
    factory.proxy = Proxy(("192.0.2.8",))
    assert factory.buildProtocol(peer) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 a b c d\r\n",
        b"\x16\x03\x01",
        b"PROXY UNKNOWN" + bytes(100),
        b"\n" * 70000,
    ],
)
def test_a_connection_without_a_header_is_ended_and_told_nothing(served: Served, data: bytes) -> None:
    served.listen(LOOPBACK)
    client = served.connect()
    client.setblocking(True)
    client.settimeout(PATIENCE)
    client.send(data)
    client.setblocking(False)
    assert served.read(client) in (b"", b"<reset>")
    assert served.refusals == [(MALFORMED, "127.0.0.1")]
    assert served.factory.addresses == []


def test_one_that_ends_inside_its_header_is_counted_and_one_that_sent_nothing_is_not(served: Served) -> None:
    served.listen(LOOPBACK)
    served.connect().close()
    served.turn()
    assert served.refusals == []
    served.connect(TCP4[:-1]).close()
    served.turn()
    assert served.refusals == [(MALFORMED, "127.0.0.1")]
    half = served.connect(TCP4[:10])
    half.shutdown(socket.SHUT_WR)
    assert served.read(half) in (b"", b"<reset>")
    assert served.factory.addresses == []


def connected(clock: Clock, factory: Any, timeout: float = 5.0) -> tuple[Any, StringTransport, list[Any]]:
    refusals: list[Any] = []
    proxied = ProxyFactory(
        factory, Proxy(("192.0.2.7",), timeout), clock, lambda reason, host: refusals.append((reason, host))
    )
    peer = IPv4Address("TCP", "192.0.2.7", 1)
    reader: Any = proxied.buildProtocol(peer)
    transport: Any = StringTransport(peerAddress=peer)
    reader.makeConnection(transport)
    return reader, transport, refusals


def test_a_header_has_to_be_there_in_time() -> None:
    clock = Clock()
    reader, transport, refusals = connected(clock, Inners())
    clock.advance(4.9)
    reader.dataReceived(TCP4[:-1])
    assert (transport.disconnected, refusals) == (False, [])
    clock.advance(0.1)
    assert (transport.disconnected, refusals) == (True, [(LATE, "192.0.2.7")])
    # What still comes is nothing any more.
    reader.dataReceived(TCP4[-1:])
    reader.connectionLost()
    assert refusals == [(LATE, "192.0.2.7")]
    assert clock.getDelayedCalls() == []


def test_of_too_many_without_a_header_the_one_that_has_waited_longest_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netsvc.listen.proxy.MOST_AWAITED", 3)
    clock, factory = Clock(), Inners()
    owner = ProxyFactory(factory, Proxy(("192.0.2.0/24",)), clock)
    refused: list[Any] = []
    owner.refused = lambda *said: refused.append(said)
    transports = []
    for number in range(5):
        protocol: Any = owner.buildProtocol(IPv4Address("TCP", f"192.0.2.{number}", 1))
        transports.append(StringTransport(peerAddress=IPv4Address("TCP", f"192.0.2.{number}", 1)))
        protocol.makeConnection(transports[-1])
        if number == 0:
            # It has its header, and is awaited no more.
            protocol.dataReceived(b"PROXY UNKNOWN\r\n")
    assert refused == [(LATE, "192.0.2.1")]
    assert [transport.disconnected for transport in transports] == [False, True, False, False, False]
    clock.advance(1000)
    assert len(refused) == 4 and not owner.awaited and not clock.getDelayedCalls()


def test_one_that_is_in_time_is_timed_no_longer() -> None:
    clock = Clock()
    inners = Inners()
    reader, _, refusals = connected(clock, inners)
    reader.dataReceived(TCP4)
    assert (len(inners.built), clock.getDelayedCalls(), refusals) == (1, [], [])
    reader, _, refusals = connected(clock, inners)
    reader.connectionLost()
    assert (clock.getDelayedCalls(), refusals) == ([], [])


def test_a_client_that_the_service_refuses_is_closed(served: Served) -> None:
    class Refusing(Inners):
        def buildProtocol(self, addr: object) -> None:
            self.addresses.append(addr)

    served.factory = Refusing()
    served.listen(LOOPBACK)
    assert served.read(served.connect(TCP4 + b"hello")) in (b"", b"<reset>")
    assert served.factory.addresses == [IPv4Address("TCP", "192.0.2.9", 4000)]


@implementer(IProtocolFactory)
class Nameless:
    def doStart(self) -> None: ...

    def doStop(self) -> None: ...

    def buildProtocol(self, addr: object) -> Any: ...


def test_the_port_is_called_what_the_factory_is_called() -> None:
    assert ProxyFactory(Inners(), Proxy(("unix",)), Clock()).logPrefix() == "Inners"
    assert ProxyFactory(Nameless(), Proxy(("unix",)), Clock()).logPrefix() == "Nameless"
    assert ProxyFactory(Nameless(), Proxy(("unix",)), Clock()).buildProtocol(IPv4Address("TCP", "::1", 1)) is None


def test_twisteds_own_haproxy_stays_as_it_is(served: Served) -> None:
    served.listen("haproxy:tcp:0:interface=127.0.0.1")
    client, inner = served.inner(TCP4 + b"x")
    served.until(lambda: inner.received == b"x")
    assert inner.transport.getPeer().host == "192.0.2.9"
    assert served.factory.addresses[0].port == client.getsockname()[1]


def test_a_second_header_may_be_for_twisteds_own(served: Served) -> None:
    listening = served.listen("proxy:trust=127.0.0.1:haproxy:tcp:0:interface=127.0.0.1")
    factory: Any = listening.port.factory  # type: ignore[attr-defined]
    assert isinstance(factory.factory, HAProxyWrappingFactory)
    _, inner = served.inner(b"PROXY TCP4 192.0.2.2 192.0.2.1 7 7\r\n" + TCP4 + b"x")
    served.until(lambda: inner.received == b"x")
    assert inner.transport.getPeer().host == "192.0.2.9"


class Endpoint:
    """An endpoint plugin that listens in a way of its own."""

    prefix = "odd"

    def __init__(self, listening: Deferred[Any]) -> None:
        self.listening = listening

    def parseStreamServer(self, reactor: Any, *args: object, **kwargs: object) -> Any:
        return self

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.listening


class Portlike:
    stopped = 0

    def stopListening(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("late", [False, True])
def test_an_endpoint_that_could_serve_without_a_header_is_a_mistake_and_closed(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening: Deferred[Any] = Deferred()
    monkeypatch.setattr("twisted.internet.endpoints.getPlugins", lambda interface: [Endpoint(opening)])
    port = Portlike()
    if not late:
        opening.callback(port)
    with pytest.raises(ListenError, match=r"proxy: .* odd:; .*\btcp:"):
        Served(Clock()).listen("proxy:trust=unix:odd:x:y")
    if late:
        opening.callback(port)
    assert port.stopped == 1


def test_an_endpoint_that_fails_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    opening: Deferred[Any] = Deferred()
    monkeypatch.setattr("twisted.internet.endpoints.getPlugins", lambda interface: [Endpoint(opening)])
    opening.errback(OSError("no such thing"))
    with pytest.raises(ListenError, match="no such thing"):
        Served(Clock()).listen("proxy:trust=unix:odd:x:y")


def test_what_stands_behind_the_prefix_is_checked() -> None:
    check_address(parse_address("proxy:trust=unix:tcp:1", "stream"))
    with pytest.raises(ValueError, match=r"tcp: .*\bcolour\b"):
        check_address(parse_address("proxy:trust=unix:tcp:1:colour=red", "stream"))
