"""Datagram peers: a bounded table, forgetting, rates, and no more bytes out than came in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from netsvc.base.hosts import ephemeral_ports
from netsvc.guard import Guard
from netsvc.guard.sessions import Sessions
from netsvc.plan.limits import parse_limits
from netsvc.reactor.datagrams import UDPPort, UNIXDatagramPort
from tests.builders.refusals import refused

ONE, TWO, THREE = ("192.0.2.1", 1), ("192.0.2.2", 2), ("192.0.2.3", 3)


class Socket:
    """A socket with some datagrams to read, which keeps what is sent."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Any]] = []
        self.sent: list[tuple[bytes, Any]] = []

    def recvfrom(self, _size: int) -> tuple[bytes, Any]:
        if not self.waiting:
            raise BlockingIOError(11, "none")
        return self.waiting.pop(0)

    def sendto(self, data: bytes, address: Any) -> int:
        self.sent.append((data, address))
        return len(data)


class Answering(DatagramProtocol):
    """Answers with `factor` times what came."""

    transport: Any

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor
        self.got: list[tuple[bytes, Any]] = []
        #: What it answers instead.
        self.answers: Sequence[bytes] | None = None

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        self.got.append((data, addr))
        for answer in [data] * self.factor if self.answers is None else self.answers:
            self.transport.write(answer, addr)


class LimitedPort:
    """A port with limits, a clock, and no socket."""

    def __init__(
        self, factor: int = 1, verified: bool = False, cuts: bool = False, *, number: int = 9001, **limits: object
    ) -> None:
        self.clock = Clock()
        self.guard = Guard(self.clock)
        self.protocol = Answering(factor)
        self.port: Any = UDPPort(0, self.protocol, "::" if cuts else "")
        self.port.turn_clock = self.clock.seconds
        self.port.socket = self.socket = Socket()
        self.port.connected = 1
        self.port._cuts_address = cuts
        self.protocol.transport = self.port
        self.sessions: Sessions = self.guard.sessions(
            "x udp", None, parse_limits(limits), verified=verified, port=number
        )
        self.port.sessions = self.sessions

    def send(self, *datagrams: tuple[bytes, Any]) -> list[bytes]:
        """Let datagrams come; return what is sent because of them."""
        self.socket.waiting += datagrams
        before = len(self.socket.sent)
        self.port.doRead()
        return [data for data, _ in self.socket.sent[before:]]

    @property
    def counts(self) -> dict[str, int]:
        return refused(self.guard)


@pytest.mark.parametrize("heard", [0.0, 0.1, 2.5, 4.9])
def test_a_peer_is_answered_and_remembered_until_it_has_been_silent(heard: float) -> None:
    world = LimitedPort(sessionidle=10)
    assert world.send((b"a", ONE)) == [b"a"]
    world.clock.advance(heard)
    assert world.send((b"b", ONE), (b"c", TWO)) == [b"b", b"c"]
    # For as long as was said, and up to half of that longer.
    world.clock.pump([0.1] * 99)
    assert world.sessions.known(ONE) and world.sessions.known(TWO)
    world.send((b"d", ONE))
    world.clock.pump([0.1] * 55)
    assert world.sessions.known(ONE) and not world.sessions.known(TWO)
    world.clock.pump([0.1] * 100)
    assert len(world.sessions) == 0 and world.guard.process.live == 0
    # Nothing is waited for while nobody is there.
    world.guard.close()
    assert not world.clock.getDelayedCalls()


def test_no_more_bytes_go_to_a_peer_than_three_times_what_came_from_it_with_the_headers_of_packets() -> None:
    world = LimitedPort(factor=10)
    # 3 * (3 + 28) bytes, of which each answer takes 3 + 28.
    assert world.send((b"abc", ONE)) == [b"abc"] * 3
    assert world.counts == {"amplify": 7}
    for address, headers in ((("192.0.2.1", 1), 28), (("2001:db8::1", 1), 48), (("::ffff:192.0.2.1", 1), 28)):
        world = LimitedPort(factor=0)
        world.send((b"hello", address))
        longest = 3 * (5 + headers) - headers
        for size in (longest + 1, longest, 0):
            world.port.write(bytes(size), address)
        assert [len(data) for data, _ in world.socket.sent] == [longest]
        assert world.counts == {"amplify": 2}
        # As an answer at once.
        world = LimitedPort()
        world.protocol.answers = [bytes(size) for size in (longest + 1, longest, 0)]
        assert world.send((b"hello", address)) == [bytes(longest)]


