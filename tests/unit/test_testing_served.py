"""A service in memory, and its clients: what they send, expect and see of a connection's end."""

from __future__ import annotations

import re
import unittest
from typing import Any

import pytest
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from netsvc.base.errors import PluginError, UserError
from netsvc.coroutine import Stream
from netsvc.interfaces import Context, Options
from netsvc.options import whole_number
from netsvc.service import PlainCore, Service, ServicePlugin
from netsvc.stream import LineProtocol
from netsvc.testing import MemoryReactor, Served, connect, connect_datagram, serve
from tests.builders.facts import lacks
from tests.builders.parrots import Parrot


class RoomOptions(Options):
    optParameters = [
        ["greeting", None, "hello", "What a member is told first"],
        ["most-members", None, 100, "Members at a time", whole_number(1, 1000)],
    ]


class Room(PlainCore):
    """A chat room, for several clients of one core."""

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.members: dict[Stream, None] = {}
        self.events: list[str] = []
        self._lines = context.metrics.counter("lines", "Lines that were said")

    async def enter(self, stream: Stream) -> None:
        await stream.write(self.options["greeting"].encode() + b"\n")
        self.members[stream] = None
        try:
            async for line in stream:
                self._lines.inc()
                if line == b"boom":
                    raise KeyError("boom")
                if line == b"later":
                    await deferLater(self.context.reactor, 5)
                for member in self.members:
                    member.write(line + b"\n")
        finally:
            del self.members[stream]

    def count(self, data: bytes, peer: Any) -> bytes:
        if data == b"boom":
            raise KeyError("boom")
        return b"%d " % len(self.members) + data * (1 if len(data) < 10 else 20)

    def check(self) -> None:
        self.events.append("check")

    def start(self) -> None:
        self.events.append("start")

    def drain(self) -> None:
        self.events.append("drain")
        for stream in self.members:
            stream.close()

    def stop(self) -> None:
        self.events.append("stop")


room = Service(
    "room",
    "For tests",
    options=RoomOptions,
    core=Room,
    streams={"tcp": lambda core: core.enter},
    datagrams={"udp": lambda core: core.count},
)


class TestServe:
    def test_starts_and_stops_the_service(self) -> None:
        served = serve(room)
        assert served.core.events == ["check", "start"]
        client = served.connect()
        assert served.drain() is None
        assert client.closed and not client.was_reset
        served.stop()
        served.stop()
        assert served.core.events == ["check", "start", "drain", "stop"]
        assert served.clock.getDelayedCalls() == []

    def test_stop_ends_what_is_left(self) -> None:
        served = serve(room)
        client, _ = served.connect(), served.connect_datagram()
        served.stop()
        assert client.reason == "reset"
        assert not served.core.members
        assert not served._open_ports()

    def test_options_are_keywords(self) -> None:
        served = serve(room, greeting="hi", most_members=5)
        assert (served.options["greeting"], served.options["most-members"]) == ("hi", 5)
        assert serve(room, settings={"most-members": 7}).options["most-members"] == 7
        connect(served).expect(b"hi\n")
        connect(room, greeting="oh").expect(b"oh\n")

    @pytest.mark.parametrize("wrong", [{"most_members": 0}, {"colour": "red"}, {"limits": {"perip": "many"}}])
    def test_wrong_ones_are_errors(self, wrong: Any) -> None:
        with pytest.raises(UserError):
            serve(room, **wrong)

    def test_options_of_a_service_that_runs_are_an_error(self) -> None:
        with pytest.raises(TypeError, match="greeting"):
            connect(serve(room), greeting="hi")

    @pytest.mark.parametrize(
        "named",
        [
            "echo",
            "netsvc.services.echo:service",
            ServicePlugin("echo", "netsvc.services.echo:service", "Send back what comes"),
            Parrot,
            Factory.forProtocol(Parrot),
        ],
    )
    def test_anything_that_netsvc_can_serve(self, named: Any) -> None:
        client = connect(named)
        client.send(b"x")
        client.expect(b"x")

    def test_a_function_and_a_coroutine(self) -> None:
        async def shout(stream: Stream) -> None:
            async for line in stream:
                await stream.write(line.upper())

        client = connect(shout)
        client.send(b"x\n")
        client.expect(b"X")
        datagram = connect_datagram(lambda data, peer: data.upper())
        datagram.send(b"x")
        datagram.expect(b"X")

    def test_what_cannot_be_served_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="42"):
            serve(42)
        with pytest.raises(PluginError, match="did you mean echo"):
            serve("ecko")

    def test_a_protocol_is_chosen_by_name(self) -> None:
        served = serve(Service("two", "Two", streams={"a": Parrot, "b": LineProtocol}))
        assert [served.connect().protocol, served.connect("b").protocol] == ["a", "b"]
        with pytest.raises(ValueError, match=r"two .*\bc\b.*a, b"):
            served.connect("c")
        with pytest.raises(ValueError, match="datagram"):
            served.connect_datagram()
        with pytest.raises(ValueError, match="connect_datagram"):
            connect(room, "udp")

    def test_services_can_share_a_clock(self) -> None:
        clock = MemoryReactor()
        clock.advance(86400)
        one, other = serve(room, clock=clock), serve("echo", clock=clock)
        assert one.clock is other.clock is one.context.reactor

    def test_a_factory_that_refuses_a_client_resets_it(self) -> None:
        class Closed(Factory):
            def buildProtocol(self, addr: object) -> None:
                return None

        client = connect(Closed())
        assert (client.closed, client.was_reset, client.reason) == (True, True, "server")


