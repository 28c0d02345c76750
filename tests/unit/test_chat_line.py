from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import capturedLogs, formatEvent
from twisted.test.iosim import connectedServerAndClient

from netsvc.services.chat.connection import LINGER
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import (
    Acted,
    Departed,
    Displaced,
    Joined,
    Left,
    Reason,
    Renamed,
    Said,
    Stopping,
    Whispered,
)
from netsvc.services.chat.line import ARRIVAL, QUIET, TYPING
from netsvc.services.chat.lines import ALIVE
from netsvc.services.chat.text import MARKS
from netsvc.services.chat.wording import wording
from tests.builders.chat import Client, Recorder, build_core, build_protocol, client, said, shown
from tests.builders.facts import states

#: What everybody is sent when the service stops.
GOODBYE = shown(Stopping())


def greets(data: bytes, name: str, *others: str) -> bool:
    """Tell whether this is the greeting of a member, and who is in the lobby."""
    welcome, hint, here = data.decode().splitlines()
    named = states(here, "* ", "lobby", *others) and here.count("guest") == len(others)
    return named and states(welcome, "* ", name) and states(hint, "* ", "/nick", "/help")


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
        assert greets(Client(core).sees(), "guest1")
        assert greets(Client(core).sees(), "guest2", "guest1")

    def test_a_line_comes_to_the_others_and_not_back(self, ann: Client, bob: Client) -> None:
        assert ann.sends("hi\n") == b""
        assert bob.sees() == shown(*said("ann", "hi"))

    @pytest.mark.parametrize("cut", [False, True])
    def test_bytes_may_come_in_any_pieces(self, ann: Client, bob: Client, cut: bool) -> None:
        data = b"one\r\ntw\xe4\xb8\xad\xff\xf1\xff\xfd\x06o\r\0\r\n/me waves\nrest"
        for piece in [data[at : at + 1] for at in range(len(data))] if cut else [data]:
            ann.sends(piece)
        assert bob.sees() == shown(*said("ann", "one", "tw中o"), Acted("lobby", "ann", "waves"))

    def test_a_client_that_ends_lines_with_return_gets_them_so(self, ann: Client, bob: Client) -> None:
        bob.sends("x\r\n")
        ann.sees()
        ann.sends("hi\n")
        assert bob.sees() == shown(*said("ann", "hi"), end="\r\n")
        bob.sends("y\n")
        assert ann.sees() == shown(*said("bob", "y"))

    def test_a_line_over_the_limit_is_refused_with_a_line_and_the_next_is_fine(self) -> None:
        core = build_core(line_bytes=64)
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sees()
        assert ann.sends("x" * 64 + "\r\n") == b""
        assert bob.sees() == shown(*said("ann", "x" * 64))
        answer = ann.sends("y" * 65 + "\n")
        assert states(answer, "* ", " 64 ") and answer.endswith(b"\r\n")
        assert ann.sends("z" * 66) == answer
        assert ann.sends("z" * 1000) == ann.sends("z" * 1000 + "\n") == b""
        assert states(ann.sends("/who\n"), "* ", "lobby", "ann, bob")
        assert bob.sees() == b""

    def test_telnet_is_answered_and_does_not_change_the_encoding(self, ann: Client) -> None:
        # RFC 854: an option that is asked for must be answered; IP (Ctrl-C) need not be obeyed.
        assert ann.sends(b"\xff\xf4\xff\xfd\x06") == b"\xff\xfc\x06"
        assert states(ann.sends("/nick é\n"), "* ", "é")

    def test_quit_says_goodbye_and_closes(self, ann: Client, bob: Client) -> None:
        assert states(ann.sends("bye\n/quit\nmore\n"), "* ")
        assert ann.transport.disconnecting and ann.transport.producer is None
        assert ann.sends("even more\n") == b""
        assert bob.sees() == shown(*said("ann", "bye"), Departed("ann"))
        ann.protocol.readConnectionLost()
        ann.lose()
        assert bob.sees() == b"" and not ann.clock.getDelayedCalls()

    def test_a_lost_connection_is_told(self, ann: Client, bob: Client) -> None:
        ann.lose()
        assert bob.sees() == shown(Departed("ann", Reason.LOST))

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
        assert greets(late.sees(), "guest2")
        assert silent.sees() == shown(Displaced())
        assert silent.transport.disconnecting
        silent.lose()
        assert len(core) == 1
        late.lose()

    def test_over_the_members_limit_one_line_and_the_end(self) -> None:
        core = build_core(members=1)
        client(core)
        late = Client(core)
        assert states(late.sees(), "* ", "1")
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
        answers = bob.sends("大家好\r\n/nick 小明\r\n".encode("gbk")).decode("gbk").split("\r\n")
        assert states(answers[0], "* ", "gbk") and states(answers[1], "* ", "小明") and not answers[2]
        assert ann.sees() == eve.sees() == shown(*said("bob", "大家好"), Renamed("bob", "小明"))
        ann.sends("你好 é😀\n")
        assert bob.sees() == shown(*said("ann", "你好 é?"), encoding="gbk", end="\r\n")
        assert eve.sees() == shown(*said("ann", "你好 é😀"))

    def test_what_is_in_no_encoding_is_replaced(self, ann: Client, bob: Client) -> None:
        assert ann.sends(b"a\x80\xfe b\n") == b""
        assert bob.sees() == shown(*said("ann", "a\ufffd\ufffd b"))

    def test_where_255_is_a_letter_it_stays_one(self) -> None:
        core = build_core(encoding="cp1251")
        ann, bob = client(core), client(core)
        ann.sends("моя".encode("cp1251") + b"\n")
        assert bob.sees() == shown(*said("guest1", "моя"))

    def test_one_message_is_encoded_once_a_form(self, core: ChatCore, ann: Client) -> None:
        pieces: list[bytes] = []
        for _ in range(3):
            other = client(core)
            other.protocol._outbox.send_event = pieces.append
        ann.sends("hi\n")
        assert pieces[-1] == shown(*said("ann", "hi"))
        assert pieces[-3] is pieces[-2] is pieces[-1]