def test_a_short_answer_to_a_shorter_request_passes() -> None:
    world = LimitedPort()
    for request, answer in ((b"GET a", b"VALUE 1"), (b"", b"i am udp,i got it")):
        world.protocol.answers = [answer]
        assert world.send((request, ONE)) == [answer]
    assert world.counts == {}


def test_what_a_limit_drops_is_explained_once_with_the_cure() -> None:
    world = LimitedPort()
    world.protocol.answers = [bytes(900)]
    with capturedLogs() as events:
        world.send((b"hello", ONE), (b"hello", TWO))
    lines = [formatEvent(event) or "" for event in events]
    [line] = [line for line in lines if "raise" in line]
    assert all(word in line for word in ("x udp", "900", " 5;", "raise amplify", "verifies_peers"))
    with capturedLogs() as events:
        LimitedPort(answers=1).send((b"x", ONE), (b"x", ONE))
    assert any("raise answers" in (formatEvent(event) or "") for event in events)


def test_with_a_factor_of_one_no_more_goes_out_than_came() -> None:
    world = LimitedPort(factor=3, amplify=1)
    assert world.send((b"abc", ONE)) == [b"abc"]
    assert world.counts == {"amplify": 2}
    # Not later either, and not to one who never said anything.
    world.port.write(b"x", ONE)
    world.port.write(b"x", THREE)
    assert len(world.socket.sent) == 1
    # What was not used may be used later.
    world.protocol.factor = 0
    world.send((b"1234", ONE))
    world.port.write(b"1234", ONE)
    world.port.write(b"5", ONE)
    assert [data for data, _ in world.socket.sent[1:]] == [b"1234"]


def test_a_factor_below_one_is_for_the_sum() -> None:
    world = LimitedPort(amplify=0.5)
    assert world.send(*[(bytes(100), ONE)] * 10) == [bytes(100)] * 5
    world = LimitedPort(amplify=0)
    assert world.send((b"x", ONE)) == [] and world.counts == {"amplify": 1}


@pytest.mark.parametrize(
    "world", [LimitedPort(3, amplify="none"), LimitedPort(3, verified=True), LimitedPort(3, amplify=3)]
)
def test_a_service_that_verifies_its_peers_or_a_user_may_lift_that(world: LimitedPort) -> None:
    assert world.send((b"abc", ONE)) == [b"abc"] * 3
    assert world.counts == {}


def test_lifted_for_all_a_peer_that_never_spoke_may_be_sent_to() -> None:
    world = LimitedPort(verified=True)
    world.port.write(b"hello", THREE)
    assert world.socket.sent == [(b"hello", THREE)]


def test_with_a_dry_run_answers_grow_and_are_counted() -> None:
    world = LimitedPort(factor=10, dryrun="amplify")
    for number in (1, 2):
        assert world.send((b"abc", ONE)) == [b"abc"] * 10
        assert world.counts == {} and world.sessions.gate.tally.counts.reported == {"amplify": 7 * number}


def test_a_full_table_forgets_the_old_before_it_refuses() -> None:
    world = LimitedPort(sessions=2, sessionidle=10)
    world.send((b"", ONE), (b"", TWO))
    # One of the two gives way: neither has been heard of since.
    assert world.send((b"c", THREE)) == [b"c"]
    assert len(world.sessions) == 2 and world.counts == {}


def test_a_flood_of_addresses_does_not_push_out_one_that_goes_on_talking() -> None:
    world = LimitedPort(sessions=50, sessionidle=60)
    world.send((b"", ONE))
    for number in range(2000):
        world.send((b"x", (f"198.51.{number >> 8}.{number & 255}", 9)), (b"", ONE))
        assert world.sessions.known(ONE)
        assert len(world.sessions) <= 50
    assert world.guard.process.live == len(world.sessions)


def test_a_flood_at_one_port_does_not_close_another() -> None:
    world = LimitedPort()
    world.guard.process.change(parse_limits({"sessions": 20}))
    other = LimitedPort()
    other.guard, other.sessions = world.guard, world.guard.sessions("y udp")
    other.port.sessions = other.sessions
    for number in range(100):
        assert world.send((b"x", (f"198.51.100.{number}", 9)))
    # Nobody had been there.
    assert other.send((b"y", ONE)) == [b"y"]
    for number in range(100):
        assert world.send((b"x", (f"198.51.101.{number}", 9)))
    assert other.sessions.known(ONE) and world.guard.process.live == 20


