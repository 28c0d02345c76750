from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.test.iosim import connectedServerAndClient

from netsvc.service import stream_factory
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.line import LINGER, LineChat
from tests.test_chat_core import Recorder, build_core

GREETING = "* welcome to the chat, you are guest{}\n* /nick NAME changes that, /help shows more\n"


def build_protocol(core: ChatCore) -> Any:
    return stream_factory(LineChat, core).buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000))


class Client:
    """One connection of the line protocol over a fake transport, and what the client does and sees."""

    def __init__(self, core: ChatCore, transport: Any = None) -> None:
        self.core = core
        self.clock = core.context.reactor
        self.transport = transport or cast(Any, StringTransport())
        self.protocol = build_protocol(core)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def sends(self, data: bytes | str) -> bytes:
        """Send; return what has come since the last time."""
        self.protocol.dataReceived(data.encode() if isinstance(data, str) else data)
        return self.sees()

    def sees(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def state(self) -> str:
        return str(self.transport.producerState)


def client(core: ChatCore, name: str | None = None) -> Client:
    """A client past its greeting; the others have seen it come."""
    made = Client(core)
    if name:
        made.sends(f"/nick {name}\n")
    made.sees()
    return made


@pytest.fixture
def core() -> ChatCore:
    return build_core()


@pytest.fixture
def ann(core: ChatCore) -> Client:
    return client(core, "ann")


@pytest.fixture
def bob(core: ChatCore, ann: Client) -> Client:
    bob = client(core, "bob")
    ann.sees()
    return bob


class TestLines:
    def test_a_client_is_greeted_at_once(self, core: ChatCore) -> None:
        assert Client(core).sees().decode() == GREETING.format(1) + "* you are in lobby now, alone\n"
        assert Client(core).sees().decode() == GREETING.format(2) + "* you are in lobby now, with guest1\n"

    def test_a_line_comes_to_the_others_and_not_back(self, ann: Client, bob: Client) -> None:
        assert ann.sends("hi\n") == b""
        assert bob.sees() == b"[lobby] ann: hi\n"

    @pytest.mark.parametrize("cut", [False, True])
    def test_bytes_may_come_in_any_pieces(self, ann: Client, bob: Client, cut: bool) -> None:
        data = b"one\r\ntw\xe4\xb8\xad\xff\xf4\xff\xfd\x06o\r\0\r\n/me waves\nrest"
        for piece in [data[at : at + 1] for at in range(len(data))] if cut else [data]:
            ann.sends(piece)
        assert bob.sees().decode() == "[lobby] ann: one\n[lobby] ann: tw中o\n[lobby] * ann waves\n"

    def test_a_client_that_ends_lines_with_return_gets_them_so(self, ann: Client, bob: Client) -> None:
        bob.sends("x\r\n")
        ann.sees()
        ann.sends("hi\n")
        assert bob.sees() == b"[lobby] ann: hi\r\n"
        bob.sends("y\n")
        assert ann.sees() == b"[lobby] bob: y\n"

    def test_a_line_over_the_limit_is_refused_with_a_line_and_the_next_is_fine(self) -> None:
        core = build_core(line_bytes=64)
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sees()
        assert ann.sends("x" * 64 + "\r\n") == b""
        assert bob.sees() == b"[lobby] ann: " + b"x" * 64 + b"\n"
        answer = b"* that line was not sent: it has more than 64 bytes\r\n"
        assert ann.sends("y" * 65 + "\n") == answer
        assert ann.sends("z" * 66) == answer
        assert ann.sends("z" * 1000) == ann.sends("z" * 1000 + "\n") == b""
        assert ann.sends("/who\n") == b"* in lobby: ann, bob\r\n"
        assert bob.sees() == b""

    def test_telnet_is_answered_and_does_not_change_the_encoding(self, ann: Client) -> None:
        # RFC 854: an option that is asked for must be answered; IP (Ctrl-C) need not be obeyed.
        assert ann.sends(b"\xff\xf4\xff\xfd\x06") == b"\xff\xfc\x06"
        assert ann.sends("/nick é\n").decode() == "* you are now é\n"

    def test_quit_says_goodbye_and_closes(self, ann: Client, bob: Client) -> None:
        assert ann.sends("bye\n/quit\nmore\n") == b"* goodbye\n"
        assert ann.transport.disconnecting and ann.transport.producer is None
        assert ann.sends("even more\n") == b""
        assert bob.sees() == b"[lobby] ann: bye\n* ann left the chat\n"
        ann.protocol.readConnectionLost()
        ann.lose()
        assert bob.sees() == b"" and not ann.clock.getDelayedCalls()

    def test_a_lost_connection_is_told(self, ann: Client, bob: Client) -> None:
        ann.lose()
        assert bob.sees() == b"* ann left the chat (connection lost)\n"

    def test_a_client_that_never_takes_the_last_line_is_cut_off(self, ann: Client) -> None:
        ann.sends("/quit\n")
        ann.clock.advance(LINGER - 0.1)
        assert not ann.transport.disconnected
        ann.clock.advance(0.1)
        assert ann.transport.disconnected
        ann.lose()

    def test_in_a_full_chat_the_longest_silent_is_told_why_it_has_to_go(self) -> None:
        core = build_core(members=1)
        silent = client(core)
        silent.clock.advance(60)
        late = Client(core)
        assert b"welcome" in late.sees()
        assert silent.sees() == (
            b"* the chat is full, and you have been silent for long: others need your place, goodbye\n"
        )
        assert silent.transport.disconnecting
        silent.lose()
        assert len(core) == 1
        late.lose()

    def test_over_the_members_limit_one_line_and_the_end(self) -> None:
        core = build_core(members=1)
        client(core)
        late = Client(core)
        assert late.sees() == b"* the chat is full (1 members), come back later\n"
        assert late.transport.disconnecting and late.transport.producer is None
        assert late.sends("hi\n") == b""
        late.protocol.readConnectionLost()
        late.lose()
        assert len(core) == 1 and not late.clock.getDelayedCalls()

    def test_nothing_is_logged_for_what_a_client_does(self, ann: Client, bob: Client) -> None:
        with capturedLogs() as events:
            ann.sends("hi\n/nope\n/nick \x1b\n")
            ann.sends(b"\xff\xff\x80\n")
            ann.lose()
        assert list(events) == []


class TestEncodings:
    def test_utf8_and_gbk_clients_talk_in_one_room(self, core: ChatCore, ann: Client, bob: Client) -> None:
        eve = client(core, "eve")
        ann.sees(), bob.sees()
        answer = bob.sends("大家好\r\n/nick 小明\r\n".encode("gbk"))
        assert answer.decode("gbk") == (
            "* you write gbk, so you are answered in gbk from now on\r\n* you are now 小明\r\n"
        )
        assert ann.sees().decode() == "[lobby] bob: 大家好\n* bob is now 小明\n" == eve.sees().decode()
        ann.sends("你好 é😀\n")
        assert bob.sees() == "[lobby] ann: 你好 é?\r\n".encode("gbk")
        assert eve.sees().decode() == "[lobby] ann: 你好 é😀\n"

    def test_what_is_in_no_encoding_is_replaced(self, ann: Client, bob: Client) -> None:
        assert ann.sends(b"a\x80\xfe b\n") == b""
        assert bob.sees().decode() == "[lobby] ann: a\ufffd\ufffd b\n"

    def test_where_255_is_a_letter_it_stays_one(self) -> None:
        core = build_core(encoding="cp1251")
        ann, bob = client(core), client(core)
        ann.sends("моя".encode("cp1251") + b"\n")
        assert bob.sees().decode() == "[lobby] guest1: моя\n"

    def test_one_message_is_encoded_once_a_form(self, core: ChatCore, ann: Client) -> None:
        pieces: list[bytes] = []
        for _ in range(3):
            other = client(core)
            other.protocol._outbox.send = pieces.append
        ann.sends("hi\n")
        assert pieces[-1] == b"[lobby] ann: hi\n"
        assert pieces[-3] is pieces[-2] is pieces[-1]


class TestTogether:
    def test_lines_that_come_in_one_piece_reach_each_receiver_in_one_write(self, core: ChatCore, ann: Client) -> None:
        pieces: list[bytes] = []
        for _ in range(3):
            other = client(core)
            other.protocol._outbox.send = pieces.append
        ann.sees()
        pieces.clear()
        assert ann.sends("1\n2\n/who\n/me waves\nhal").startswith(b"* in lobby: ann, guest")
        assert pieces == [b"[lobby] ann: 1\n[lobby] ann: 2\n[lobby] * ann waves\n"] * 3
        assert pieces[0] is pieces[1] is pieces[2]

    def test_each_gets_them_in_the_own_encoding_and_with_the_own_line_end(self, ann: Client, bob: Client) -> None:
        bob.sends("大家好\r\n".encode("gbk"))
        bob.sees(), ann.sees()
        ann.sends("你好\né😀\n")
        assert bob.sees() == "[lobby] ann: 你好\r\n[lobby] ann: é?\r\n".encode("gbk")

    def test_whatever_is_among_them_is_told_in_order(self, core: ChatCore, ann: Client, bob: Client) -> None:
        eve = client(core, "eve")
        ann.sees(), bob.sees()
        ann.sends("1\n/msg bob 2\n3\n/nick amy\n4\n/join tea\n5\n/leave lobby\n6\n/quit\n7\n")
        heard = b"[lobby] ann: 1\n%b[lobby] ann: 3\n* ann is now amy\n[lobby] amy: 4\n* amy left lobby\n"
        assert bob.sees() == heard % b"ann -> you: 2\n"
        assert eve.sees() == heard % b""
        ann.lose()

    def test_more_than_wait_together_all_come_in_order(self) -> None:
        core = build_core(burst=1000)
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sends("".join(f"{number}\n" for number in range(500)) + "x" * 4096 + "\n" + "y" * 4096 + "\n")
        texts = [*map(str, range(500)), "x" * 4096, "y" * 4096]
        assert bob.sees().decode() == "".join(f"[lobby] ann: {text}\n" for text in texts)

    def test_a_piece_counts_whole_against_the_limit_of_one_who_does_not_read(self) -> None:
        for excess in (0, 1):
            core = build_core(send_bytes=1024)
            ann, slow, bob = client(core, "ann"), client(core, "slow"), client(core, "bob")
            slow.sees()
            slow.transport.producer.pauseProducing()
            overhead = len("[lobby] ann: \n")
            ann.sends("x" * (500 - overhead) + "\n" + "y" * (524 - overhead + excess) + "\n")
            assert slow.transport.disconnected is bool(excess)
            assert len(bob.sees()) == 1024 + excess
            if not excess:
                slow.transport.producer.resumeProducing()
                assert len(slow.sees()) == 1024
            for each in (ann, slow, bob):
                each.lose()


class TestDrain:
    def test_everybody_is_told_and_closed_after_what_is_buffered(
        self, core: ChatCore, ann: Client, bob: Client
    ) -> None:
        bob.transport.producer.pauseProducing()
        ann.sends("last words\n")
        core.drain()
        assert ann.sees() == b"* the server is stopping, goodbye\n"
        assert bob.sees() == b"[lobby] ann: last words\n* the server is stopping, goodbye\n"
        for each in (ann, bob):
            assert each.transport.disconnecting and each.transport.producer is None
            each.lose()
        assert not core.context.reactor.getDelayedCalls() and len(core) == 0

    def test_what_was_said_before_comes_before_the_goodbye(self, core: ChatCore, ann: Client, bob: Client) -> None:
        with core.telling:
            ann.sends("last words\n")
            core.drain()
        assert bob.sees() == b"[lobby] ann: last words\n* the server is stopping, goodbye\n"
        ann.lose()
        bob.lose()

    def test_waiting_lines_are_given_up(self) -> None:
        core = build_core(rate=1, burst=1)
        ann = Client(core, StringTransportWithDisconnection())
        ann.sends("1\n2\n3\n")
        core.drain()
        assert ann.sees().endswith(b"* the server is stopping, goodbye\n")
        assert not core.context.reactor.getDelayedCalls()

    def test_a_late_client_is_told_too(self, core: ChatCore) -> None:
        core.drain()
        late = Client(core)
        assert late.sees() == b"* the server is stopping, come back later\n" and late.transport.disconnecting
        late.lose()


def test_two_hundred_members_in_five_rooms_all_hear_their_room_in_one_order() -> None:
    core = build_core(rate=1_000_000)
    clients = [client(core) for _ in range(200)]
    for number, each in enumerate(clients):
        each.sends(f"/join room{number % 5}\n/leave lobby\n")
    for each in clients:
        each.sees()
    for turn in range(3):
        for number, each in enumerate(clients):
            each.protocol.dataReceived(f"{turn}.{number}\n".encode())
    for number, each in enumerate(clients):
        expected = [
            f"[room{number % 5}] guest{other + 1}: {turn}.{other}\n"
            for turn in range(3)
            for other in range(number % 5, 200, 5)
            if other != number
        ]
        assert each.sees().decode() == "".join(expected)


def test_a_client_at_the_other_end_of_a_connection_sees_it_all(core: ChatCore) -> None:
    class Reader(Protocol):
        transport: Any
        got = b""
        lost = False

        def dataReceived(self, data: bytes) -> None:
            self.got += data

        def connectionLost(self, reason: object = None) -> None:
            self.lost = True

    reader, _, pump = connectedServerAndClient(lambda: build_protocol(core), Reader, clock=core.context.reactor)
    reader.transport.write(b"/nick ann\n/quit\n")
    pump.flush()
    assert reader.got.decode() == (GREETING.format(1) + "* you are in lobby now, alone\n* you are now ann\n* goodbye\n")
    assert reader.lost and not core.context.reactor.getDelayedCalls()


_CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"\n", b"\r\n", b"/quit\n", b"/nick a", b"/join b\n", b"x" * 70, b"\xff\xfd\x06", b"/msg bob "]
        ),
        st.sampled_from(["大家", "é\n"]).map(lambda text: text.encode("gb18030")),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(chunks=_CHUNKS, encoding=st.sampled_from(["gbk", "big5", "latin-1", "utf-8", "cp1251"]), half=st.booleans())