class TestArrival:
    def test_others_are_told_after_a_moment_or_the_first_line(self, core: ChatCore, ann: Client) -> None:
        silent = Client(core, fresh=True)
        silent.clock.advance(ARRIVAL - 0.01)
        assert ann.sees() == b"" and b"lobby" not in silent.sees()
        silent.clock.advance(0.01)
        assert ann.sees() == shown(Joined("lobby", "guest2")) and b"lobby" in silent.sees()
        eager = Client(core, fresh=True)
        eager.sends("hi\n")
        assert ann.sees() == shown(Joined("lobby", "guest3"), *said("guest3", "hi"))
        eager.clock.advance(1)
        assert ann.sees() == b""

    def test_of_one_that_leaves_before_no_one_is_told(self, core: ChatCore, ann: Client) -> None:
        scanner = Client(core, fresh=True)
        scanner.lose()
        ann.clock.advance(1)
        assert ann.sees() == b"" and len(core) == 1

    @pytest.mark.parametrize(
        "data",
        [
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n\r\n/nick root\r\n/topic owned\r\nhello\r\n",
            b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n/nick root\nhello\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\n\n/nick root\n\xff\xfdhello\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
        ],
    )
    @pytest.mark.parametrize("cut", [False, True])
    def test_a_client_of_another_protocol_is_closed_and_no_one_is_told(
        self, core: ChatCore, ann: Client, data: bytes, cut: bool
    ) -> None:
        with capturedLogs() as events:
            other = Client(core, fresh=True)
            for piece in [data[at : at + 1] for at in range(len(data))] if cut else [data]:
                other.sends(piece)
            other.clock.advance(1)
        assert other.transport.disconnecting and len(core) == 1
        assert ann.sees() == b"" and not states(ann.sends("/rooms\n"), "owned")
        (record,) = events
        assert len(formatEvent(record)) < 200 and "192.168.1.1" in formatEvent(record)
        other.lose()

    def test_a_request_that_stops_in_its_first_line_is_not_said(self, core: ChatCore, ann: Client) -> None:
        other = Client(core, fresh=True)
        other.sends(b"GET / HT")
        other.clock.advance(QUIET)
        assert other.transport.disconnecting and ann.sees() == b""
        other.lose()

    def test_a_flood_of_them_is_logged_a_few_times(self, core: ChatCore) -> None:
        with capturedLogs() as events:
            for _ in range(100):
                other = Client(core, fresh=True)
                other.sends(b"GET / HTTP/1.0\r\n\r\n")
                other.lose()
        assert 0 < len(events) <= 20

    def test_a_line_of_http_among_others_is_a_line(self, ann: Client, bob: Client) -> None:
        ann.sends("GET / HTTP/1.1\n")
        assert bob.sees() == shown(*said("ann", "GET / HTTP/1.1"))


