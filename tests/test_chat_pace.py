from __future__ import annotations

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.testing import StringTransportWithDisconnection

from netsvc.services.chat.core import ChatCore
from tests.test_chat_core import build_core
from tests.test_chat_line import Client, client


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


class TestHalfClose:
    def test_all_lines_are_done_and_answered_a_last_one_without_end_included(self, ann: Client, bob: Client) -> None:
        assert IHalfCloseableProtocol.providedBy(ann.protocol)
        ann.sends("one\ntwo\n/wh")
        ann.sends("o")
        ann.protocol.readConnectionLost()
        assert ann.sees() == b"* in lobby: ann, bob\n"
        assert ann.transport.disconnecting
        assert bob.sees() == b"[lobby] ann: one\n[lobby] ann: two\n* ann left the chat\n"
        ann.lose()

    def test_lines_that_must_wait_are_done_before_the_connection_closes(self) -> None:
        core = build_core(rate=1, burst=1)
        ann, bob = client(core), client(core)
        ann.sees()
        ann.sends("1\n2\n3")
        ann.protocol.readConnectionLost()
        assert bob.sees() == b"[lobby] guest1: 1\n"
        # Reading must not be resumed, for there is nothing more to read.
        ann.transport.producerState = "untouched"
        core.context.reactor.advance(1)
        assert bob.sees() == b"[lobby] guest1: 2\n" and not ann.transport.disconnecting
        core.context.reactor.advance(1)
        assert bob.sees() == b"[lobby] guest1: 3\n* guest1 left the chat\n" and ann.transport.disconnecting
        ann.lose()

    def test_lines_that_wait_when_the_read_side_has_closed_leave_reading_alone(self) -> None:
        core = build_core(rate=1, burst=1)
        ann = client(core)
        ann.sends("1\n2")
        assert ann.state == "producing"
        ann.protocol.readConnectionLost()
        assert ann.state == "producing"
        core.context.reactor.advance(1)
        assert ann.transport.disconnecting
        ann.lose()

    def test_a_client_that_takes_nothing_any_more_is_let_go(self, ann: Client) -> None:
        ann.protocol.writeConnectionLost()
        assert ann.transport.disconnecting
        ann.lose()


class TestRate:
    def test_over_the_rate_lines_wait_in_order_and_reading_stops(self) -> None:
        core = build_core(rate=2, burst=3)
        ann, bob = client(core), client(core)
        ann.sees()
        assert ann.sends("".join(f"{number}\n" for number in range(7)) + "/who\nhal") == (
            b"* that was fast: your lines go out at 2 a second now, and none is lost\n"
        )
        assert ann.state == "paused"
        seen = [bob.sees()]
        for _ in range(5):
            core.context.reactor.advance(0.5)
            seen.append(bob.sees())
        assert seen == [
            b"[lobby] guest1: 0\n[lobby] guest1: 1\n[lobby] guest1: 2\n",
            *(b"[lobby] guest1: %d\n" % number for number in range(3, 7)),
            b"",
        ]
        assert ann.sees() == b"* in lobby: guest1, guest2\n"
        assert ann.state == "producing" and not core.context.reactor.getDelayedCalls()
        core.context.reactor.advance(0.5)
        ann.sends("f\n")
        assert bob.sees() == b"[lobby] guest1: half\n"

    def test_it_is_told_once_until_the_member_has_been_quiet_for_long_enough(self) -> None:
        core = build_core(rate=1, burst=2)
        ann = client(core)
        told = b"* that was fast: your lines go out at 1 a second now, and none is lost\n"
        assert ann.sends("1\n2\n3\n") == told
        for _ in range(5):
            core.context.reactor.advance(1)
            assert ann.sends("x\n") == b""
        core.context.reactor.advance(3)
        assert ann.sends("1\n2\n3\n") == told
        core.context.reactor.advance(1)

    def test_a_transport_may_deliver_what_it_had_read_already(self) -> None:
        core = build_core(rate=1, burst=1)
        ann, bob = client(core), client(core)
        ann.sends("1\n2\n3")
        ann.sends("3\n4\n")
        core.context.reactor.pump([1, 1, 1])
        assert bob.sees() == b"".join(b"[lobby] guest1: %s\n" % line for line in (b"1", b"2", b"33", b"4"))

    def test_refused_lines_count(self) -> None:
        core = build_core(rate=1, burst=2, line_bytes=64)
        ann = client(core)
        assert ann.sends("x" * 65 + "\n" + "y" * 65 + "\n/nope\n").endswith(b"none is lost\n")
        ann.lose()
        assert not core.context.reactor.getDelayedCalls()

    def test_empty_lines_do_not_count(self) -> None:
        ann = client(build_core(rate=1, burst=1))
        assert ann.sends("\n \r\n" * 100) == b"" and ann.state == "producing"

    def test_one_who_quits_while_lines_wait_has_his_say_first(self) -> None:
        core = build_core(rate=1, burst=1)
        ann, bob = client(core), client(core)
        ann.sends("1\n2\n/quit\n3\n")
        core.context.reactor.pump([1, 1])
        assert bob.sees() == b"[lobby] guest1: 1\n[lobby] guest1: 2\n* guest1 left the chat\n"
        # TLS closes with an exchange, so there must be somebody who reads.
        assert ann.transport.disconnecting and ann.state == "producing"
        ann.lose()
        assert not core.context.reactor.getDelayedCalls()