def asked_from(port: int) -> tuple[bytes, Any]:
    return b"x", ("192.0.2.9", port)


def test_sessions_of_one_address_are_limited_and_a_new_one_takes_the_place_of_an_old_one() -> None:
    world = LimitedPort(perip=2)
    assert world.send(*map(asked_from, (1, 2, 3)), (b"y", ONE)) == [b"x", b"x", b"x", b"y"]
    assert [world.sessions.known(("192.0.2.9", port)) is not None for port in (1, 2, 3)] == [False, True, True]
    assert world.counts == {} and world.guard.process.ledger("datagram").peers == {"192.0.2.9": 2, "192.0.2.1": 1}


def test_a_client_that_uses_a_new_port_for_each_query_is_answered_as_long_as_it_asks() -> None:
    world = LimitedPort()
    for turn in range(20):
        assert len(world.send(*(asked_from(port) for port in range(turn * 500, turn * 500 + 500)))) == 500
        world.clock.advance(0.5)
        # The table is bounded all the same.
        assert len(world.sessions) == 256
    assert world.counts == {}


def test_new_ports_do_not_end_a_conversation_nor_one_that_waits_for_its_answer() -> None:
    world = LimitedPort(perip=20)
    talking, waiting = ("192.0.2.9", 1), ("192.0.2.9", 2)
    world.send((b"x", talking), (b"x", talking))
    world.protocol.factor = 0
    world.send((b"x", waiting))
    world.protocol.factor = 1
    for port in range(100, 115):
        world.send(asked_from(port))
    for port in range(200, 220):
        world.send(asked_from(port), (b"x", talking))
        assert world.sessions.known(talking) and world.sessions.known(waiting)
    # One that goes on waiting is in the end as good as gone; one that is heard from is not.
    for port in range(300, 400):
        world.send(asked_from(port), (b"x", talking))
    assert world.sessions.known(talking) and not world.sessions.known(waiting)
    assert len(world.sessions) == 20 and world.counts == {}


def test_at_its_limit_a_peer_gives_up_a_session_of_the_port_where_it_has_most() -> None:
    world = LimitedPort()
    world.guard.process.change(parse_limits({"perip": 4}))
    other = LimitedPort()
    other.guard, other.sessions = world.guard, world.guard.sessions("y udp")
    other.port.sessions = other.sessions
    world.send(*map(asked_from, (1, 2, 3)))
    other.send(asked_from(4), asked_from(5))
    assert (len(world.sessions), len(other.sessions)) == (2, 2)
    assert world.sessions.count("192.0.2.9") == 2 and world.sessions.count("192.0.2.1") == 0
    world.sessions.forget_one_of("192.0.2.1")
    other.sessions.close()
    world.sessions.close()
    assert world.guard.process.live == 0


def test_new_sessions_a_second_are_limited() -> None:
    world = LimitedPort(rate=1, burst=2)
    assert len(world.send((b"x", ONE), (b"x", TWO), (b"x", THREE))) == 2
    assert world.counts == {"rate": 1}
    world.clock.advance(1)
    assert len(world.send((b"x", THREE))) == 1


def test_datagrams_a_second_are_limited_for_each_peer() -> None:
    world = LimitedPort(datagrams=2)
    assert world.send(*[(b"x", ONE)] * 5, (b"y", TWO)) == [b"x", b"x", b"y"]
    assert world.counts == {"datagrams": 3}
    world.clock.advance(0.5)
    assert world.send(*[(b"x", ONE)] * 5) == [b"x"]


def test_the_rates_of_a_peer_are_the_same_from_whatever_ports_it_sends() -> None:
    world = LimitedPort(datagrams=5)
    ports = [(b"x", ("192.0.2.1", port)) for port in range(1, 41)]
    assert len(world.send(*ports, (b"y", TWO))) == 6
    world = LimitedPort(read=1000)
    big = b"x" * 60_000
    assert world.send((big, ("2001:db8::1", 1)), (big, ("2001:db8::2", 2)), (big, ("2001:db8:0:1::", 3))) == [big, big]


def test_what_is_set_goes_before_what_the_service_says_of_itself() -> None:
    world = LimitedPort(3, verified=True, amplify=1)
    assert world.send((b"abc", ONE)) == [b"abc"]
    assert world.counts == {"amplify": 2}


def test_of_many_in_one_go_exactly_so_many_pass() -> None:
    world = LimitedPort(datagrams=100, write=100_000)
    assert len(world.send(*[(b"x", ONE)] * 300)) == 100
    assert world.counts == {"datagrams": 200}
    world.clock.advance(0.5)
    assert len(world.send(*[(b"x", ONE)] * 300)) == 50


_LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "datagrams": st.sampled_from([5, 40, 1000]),
        "read": st.sampled_from(["300K", "1M", "9M"]),
        "write": st.sampled_from(["300K", "1M", "9M"]),
        "readall": st.sampled_from(["1M", "20M"]),
        "writeall": st.sampled_from(["1M", "20M"]),
    },
)
_BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 10, 20_000, 65_000])), max_size=40),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.1, 1.0]),
    ),
    max_size=6,
)


@given(_LIMITS, _BATCHES)
def test_what_is_granted_in_one_go_is_what_would_have_passed_one_by_one(limits: Any, batches: Any) -> None:
    granting, asking = LimitedPort(**limits), LimitedPort(**limits)
    asking.sessions._grant = lambda session, now: False  # type: ignore[method-assign]
    for world in (granting, asking):
        for datagrams, factor, pause in batches:
            world.protocol.factor = factor
            world.send(*((b"x" * size, (f"192.0.2.{who}", who)) for who, size in datagrams))
            world.clock.advance(pause)
    assert granting.socket.sent == asking.socket.sent
    assert granting.protocol.got == asking.protocol.got
    assert granting.counts == asking.counts


def test_bytes_a_second_are_limited_each_way() -> None:
    world = LimitedPort(read=100_000)
    big = b"x" * 60_000
    assert world.send((big, ONE), (big, ONE), (big, TWO)) == [big, big]
    assert world.counts == {"read": 1}
    world = LimitedPort(write=70_000)
    assert world.send((big, ONE), (big, ONE)) == [big]
    assert world.counts == {"write": 1}


def test_bytes_a_second_are_limited_for_all_together() -> None:
    world = LimitedPort(readall=100_000)
    big = b"x" * 60_000
    assert world.send((big, ONE), (big, TWO)) == [big]
    assert world.counts == {"readall": 1}
    world = LimitedPort(writeall=100_000)
    assert world.send((big, ONE), (big, TWO)) == [big]
    assert world.counts == {"writeall": 1}


def test_a_session_may_last_so_long() -> None:
    world = LimitedPort(life=10, sessionidle=60)
    world.send((b"x", ONE))
    world.clock.advance(9)
    assert world.send((b"x", ONE)) == [b"x"]
    world.clock.advance(2)
    assert world.send((b"x", ONE), (b"y", ONE)) == [b"y"]
    assert world.counts == {"life": 1}
    assert len(world.sessions) == world.guard.process.live == 1


def test_one_address_and_port_gets_so_many_datagrams_a_second() -> None:
    world = LimitedPort()
    sent = 0
    for _ in range(10):
        sent += len(world.send(*[(b"x", ONE)] * 300))
    assert sent == 1000 and world.counts == {"answers": 2000}
    # What is not answered the protocol does not see.
    assert len(world.protocol.got) == 1000
    # Another port of the address has its own.
    assert world.send((b"x", (ONE[0], 2))) == [b"x"]
    world.clock.advance(0.1)
    assert len(world.send(*[(b"x", ONE)] * 300)) == 100
    # So has one that stayed away, and no more than a second's worth.
    world.clock.advance(50)
    assert sum(len(world.send(*[(b"x", ONE)] * 500)) for _ in range(5)) == 1000


def test_a_service_that_never_answers_may_be_sent_any_number() -> None:
    world = LimitedPort(factor=0)
    for _ in range(10):
        world.send(*[(b"x", ONE)] * 500)
    assert len(world.protocol.got) == 5000 and world.counts == {}


def test_what_a_service_sends_unasked_is_limited_as_its_answers_are() -> None:
    world = LimitedPort(factor=0, verified=True)
    world.send((b"x", ONE))
    for _ in range(1500):
        world.port.write(b"news", ("192.0.2.1", ONE[1]))
    assert len(world.socket.sent) == 1000 and world.counts == {"answers": 500}
    # Several answers to one request as well.
    world = LimitedPort(factor=1500, verified=True)
    world.send((b"x", ONE))
    assert len(world.socket.sent) == 1000 and world.counts == {"answers": 500}


@pytest.mark.parametrize(("limit", "most"), [("5", 5), ("none", 300), (0.5, 1)])
def test_the_number_of_answers_can_be_set(limit: object, most: int) -> None:
    world = LimitedPort(answers=limit)
    assert len(world.send(*[(b"x", ONE)] * 300)) == most
    world = LimitedPort()
    world.send((b"x", ONE))
    world.sessions.gate = world.guard.gate("x udp", "datagram", None, parse_limits({"answers": limit}))
    assert len(world.send(*[(b"x", ONE)] * 300)) == most