class TestClients:
    """What clients do that are no nc: each of it was seen."""

    def test_the_greeting_has_the_line_end_of_a_network_terminal(self, core: ChatCore) -> None:
        telnet = Client(core, fresh=True)
        telnet.sends(b"")
        telnet.protocol._arrive()
        got = telnet.sees()
        assert got.count(b"\r\n") == got.count(b"\n") > 0
        assert telnet.sends(b"\xff\xfb\x1f/who\n").endswith(b"\r\n")

    @pytest.mark.parametrize("key", ["\b", "\x7f", b"\xff\xf7"])
    def test_a_key_that_erases_does(self, ann: Client, bob: Client, key: str | bytes) -> None:
        key = key.encode() if isinstance(key, str) else key
        ann.sends(b"helpo" + 2 * key + b"lo\n")
        assert bob.sees() == shown(*said("ann", "hello"))
        ann.sends("学习é👍🏽".encode() + 2 * key + b"\n" + key + b"\n")
        assert bob.sees() == shown(*said("ann", "学习"))

    def test_are_you_there_is_answered(self, ann: Client, bob: Client) -> None:
        assert ann.sends(b"he\xff\xf6llo\n") == ALIVE
        assert bob.sees() == shown(*said("ann", "hello"))

    def test_one_that_never_ends_a_line_is_heard_after_a_moment(self, core: ChatCore, ann: Client) -> None:
        other = Client(core, fresh=True)
        other.protocol._arrive()
        ann.sees()
        for text in ("hello", "world", "学习"):
            other.sends(text)
            other.clock.advance(QUIET - 0.01)
            assert ann.sees() == b""
            other.clock.advance(0.01)
            assert ann.sees() == shown(*said("guest2", text))
        # Pieces of one text come in quick succession.
        other.sends("/msg ann ")
        other.clock.advance(QUIET / 2)
        other.sends("hi")
        other.clock.advance(QUIET)
        assert ann.sees() == shown(Whispered("guest2", "hi"))
        other.lose()
        assert not core.context.reactor.getDelayedCalls()

    def test_who_types_letter_by_letter_is_not_cut(self, core: ChatCore, ann: Client) -> None:
        typist = Client(core, fresh=True)
        typist.protocol._arrive()
        ann.sees()
        for key in ("h", "é", "l", "p", "\x7f", "\x1b[D", "o"):
            typist.sends(key)
            typist.clock.advance(TYPING - 1)
        assert ann.sees() == b""
        typist.sends("\r")
        assert ann.sees() == shown(*said("guest2", "hélo"))
        # One who ends lines is waited for, however the next one comes.
        typist.sends("pasted and then")
        typist.clock.advance(3600)
        assert ann.sees() == b""
        typist.sends(" sent\r\0")
        assert ann.sees() == shown(*said("guest2", "pasted and then sent"))

    def test_texts_that_end_with_zeros_are_lines(self, ann: Client, bob: Client) -> None:
        ann.sends(b"hello\0")
        assert bob.sees() == shown(*said("ann", "hello"))
        ann.sends(b"last\n".ljust(8192, b"\0"))
        ann.sends(b"one more\n".ljust(8192, b"\0"))
        assert bob.sees() == shown(*said("ann", "last", "one more"))

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_utf16_with_a_mark_is_read_and_answered(self, core: ChatCore, ann: Client, encoding: str) -> None:
        other = Client(core, fresh=True)
        other.sees()
        answer = other.sends("\ufeff/nick 小明\r\n学习 é\r\n".encode(encoding))
        assert "小明" in answer.decode(encoding)
        assert shown(*said("小明", "学习 é")) in ann.sees()
        ann.sends("é好\n")
        assert other.sees() == shown(*said("ann", "é好"), encoding=encoding, end="\r\n")

    @pytest.mark.parametrize("text", ["学习", "学", "一", "联通"])
    def test_a_first_line_in_gbk_is_read_and_answered_so(self, core: ChatCore, ann: Client, text: str) -> None:
        other = client(core)
        ann.sees()
        assert states(other.sends(text.encode("gbk") + b"\n"), "* ", "gbk")
        assert ann.sees() == shown(*said("guest2", text))
        ann.sends("好\n")
        assert other.sees() == shown(*said("ann", "好"), encoding="gbk")

    def test_a_byte_order_mark_is_no_letter(self, ann: Client, bob: Client) -> None:
        assert states(ann.sends("\ufeff/nick amy\n"), "* ", "amy")
        bob.sees()
        ann.sends("\ufeff\n\ufeffhi\n")
        assert bob.sees() == shown(*said("amy", "hi"))

    def test_marks_are_reduced_everywhere(self, ann: Client, bob: Client) -> None:
        zalgo = "a" + "\u0301" * 300
        for line in (zalgo, f"/me {zalgo}", f"/topic {zalgo}", f"/msg bob {zalgo}"):
            ann.sends(line + "\n")
            assert bob.sees().decode().count("\u0301") == MARKS

    @pytest.mark.parametrize("text", ["\u3164", "\u2800", "\u200b", "\u200d", "\U000e0041", "\u202e"])
    def test_what_does_not_show_is_not_said(self, ann: Client, bob: Client, text: str) -> None:
        for line in (text, f"/me {text}", f"/topic {text}", f"/msg bob {text}"):
            ann.sends(line + "\n")
        assert bob.sees() == b""

    def test_what_reorders_stays_with_its_writer(self, ann: Client, bob: Client) -> None:
        ann.sends("a\u202eb\u2066c\u2069d می\u200cخواهم 👨\u200d👩\n")
        assert bob.sees() == shown(*said("ann", "abcd می\u200cخواهم 👨\u200d👩"))