class TestSlowReader:
    def test_one_who_does_not_read_is_cut_off_and_the_others_do_not_wait(self) -> None:
        core = build_core(send_bytes=1024)
        slow, ann, bob = client(core, "slow"), client(core, "ann"), client(core, "bob")
        ann.sees(), slow.sees()
        slow.transport.producer.pauseProducing()
        line = "x" * 100
        count = 0
        while not slow.transport.disconnected:
            count += 1
            ann.sends(f"{line}\n")
            core.context.reactor.advance(1)
            assert bob.sees() == f"[lobby] ann: {line}\n".encode()
        assert count == 1024 // len(f"[lobby] ann: {line}\n") + 1
        assert slow.sees() == b"" and slow.sends("too late\n") == b""
        # Until the loss is reported, what is delivered is dropped; then the others are told.
        ann.sends("more\n")
        slow.protocol.end()
        slow.lose()
        assert bob.sees() == b"[lobby] ann: more\n* slow left the chat (too slow to read)\n"

    def test_one_who_reads_again_gets_everything_in_order(self, ann: Client, bob: Client) -> None:
        bob.transport.producer.pauseProducing()
        ann.sends("1\n2\n3\n")
        assert bob.sees() == b""
        bob.transport.producer.resumeProducing()
        ann.sends("4\n")
        assert bob.sees() == b"".join(b"[lobby] ann: %d\n" % number for number in range(1, 5))

    def test_one_who_asks_and_never_reads_the_answers_is_cut_off(self) -> None:
        core = build_core(send_bytes=1024, rate=1, burst=50)
        ann = client(core)
        ann.transport.producer.pauseProducing()
        ann.sends("/help\n" * 20)
        assert ann.transport.disconnected and not core.context.reactor.getDelayedCalls()
        ann.lose()

    def test_a_loss_in_the_middle_of_a_message_is_told_after_it(self) -> None:
        core = build_core(send_bytes=1024)
        slow = Client(core, StringTransportWithDisconnection())
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sees()
        slow.transport.producer.pauseProducing()
        text = "x" * 1100
        ann.sends(f"{text}\n")
        assert bob.sees().decode() == f"[lobby] ann: {text}\n* guest1 left the chat (too slow to read)\n"
        assert not core.context.reactor.getDelayedCalls()


class TestBacklog:
    def test_as_many_lines_as_may_wait_do_and_none_is_lost(self) -> None:
        core = build_core(rate=1, burst=1, backlog=3)
        ann, bob = client(core), client(core)
        ann.sees()
        # One is done, one is being waited for, and three wait.
        ann.sends("0\n1\n2\n3\n4\n")
        for number in range(5):
            assert bob.sees() == f"[lobby] guest1: {number}\n".encode()
            core.context.reactor.advance(1)
        assert not ann.transport.disconnecting
        ann.lose()

    def test_one_line_more_ends_the_conversation_and_says_why(self) -> None:
        core = build_core(rate=1, burst=1, backlog=3)
        ann, bob = client(core), client(core)
        ann.sees()
        assert ann.sends("0\n1\n2\n3\n4\n5\n") == (b"* that was too much: more than 3 of your lines wait; goodbye\n")
        assert bob.sees() == b"[lobby] guest1: 0\n* guest1 left the chat (flooding)\n"
        assert ann.transport.disconnecting
        ann.lose()
        assert core.context.reactor.getDelayedCalls() == []
