"""Datagram services answer whoever may be answered, and nobody else for ever."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger

from netsvc.datagram import ECHO_LIKE_PORTS, MOST_PENDING, AnsweringProtocol
from netsvc.interfaces import Context, Options
from netsvc.service import PlainCore, Service, datagram_protocol
from netsvc.testing.wire import FakeDatagramTransport, MemoryReactor, bind_datagrams
from tests.builders.bench import bind, build

PEER = ("192.0.2.1", 54321)


class Shout(AnsweringProtocol):
    def answer(self, data: bytes) -> bytes | None:
        return data.upper() if data != b"quiet" else None


def core() -> PlainCore:
    return PlainCore(Options(), Context(Clock(), Logger("test")))


def bound(host: Any = None, over: PlainCore | None = None) -> tuple[Any, FakeDatagramTransport]:
    protocol: Any = datagram_protocol(Shout, over or core())
    return protocol, bind_datagrams(protocol, host)


def test_a_core_keeps_its_options_and_context() -> None:
    options, context = Options(), Context(Clock(), Logger("test"))
    guard = PlainCore(options, context)
    assert guard.options is options
    assert guard.context is context


def test_the_answer_goes_back_to_the_sender() -> None:
    protocol, transport = bound()
    transport.feed(b"hello", ("192.0.2.1", 54321))
    transport.feed(b"", ("192.0.2.2", 54322))
    assert transport.written == [(b"HELLO", ("192.0.2.1", 54321)), (b"", ("192.0.2.2", 54322))]
    assert protocol.dropped == 0


def test_none_is_no_answer() -> None:
    protocol, transport = bound()
    transport.feed(b"quiet")
    assert transport.written == []
    assert protocol.dropped == 0


# CERT advisory CA-1996-01: services that answer whatever they get can be made to answer each other.
@pytest.mark.parametrize("port", [0, 7, 13, 17, 19, 37, 53, 69, 123])
def test_a_port_of_an_echo_like_service_is_not_answered(port: int) -> None:
    assert port in ECHO_LIKE_PORTS
    _, transport = bound()
    transport.feed(b"hello", ("192.0.2.1", port))
    assert transport.written == []


@pytest.mark.parametrize("port", [1, 6, 8, 18, 54, 122, 124, 1024, 65535])
def test_any_other_port_is_answered(port: int) -> None:
    assert len(ECHO_LIKE_PORTS) == 9
    _, transport = bound()
    transport.feed(b"hello", ("192.0.2.1", port))
    assert transport.written == [(b"HELLO", ("192.0.2.1", port))]


def test_no_port_of_the_services_own_listeners_is_answered_by_any_of_them() -> None:
    shared = core()
    _, one = bound(IPv4Address("UDP", "127.0.0.1", 9001), shared)
    _, other = bound(IPv6Address("UDP", "::", 9002), shared)
    for port in (9001, 9002):
        one.feed(b"hello", ("127.0.0.1", port))
        other.feed(b"hello", ("::ffff:127.0.0.1", port))
    assert one.written == other.written == []
    other.feed(b"hello", ("::1", 9003))
    assert other.written == [(b"HELLO", ("::1", 9003))]


def test_two_services_of_a_process_do_not_answer_each_other() -> None:
    ports: set[int | bytes] = set()
    one, other = (PlainCore(Options(), Context(Clock(), Logger("test"), own_ports=ports)) for _ in range(2))
    _, first = bound(IPv4Address("UDP", "127.0.0.1", 9001), one)
    _, second = bound(IPv4Address("UDP", "127.0.0.1", 9002), other)
    first.feed(b"hello", ("127.0.0.1", 9002))
    second.feed(b"hello", ("127.0.0.1", 9001))
    assert first.written == second.written == []


def test_the_ports_of_one_process_are_no_matter_to_another() -> None:
    bound(IPv4Address("UDP", "127.0.0.1", 9001))
    _, transport = bound(IPv4Address("UDP", "127.0.0.1", 9002))
    transport.feed(b"hello", ("127.0.0.1", 9001))
    assert transport.written == [(b"HELLO", ("127.0.0.1", 9001))]


@pytest.mark.parametrize("path", ["/run/server", b"/run/server", "/run/other"])
def test_what_came_from_our_own_unix_socket_is_not_answered(path: str | bytes) -> None:
    # As it does when a peer put a link to our socket where its own was.
    context = Context(Clock(), Logger("test"))
    _, transport = bound(UNIXAddress("/run/server"), PlainCore(Options(), context))
    bound(UNIXAddress("/run/other"), PlainCore(Options(), context))
    transport.feed(b"hello", path)
    assert transport.written == []


@pytest.mark.parametrize("path", ["/run/peer", b"/run/peer", "\0abstract"])
def test_a_unix_peer_with_a_path_is_answered(path: str | bytes) -> None:
    _, transport = bound(UNIXAddress("/run/server"))
    transport.feed(b"hello", path)
    assert transport.written == [(b"HELLO", path)]


@pytest.mark.parametrize("path", [None, "", b""])
def test_a_unix_peer_without_a_path_cannot_be_answered(path: str | None) -> None:
    protocol, transport = bound(UNIXAddress("/run/server"))
    transport.feed(b"hello", path)
    assert transport.written == []
    assert protocol.dropped == 0


@pytest.mark.parametrize(
    "failure",
    [
        BlockingIOError(errno.EAGAIN, "full"),
        ConnectionRefusedError(errno.ECONNREFUSED, "nobody"),
        OSError(errno.ENETUNREACH, "no route"),
        PermissionError(errno.EPERM, "firewall"),
        MessageLengthError("message too long"),
    ],
)
def test_an_answer_that_the_system_will_not_take_is_dropped_and_counted_and_not_logged(failure: Exception) -> None:
    protocol: Any = datagram_protocol(Shout, core())
    transport = bind_datagrams(protocol)

    def write(packet: bytes, addr: Any = None) -> None:
        raise failure

    transport.write = write  # type: ignore[method-assign, assignment]
    for _ in range(3):
        transport.feed(b"hello")
    assert protocol.dropped == 3


def test_an_error_in_an_authors_own_answer_is_not_taken_for_a_lost_one() -> None:
    class Reading(AnsweringProtocol):
        def answer(self, data: bytes) -> bytes:
            raise FileNotFoundError("the answer's file")

    protocol: Any = datagram_protocol(Reading, core())
    transport = bind_datagrams(protocol)
    with pytest.raises(FileNotFoundError):
        transport.feed(b"hello")
    assert protocol.dropped == 0


def test_what_to_answer_is_for_the_author_to_say() -> None:
    with pytest.raises(NotImplementedError):
        AnsweringProtocol().answer(b"hello")


class TestFunctions:
    """A function or coroutine function of data and peer answers datagrams."""

    def served(self, function: Any) -> tuple[Any, FakeDatagramTransport, MemoryReactor]:
        bench = build(Service("one", "One function", datagrams={"udp": function}))
        return *bind(bench, "udp"), bench.clock

    def test_a_function(self) -> None:
        def answer(data: bytes, peer: Any) -> bytes | None:
            return peer[0].encode() + data if data else None

        _, transport, _ = self.served(answer)
        transport.feed(b"hello", PEER)
        transport.feed(b"", PEER)
        assert transport.written == [(b"192.0.2.1hello", PEER)]

    def test_a_method_of_the_core(self) -> None:
        class Core(PlainCore):
            def get(self, data: bytes, peer: Any) -> bytes:
                return data[::-1]

        bench = build(Service("one", "One", core=Core, datagrams={"udp": lambda core: core.get}))
        _, transport = bind(bench, "udp")
        transport.feed(b"abc", PEER)
        assert transport.written == [(b"cba", PEER)]

    @pytest.mark.parametrize("port", sorted(ECHO_LIKE_PORTS))
    def test_an_echo_like_service_is_not_answered(self, port: int) -> None:
        _, transport, _ = self.served(lambda data, peer: data)
        transport.feed(b"hello", ("192.0.2.1", port))
        assert transport.written == []

    def test_a_builder_with_an_option_is_no_answering_function(self) -> None:
        def builder(core: object, upper: bool = True) -> Shout:
            return Shout()

        _, transport, _ = self.served(builder)
        transport.feed(b"hello", PEER)
        assert transport.written == [(b"HELLO", PEER)]

    def test_a_coroutine_answers_when_it_has_the_answer(self) -> None:
        async def answer(data: bytes, peer: Any) -> bytes | None:
            await deferLater(clock, 1)
            return data.upper() or None

        protocol, transport, clock = self.served(answer)
        for data in (b"one", b"", b"two"):
            transport.feed(data, PEER)
        assert transport.written == []
        clock.advance(1)
        assert transport.written == [(b"ONE", PEER), (b"TWO", PEER)]
        assert protocol.dropped == 0

    def test_a_coroutine_that_does_not_wait_answers_at_once(self) -> None:
        async def answer(data: bytes, peer: Any) -> bytes:
            return data

        _, transport, _ = self.served(answer)
        transport.feed(b"now", PEER)
        assert transport.written == [(b"now", PEER)]

    def test_no_more_coroutines_run_than_the_limit(self) -> None:
        gate: Deferred[None] = Deferred()

        async def answer(data: bytes, peer: Any) -> bytes:
            waits: Deferred[None] = Deferred()
            gate.addCallback(lambda _: waits.callback(None))
            await waits
            return data

        protocol, transport, _ = self.served(answer)
        for _ in range(MOST_PENDING + 2):
            transport.feed(b"x", PEER)
        assert protocol.dropped == 2
        gate.callback(None)
        assert len(transport.written) == MOST_PENDING
        transport.feed(b"y", PEER)
        assert transport.written[-1] == (b"y", PEER)

    def test_an_exception_of_a_coroutine_costs_one_answer_and_is_logged(self, logged_errors: Any) -> None:
        async def answer(data: bytes, peer: Any) -> bytes:
            return b"%d" % (10 // len(data))

        protocol, transport, _ = self.served(answer)
        for data in (b"", b"12"):
            transport.feed(data, PEER)
        assert transport.written == [(b"5", PEER)]
        assert protocol.dropped == 1
        assert len(logged_errors.flush(ZeroDivisionError)) == 1

    def test_those_that_run_are_cancelled_with_the_port(self) -> None:
        cancelled: list[object] = []

        async def answer(data: bytes, peer: Any) -> bytes:
            await Deferred(cancelled.append)
            return data

        protocol, transport, _ = self.served(answer)
        transport.feed(b"x", PEER)
        protocol.doStop()
        assert len(cancelled) == 1
        assert transport.written == []