class TestTogether:
    def test_lines_that_come_in_one_piece_reach_each_receiver_in_one_write(self, core: ChatCore, ann: Client) -> None:
        pieces: list[bytes] = []
        for _ in range(3):
            other = client(core)
            other.protocol._outbox.send_event = pieces.append
        ann.sees()
        pieces.clear()
        assert states(ann.sends("1\n2\n/who\n/me waves\nhal"), "* ", "lobby", "ann, guest")
        assert pieces == [shown(*said("ann", 1, 2), Acted("lobby", "ann", "waves"))] * 3
        assert pieces[0] is pieces[1] is pieces[2]

    def test_each_gets_them_in_the_own_encoding_and_with_the_own_line_end(self, ann: Client, bob: Client) -> None:
        bob.sends("大家好\r\n".encode("gbk"))
        bob.sees(), ann.sees()
        ann.sends("你好\né😀\n")
        assert bob.sees() == shown(*said("ann", "你好", "é?"), encoding="gbk", end="\r\n")

    def test_whatever_is_among_them_is_told_in_order(self, core: ChatCore, ann: Client, bob: Client) -> None:
        eve = client(core, "eve")
        ann.sees(), bob.sees()
        ann.sends("1\n/msg bob 2\n3\n/nick amy\n4\n/join tea\n5\n/leave lobby\n6\n/quit\n7\n")
        first, rest = said("ann", 1), (*said("ann", 3), Renamed("ann", "amy"), *said("amy", 4), Left("lobby", "amy"))
        assert bob.sees() == shown(*first, Whispered("ann", "2"), *rest)
        assert eve.sees() == shown(*first, *rest)
        ann.lose()

    def test_more_than_wait_together_all_come_in_order(self) -> None:
        core = build_core(burst=1000)
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sends("".join(f"{number}\n" for number in range(500)) + "x" * 4096 + "\n" + "y" * 4096 + "\n")
        texts = [*map(str, range(500)), "x" * 4096, "y" * 4096]
        assert bob.sees() == shown(*said("ann", *texts))

    def test_all_that_is_sent_counts_against_the_limit_of_a_client_that_does_not_read(self) -> None:
        for excess in (0, 1):
            core = build_core(send_bytes=1024)
            ann, slow, bob = client(core, "ann"), client(core, "slow"), client(core, "bob")
            slow.sees()
            slow.transport.producer.pauseProducing()
            core.context.reactor.advance(slow.patience)
            overhead = len(shown(*said("ann", "")))
            ann.sends("x" * (500 - overhead) + "\n" + "y" * (524 - overhead + excess) + "\n")
            core.context.reactor.advance(1)
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
        assert ann.sees() == GOODBYE
        assert bob.sees() == shown(*said("ann", "last words"), Stopping())
        for each in (ann, bob):
            assert each.transport.disconnecting and each.transport.producer is None
            each.lose()
        assert not core.context.reactor.getDelayedCalls() and len(core) == 0

    def test_what_was_said_before_comes_before_the_goodbye(self, core: ChatCore, ann: Client, bob: Client) -> None:
        with core.delivery:
            ann.sends("last words\n")
            core.drain()
        assert bob.sees() == shown(*said("ann", "last words"), Stopping())
        ann.lose()
        bob.lose()

    def test_waiting_lines_are_given_up(self) -> None:
        core = build_core(rate=1, burst=1)
        ann = Client(core, StringTransportWithDisconnection())
        ann.sends("1\n2\n3\n")
        core.drain()
        assert ann.sees().endswith(GOODBYE)
        assert not core.context.reactor.getDelayedCalls()

    def test_a_late_client_is_told_too(self, core: ChatCore) -> None:
        core.drain()
        late = Client(core)
        assert states(late.sees(), "* ") and late.transport.disconnecting
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
            Said(f"room{number % 5}", f"guest{other + 1}", f"{turn}.{other}")
            for turn in range(3)
            for other in range(number % 5, 200, 5)
            if other != number
        ]
        assert each.sees() == shown(*expected)


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
    lines = reader.got.splitlines(keepends=True)
    assert greets(b"".join(lines[:3]), "guest1")
    assert states(lines[3], "* ", "ann") and states(lines[4], "* ") and len(lines) == 5
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
    told = set(map(wording, recorder.got))
    for line in bob.sees().decode().split("\n")[:-1]:
        assert line.isprintable() or "\ufffd" in line or set(line) - set(map(chr, range(0xA0)))
        # What is sent to bob alone is no line of the server's.
        assert line in told or not line.startswith("* ")
        assert not set(line) & set(map(chr, range(0x20)))
    assert not core.context.reactor.getDelayedCalls()
    assert len(core) == 2


def test_a_flood_of_telnet_commands_ends_the_conversation_and_is_not_answered() -> None:
    core = build_core()
    client = Client(core)
    client.sends(b"")
    assert client.sends(b"\xff\xfb\x01" * 20_000) == b""
    assert client.transport.disconnecting
    assert len(core) == 0