def test_no_bytes_raise_and_what_others_see_stays_lines(chunks: list[bytes], encoding: str, half: bool) -> None:
    core = build_core(line_bytes=64, encoding=encoding, burst=3)
    bob, recorder = client(core, "bob"), Recorder()
    member = core.enter(recorder)
    core.join(member, "lobby")
    bob.sees()
    ann = Client(core)
    for chunk in chunks:
        ann.sends(chunk)
        core.context.reactor.advance(0.3)
    if half:
        ann.protocol.readConnectionLost()
        core.context.reactor.pump([1] * 100)
        assert ann.transport.disconnecting
    ann.lose()
    for line in bob.sees().decode().split("\n")[:-1]:
        assert line.isprintable() or "\ufffd" in line or set(line) - set(map(chr, range(0xA0)))
        assert line.startswith(("* ", "[lobby] ", "guest", "a")) and not set(line) & set(map(chr, range(0x20)))
    assert not core.context.reactor.getDelayedCalls()
    assert len(core) == 2


def test_a_flood_of_telnet_commands_ends_the_conversation_and_is_not_answered() -> None:
    core = build_core()
    client = Client(core)
    client.sends(b"")
    assert client.sends(b"\xff\xfb\x01" * 20_000) == b""
    assert client.transport.disconnecting
    assert len(core) == 0