def test_a_dry_run_of_answers_drops_nothing() -> None:
    world = LimitedPort(answers=5, dryrun="answers")
    assert len(world.send(*[(b"x", ONE)] * 300)) == 300
    assert world.counts == {} and world.sessions.gate.tally.counts.reported == {"answers": 295}


def test_the_default_is_for_peers_of_this_machine_only_if_they_have_the_port_of_a_service() -> None:
    client = ephemeral_ports()[5]
    for peer in (("127.0.0.1", client), ("::1", client), ("::ffff:127.0.0.1", client)):
        world = LimitedPort()
        assert sum(len(world.send(*[(b"x", peer)] * 500)) for _ in range(100)) == 50_000, peer
        assert len(LimitedPort(answers=7).send(*[(b"x", peer)] * 500)) == 7
    for peer in (("127.0.0.1", 9201), ("::1", 9201)):
        world = LimitedPort()
        assert sum(len(world.send(*[(b"x", peer)] * 500)) for _ in range(5)) == 1000
    port = unix_port()
    port.socket.waiting = [(b"x", "/run/a")] * 3000
    for _ in range(10):
        port.doRead()
    assert len(port.socket.sent) == 3000


def loop(one: LimitedPort, other: LimitedPort, addresses: Sequence[Any], count: int = 1) -> int:
    """Let two services answer each other, the first one `count` datagrams; return how many they sent in all."""
    one.socket.waiting = [(b"x", addresses[1])] * count
    rounds = 0
    while one.socket.waiting or other.socket.waiting:
        for here, there, address in ((one, other, addresses[0]), (other, one, addresses[1])):
            here.port.doRead()
            there.socket.waiting += [(data, address) for data, _ in here.socket.sent]
            rounds += len(here.socket.sent)
            here.socket.sent.clear()
            here.clock.advance(0.0001)
        assert rounds < 200_000, "it runs without end"
    return rounds


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("host", ["192.0.2.1", "127.0.0.1", "::1"])
def test_two_services_cannot_be_made_to_answer_each_other_without_end(host: str, count: int) -> None:
    one, other = LimitedPort(number=9001), LimitedPort(number=9201)
    assert loop(one, other, ((host, 9001), (host, 9201)), count) < 2500


@pytest.mark.parametrize("count", [1, 40])
def test_nor_can_they_on_ports_that_the_system_has_given_them(count: int) -> None:
    ports = ephemeral_ports()[5:7]
    one, other = (LimitedPort(number=number) for number in ports)
    assert loop(one, other, [("127.0.0.1", number) for number in ports], count) < 25_000
    # A client is muted for a moment only, and rarely.
    world, client = LimitedPort(number=ports[0]), ("127.0.0.1", ports[1])
    answered = 0
    for _ in range(2000):
        answered += len(world.send(*[(b"x", client)] * 100))
        world.clock.advance(0.001)
    assert answered > 195_000


def test_with_a_dry_run_rates_and_lives_are_only_counted() -> None:
    world = LimitedPort(life=1, datagrams=1, dryrun="all")
    world.send((b"x", ONE), (b"x", ONE))
    world.clock.advance(2)
    assert world.send((b"x", ONE)) == [b"x"]
    assert world.counts == {}
    assert sorted((each.limit, each.action) for each in world.guard.refusals.last) == [
        ("datagrams", "would have refused"),
        ("life", "would have ended"),
    ]


def test_a_datagram_of_a_refused_address_is_not_seen_by_the_protocol() -> None:
    world = LimitedPort(deny="192.0.2.1")
    assert world.send((b"x", ONE), (b"y", TWO)) == [b"y"]
    assert world.protocol.got == [(b"y", TWO)]
    assert world.counts == {"deny": 1}


def test_an_ipv6_peer_is_known_by_host_and_port() -> None:
    world = LimitedPort(cuts=True)
    assert world.send((b"x", ("fe80::1%lo", 7, 0, 1))) == [b"x"]
    assert world.socket.sent == [(b"x", ("fe80::1%lo", 7, 0, 1))]
    assert world.sessions.known(("fe80::1%lo", 7))


