from __future__ import annotations

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.testing import StringTransportWithDisconnection

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Departed, Reason
from tests.builders.chat import Client, build_core, client, said, shown
from tests.builders.facts import states


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
        assert states(ann.sees(), "* ", "lobby", "ann, bob")
        assert ann.transport.disconnecting
        assert bob.sees() == shown(*said("ann", "one", "two"), Departed("ann"))
        ann.lose()

    def test_lines_that_must_wait_are_done_before_the_connection_closes(self) -> None:
        core = build_core(rate=1, burst=1)
        ann, bob = client(core), client(core)
        ann.sees()
        ann.sends("1\n2\n3")
        ann.protocol.readConnectionLost()
        assert bob.sees() == shown(*said("guest1", 1))
        # Reading must not be resumed, for there is nothing more to read.
        ann.transport.producerState = "untouched"
        core.context.reactor.advance(1)
        assert bob.sees() == shown(*said("guest1", 2)) and not ann.transport.disconnecting
        core.context.reactor.advance(1)
        assert bob.sees() == shown(*said("guest1", 3), Departed("guest1")) and ann.transport.disconnecting
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
        answer = ann.sends("".join(f"{number}\n" for number in range(7)) + "/who\nhal")
        assert states(answer, "* ", " 2 ")
        assert ann.state == "paused"
        seen = [bob.sees()]
        for _ in range(5):
            core.context.reactor.advance(0.5)
            seen.append(bob.sees())
        assert seen == [
            shown(*said("guest1", 0, 1, 2)),
            *(shown(*said("guest1", number)) for number in range(3, 7)),
            b"",
        ]
        assert states(ann.sees(), "* ", "lobby", "guest1, guest2")
        assert ann.state == "producing" and not core.context.reactor.getDelayedCalls()
        core.context.reactor.advance(0.5)
        ann.sends("f\n")
        assert bob.sees() == shown(*said("guest1", "half"))

    def test_it_is_told_once_until_the_member_has_been_quiet_for_long_enough(self) -> None:
        core = build_core(rate=1, burst=2)
        ann = client(core)
        told = ann.sends("1\n2\n3\n")
        assert states(told, "* ", " 1 ")
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
        assert bob.sees() == shown(*said("guest1", 1, 2, 33, 4))

    def test_refused_lines_count(self) -> None:
        core = build_core(rate=1, burst=2, line_bytes=64)
        ann = client(core)
        answers = ann.sends("x" * 65 + "\n" + "y" * 65 + "\n/nope\n").splitlines()
        assert len(answers) == 3 and states(answers[-1], "* ", " 1 ")
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
        assert bob.sees() == shown(*said("guest1", 1, 2), Departed("guest1"))
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
            assert bob.sees() == shown(*said("ann", line))
        assert count == 1024 // len(shown(*said("ann", line))) + 1
        assert slow.sees() == b"" and slow.sends("too late\n") == b""
        # Until the loss is reported, what is delivered is dropped; then the others are told.
        ann.sends("more\n")
        slow.protocol.end()
        slow.lose()
        assert bob.sees() == shown(*said("ann", "more"), Departed("slow", Reason.TOO_SLOW))

    def test_one_who_reads_again_gets_everything_in_order(self, ann: Client, bob: Client) -> None:
        bob.transport.producer.pauseProducing()
        ann.sends("1\n2\n3\n")
        assert bob.sees() == b""
        bob.transport.producer.resumeProducing()
        ann.sends("4\n")
        assert bob.sees() == shown(*said("ann", 1, 2, 3, 4))

    def test_a_client_that_does_not_read_its_answers_is_not_read_either(self) -> None:
        core = build_core(send_bytes=1024, rate=1, burst=50)
        ann = client(core)
        whole = ann.sends("/help\n")
        ann.transport.producer.pauseProducing()
        ann.sends("/help\n" * 20)
        assert ann.state == "paused" and not core.context.reactor.getDelayedCalls()
        ann.transport.producer.resumeProducing()
        core.context.reactor.advance(0)
        assert ann.sees() == whole * 20
        assert ann.state == "producing" and not core.context.reactor.getDelayedCalls()

    def test_a_loss_in_the_middle_of_a_message_is_told_after_it(self) -> None:
        core = build_core(send_bytes=1024)
        slow = Client(core, StringTransportWithDisconnection())
        ann, bob = client(core, "ann"), client(core, "bob")
        ann.sees()
        slow.transport.producer.pauseProducing()
        core.context.reactor.advance(slow.patience)
        text = "x" * 1100
        ann.sends(f"{text}\n")
        assert bob.sees() == shown(*said("ann", text), Departed("guest1", Reason.TOO_SLOW))
        assert not core.context.reactor.getDelayedCalls()


class TestBacklog:
    def test_as_many_lines_as_may_wait_do_and_none_is_lost(self) -> None:
        core = build_core(rate=1, burst=1, backlog=3)
        ann, bob = client(core), client(core)
        ann.sees()
        # One is done, one is being waited for, and three wait.
        ann.sends("0\n1\n2\n3\n4\n")
        for number in range(5):
            assert bob.sees() == shown(*said("guest1", number))
            core.context.reactor.advance(1)
        assert not ann.transport.disconnecting
        ann.lose()

    def test_one_line_more_ends_the_conversation_and_says_why(self) -> None:
        core = build_core(rate=1, burst=1, backlog=3)
        ann, bob = client(core), client(core)
        ann.sees()
        assert states(ann.sends("0\n1\n2\n3\n4\n5\n"), "* ", " 3 ")
        assert bob.sees() == shown(*said("guest1", 0), Departed("guest1", Reason.FLOODING))
        assert ann.transport.disconnecting
        ann.lose()
        assert core.context.reactor.getDelayedCalls() == []


def test_waits_are_counted_until_the_bucket_has_been_full_again() -> None:
    core = build_core(rate=1, burst=2)
    member = core.enter(client(core).protocol)
    counts = []
    for seconds in (0, 0, 0, 0, 1, 0, 1.5, 0, 2.5, 0, 0):
        core.context.reactor.advance(seconds)
        core.wait(member)
        counts.append(member.slowed)
    assert counts == [0, 0, 1, 2, 2, 3, 3, 4, 0, 0, 1]