class TestStreamClients:
    def test_all_talk_to_one_core(self) -> None:
        served = serve(room)
        ann, bob = served.connect(), connect(served)
        for member in (ann, bob):
            member.expect(b"hello\n")
        ann.send(b"good mor")
        bob.expect_nothing()
        ann.send(b"ning\n")
        bob.expect(b"good morning\n")
        ann.close()
        assert list(served.core.members) and len(served.core.members) == 1
        assert served.metrics.value("lines") == 1

    def test_expect_takes_the_next_bytes(self) -> None:
        client = connect(Parrot)
        client.send(b"one two\r\nthree\nfour")
        assert client.expect(b"one") == b"one"
        assert client.expect(re.compile(rb" (\w)wo")).groups == (b"t",)
        assert client.expect_line() == b""
        line = client.expect_line(re.compile(rb"th(.*)"))
        assert (line, line.groups) == (b"three", (b"ree",))
        assert client.received == b"four"
        client.expect(b"four")
        client.expect_nothing()

    @pytest.mark.parametrize(
        ("act", "facts"),
        [
            (lambda c: c.expect(b"hexlo"), ["expected: b'hexlo'", "received: b'hello\\n'", "^ byte 2", "is open"]),
            (lambda c: c.expect(b"hello\n!"), ["^ byte 6"]),
            (lambda c: c.expect(b""), None),
            (lambda c: c.expect(re.compile(rb"\d")), [r"b'\\d'", "b'hello\\n'"]),
            (lambda c: c.expect_line(b"hell"), ["b'hell'", "b'hello'", "^ byte 4"]),
            (lambda c: c.expect_line(re.compile(rb"h")), ["b'h'", "b'hello'"]),
            (lambda c: (c.expect_line(), c.expect_line()), ["a line", "b''"]),
            (lambda c: (c.expect_line(), c.expect_line(b"x")), ["b'x'", "b''"]),
            (lambda c: c.expect_nothing(), ["nothing", "b'hello\\n'"]),
            (lambda c: c.expect_end(), ["nothing", "b'hello\\n'"]),
            (lambda c: (c.expect_line(), c.expect_end()), ["the end", "is open"]),
            (lambda c: (c.expect_line(), c.send(b"later\n"), c.expect(b"x")), ["clock.advance(5)"]),
            (lambda c: (c.send(b"x" * 9000), c.expect(b"x")), ["the server has closed (server)"]),
        ],
    )
    def test_what_did_not_come_is_shown(self, act: Any, facts: Any) -> None:
        client = connect(room)
        if facts is None:
            act(client)
            return
        with pytest.raises(AssertionError) as caught:
            act(client)
        assert lacks(str(caught.value), "room tcp", "192.0.2.1:50001", *facts) == []

    def test_text_is_an_error_of_the_test(self) -> None:
        wrong: Any = "hello"
        client, datagrams = connect(room), connect_datagram(room)
        datagrams.send(b"x")
        for act in (client.expect, client.expect_line, client.send, datagrams.expect, datagrams.send):
            with pytest.raises(TypeError):
                act(wrong)

    def test_a_long_difference_is_shown_where_it_is(self) -> None:
        client = connect(Parrot)
        client.send(b"x" * 1000 + b"y" + b"x" * 1000)
        with pytest.raises(AssertionError) as caught:
            client.expect(b"x" * 2001)
        expected, received, mark = str(caught.value).splitlines()[1:4]
        assert received[mark.index("^")] == "y" and expected[mark.index("^")] == "x"
        assert len(received) < 300 and "byte 1000" in mark and "2001 bytes" in received

    def test_time_passes_with_the_clock(self) -> None:
        client = connect(room)
        client.send(b"later\n")
        client.expect(b"hello\n")
        client.served.clock.advance(4.9)
        client.expect_nothing()
        client.served.clock.advance(0.1)
        client.expect(b"later\n")

    def test_an_exception_of_the_protocol_is_raised_and_closes_the_connection(self) -> None:
        served = serve(room)
        client, other = served.connect(), served.connect()
        with pytest.raises(KeyError, match="boom"):
            client.send(b"boom\n")
        assert (client.closed, client.reason, other.closed) == (True, "error", False)
        other.send(b"x\n")
        other.expect(b"hello\nx\n")

    @pytest.mark.parametrize("method", ["connectionMade", "connectionLost", "readConnectionLost"])
    def test_wherever_it_was(self, method: str) -> None:
        def fail(self: Any, *_: object) -> None:
            raise KeyError(method)

        broken = type("Broken", (LineProtocol,), {method: fail})
        with pytest.raises(KeyError, match=method):
            connect(broken).close()

    def test_half_close(self) -> None:
        client = connect(room)
        client.half_close(b"last\n")
        client.expect(b"hello\nlast\n")
        client.expect_end()
        assert client.reason == "peer"

    def test_close_and_reset(self) -> None:
        served = serve(room)
        for act, reason in (("close", "peer"), ("reset", "reset")):
            client = served.connect()
            getattr(client, act)()
            assert client.reason == reason
            client.send(b"dropped\n")
        assert not served.core.members

    def test_what_is_written_to_a_client_that_is_gone_ends_the_connection(self) -> None:
        lost: list[Any] = []

        class Writing(LineProtocol):
            def readConnectionLost(self) -> None:
                self.transport.write(b"more")

            def connectionLost(self, reason: Any = None) -> None:
                lost.append(reason.type.__name__)

        connect(Writing).close()
        assert lost == ["ConnectionLost"]

    def test_a_client_that_does_not_read(self) -> None:
        client = connect("echo", window=10)
        client.send(bytes(300_000))
        assert len(client.received) == 10
        assert 65_536 <= client.unread < 300_000 - 10
        assert client.unsent > 0 and client.unread + client.unsent == 300_000 - 10
        client.window = 1_000_000
        client.expect(bytes(300_000))
        assert (client.unread, client.unsent) == (0, 0)

    def test_peers(self) -> None:
        served = serve(room)
        peers = [served.connect().peer, served.connect(peer="192.0.2.9").peer, served.connect(peer="2001:db8::1").peer]
        assert [(peer.host, peer.port) for peer in peers] == [
            ("192.0.2.1", 50001),
            ("192.0.2.9", 50002),
            ("2001:db8::1", 50003),
        ]
        exact = IPv6Address("TCP", "2001:db8::2", 7)
        assert served.connect(peer=exact).peer is exact
        assert served.connect(peer=UNIXAddress("/run/client")).closed is False

    def test_awaiting_is_allowed(self) -> None:
        async def test() -> bytes:
            client = await connect(room)
            return await client.expect(b"hello\n")

        done: list[bytes] = []
        ensureDeferred(test()).addCallback(done.append)
        assert done == [b"hello\n"]