def test_new_limits_hold_for_new_sessions() -> None:
    world = LimitedPort(datagrams=1)
    world.send((b"x", ONE))
    old = world.guard.process.live
    world.sessions.gate = world.guard.gate("x udp", "datagram", None, parse_limits({"datagrams": 3}))
    assert world.send((b"x", ONE)) == []
    assert world.send(*[(b"x", TWO)] * 4) == [b"x"] * 3
    world.sessions.close()
    assert old == 1 and world.guard.process.live == 0


def test_how_much_a_peer_may_be_sent_changes_for_those_who_are_there() -> None:
    world = LimitedPort(factor=0, amplify="none")
    world.send((b"x", ONE))
    for amplify, sent in (("1", 0), ("none", 1), ("1", 1)):
        gate = world.guard.gate("x udp", "datagram", None, parse_limits({"amplify": amplify}))
        world.sessions.gate = gate
        # Not the very address that came, or it would be an answer to the last datagram.
        world.port.write(b"1234", ("192.0.2.1", ONE[1]))
        assert len(world.socket.sent) == sent


def test_a_shorter_time_to_be_remembered_holds_at_once() -> None:
    world = LimitedPort(sessionidle="none")
    world.send((b"x", ONE))
    world.sessions.gate = world.guard.gate("x udp", "datagram", None, parse_limits({"sessionidle": 10}))
    world.clock.pump([5.0] * 3)
    assert len(world.sessions) == 0
    world.send((b"x", ONE))
    # A longer one for the next turn.
    world.sessions.gate = world.guard.gate("x udp", "datagram", None, parse_limits({"sessionidle": 100}))
    world.clock.advance(5)
    world.clock.advance(49)
    assert world.sessions.known(ONE)


def test_who_never_spoke_is_named_as_everywhere_when_it_is_not_sent_to() -> None:
    world = LimitedPort()
    with capturedLogs() as events:
        world.port.write(b"x", ("::ffff:192.0.2.1", 1))
    assert formatEvent(events[0]) == "limit amplify refused 192.0.2.1 at x udp"


def test_a_port_that_closes_forgets_its_peers() -> None:
    world = LimitedPort()
    world.send((b"x", ONE))
    world.sessions.close()
    assert len(world.sessions) == world.guard.process.live == 0
    # Where nobody is, nothing is waited for, and nobody can be asked to leave.
    world.sessions.close()
    world.sessions.forget_one()
    assert len(world.sessions) == 0
    world.guard.close()
    assert not world.clock.getDelayedCalls()


def unix_port(**limits: object) -> Any:
    port: Any = UNIXDatagramPort.__new__(UNIXDatagramPort)
    port.maxPacketSize, port.connected, port.turn_clock = 212992, 1, lambda: 0.0
    port.socket, port.protocol = Socket(), Answering()
    port.protocol.transport = port
    port.sessions = Guard(Clock()).sessions("x unix", None, parse_limits(limits))
    return port


def test_the_long_datagrams_of_unix_sockets_are_limited_as_others_are() -> None:
    port = unix_port(read="8M")
    port.socket.waiting = [(b"x" * 200_000, "/run/a")] * 100
    port.doRead()
    assert len(port.protocol.got) == 8 * 1024 * 1024 // 200_000


def test_unix_peers_have_sessions_as_well() -> None:
    port = unix_port(datagrams=1, amplify="none")
    port.socket.waiting = [(b"a", "/run/a"), (b"b", "/run/a"), (b"c", None)]
    port.doRead()
    assert [data for data, _ in port.protocol.got] == [b"a", b"c"]
    assert port.socket.sent[0] == (b"a", "/run/a")


@given(st.lists(st.tuples(st.sampled_from(["talk", "answer", "wait"]), st.integers(0, 5), st.integers(0, 40))))
def test_whatever_happens_the_table_is_bounded_and_no_peer_gets_more_than_it_gave(steps: list[Any]) -> None:
    world = LimitedPort(factor=0, sessions=3, sessionidle=10)
    came: dict[Any, int] = {}
    for what, who, size in steps:
        peer = (f"192.0.2.{who}", who)
        if what == "talk":
            world.send((b"x" * size, peer))
            came[peer] = came.get(peer, 0) + 3 * (size + 28)
        elif what == "answer":
            world.port.write(b"x" * size, peer)
        else:
            world.clock.advance(size / 4)
        assert len(world.sessions) <= 3
        assert world.guard.process.live == len(world.sessions)
    for peer, total in came.items():
        assert sum(len(data) + 28 for data, address in world.socket.sent if address == peer) <= total
    assert {address for data, address in world.socket.sent if data} <= came.keys()