class TestLimits:
    def test_those_of_production_apply(self) -> None:
        client = connect(room)
        client.expect_line()
        client.served.clock.advance(200)
        assert client.reason == "limit handshake"
        assert client.closed

    def test_a_test_sets_its_own(self) -> None:
        served = serve(room, limits={"perip": 1, "handshake": None})
        first, second, other = served.connect(), served.connect(), served.connect(peer="192.0.2.9")
        assert (first.reason, second.reason, other.reason) == ("", "limit perip", "")
        assert second.was_reset
        with pytest.raises(AssertionError, match="limit perip"):
            second.expect(b"hello\n")
        first.close()
        assert not served.connect().closed
        served.clock.advance(200)
        assert other.reason == ""

    def test_those_that_the_service_declares_apply(self) -> None:
        declared = Service("few", "Few", streams={"tcp": Parrot}, limits={"connections": 1})
        served = serve(declared)
        served.connect()
        assert served.connect().reason == "limit connections"

    def test_of_datagrams(self) -> None:
        client = connect_datagram(room)
        client.send(b"x" * 9)
        client.expect(b"0 " + b"x" * 9)
        client.send(b"x" * 99)
        client.expect_nothing()
        with pytest.raises(AssertionError, match="limit amplify"):
            client.expect(b"x")
        free = connect_datagram(room, limits={"amplify": None})
        free.send(b"x" * 99)
        free.expect(re.compile(rb"0 x{1980}"))

    def test_of_datagrams_a_second(self) -> None:
        served = serve(room, limits={"datagrams": 1})
        one, other = served.connect_datagram(), served.connect_datagram(peer="192.0.2.9")
        for client in (one, one, other):
            client.send(b"x")
        assert (one.received, other.received) == ([b"0 x"], [b"0 x"])
        served.clock.advance(1)
        one.send(b"x")
        assert len(one.received) == 2


class TestDatagramClients:
    def test_each_gets_its_own_answers(self) -> None:
        served = serve(room)
        clients = [served.connect_datagram(), served.connect_datagram(), served.connect_datagram(peer="2001:db8::1")]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        for number, client in enumerate(clients):
            client.expect(b"0 %d" % number)
            client.expect_nothing()

    def test_shares_the_core(self) -> None:
        served = serve(room)
        served.connect()
        client = served.connect_datagram()
        client.send(b"x")
        assert client.expect(re.compile(rb"(\d) x")).groups == (b"1",)

    def test_of_a_unix_socket(self) -> None:
        client = connect_datagram("echo", peer=UNIXAddress("/run/client"))
        client.send(b"x")
        client.expect(b"x")

    @pytest.mark.parametrize(
        ("act", "facts"),
        [
            (lambda c: c.expect(b"x"), ["b'x'", "no datagram"]),
            (lambda c: (c.send(b"y"), c.expect(b"0 x")), ["b'0 x'", "b'0 y'", "byte 2"]),
            (lambda c: (c.send(b"y"), c.expect(re.compile(rb"0"))), ["b'0'", "b'0 y'"]),
            (lambda c: (c.send(b"y"), c.expect_nothing()), ["no datagram", "b'0 y'"]),
        ],
    )
    def test_what_did_not_come_is_shown(self, act: Any, facts: Any) -> None:
        with pytest.raises(AssertionError) as caught:
            act(connect_datagram(room))
        assert lacks(str(caught.value), "room udp", "192.0.2.1:50001", *facts) == []

    def test_an_exception_of_the_protocol_is_raised(self) -> None:
        client = connect_datagram(room)
        with pytest.raises(KeyError):
            client.send(b"boom")
        client.send(b"x")
        client.expect(b"0 x")


class WithUnittest(unittest.TestCase):
    def setUp(self) -> None:
        self.served: Served = serve(room)
        self.addCleanup(self.served.stop)

    def test_a_plain_test_case(self) -> None:
        self.served.connect().expect(b"hello\n")


class WithTrial(SynchronousTestCase):
    def test_a_trial_test_case(self) -> None:
        waits: Deferred[bytes] = Deferred()

        async def answer(stream: Stream) -> None:
            await stream.write(await waits)

        client = connect(answer)
        client.expect_nothing()
        waits.callback(b"now")
        client.expect(b"now")
        client.expect_end()


def test_a_protocol_that_is_none_is_an_error() -> None:
    with pytest.raises(TypeError):
        serve(type("Other", (), {}))
    assert issubclass(Parrot, Protocol)
