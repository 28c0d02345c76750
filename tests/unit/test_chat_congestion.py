from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from netsvc.services.chat.congestion import CongestedError, Congestion
from netsvc.services.chat.core import ChatCore, Member
from netsvc.services.chat.events import Departed, Joined, Reason, Renamed, Stopping
from tests.builders.chat import Client, FillingTransport, build_core, client, enter, lobby, said, shown
from tests.builders.facts import states


class Crossing:
    """A congestion of 100 bytes a second, two receivers, and senders that send one event of 84 bytes each turn."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.congestion = Congestion(self.clock, 100)
        self.bob, self.eve = {"bob"}, {"eve"}
        self.sent: list[str] = []

    def send(self, name: str, receivers: set[str]) -> Any:
        """Send, or wait for the turn; return what resumes the sender."""

        def resume() -> None:
            try:
                self.congestion.admit(receivers, "x" * 80, "é" * 2)
            except CongestedError as congested:
                self.congestion.wait(resume, congested.receivers)
            else:
                self.sent.append(name)

        resume()
        return resume

    def take(self) -> list[str]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def crossing() -> Crossing:
    return Crossing()


class TestPace:
    def test_where_no_receiver_is_behind_everything_passes(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("eve")
        for _ in range(100):
            crossing.send("ann", crossing.bob)
        assert len(crossing.sent) == 100 and not crossing.clock.getDelayedCalls()

    def test_to_a_receiver_that_is_behind_bytes_pass_at_the_rate(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("bob")
        for name in "1234":
            crossing.send(name, crossing.bob)
        assert crossing.take() == ["1"]
        for name in "234":
            # 16 bytes for the event, 80, and 4 in UTF-8.
            crossing.clock.advance(0.99)
            assert crossing.take() == []
            crossing.clock.advance(0.01)
            assert crossing.take() == [name]
        assert not crossing.clock.getDelayedCalls()

    def test_the_rate_is_that_of_all_receivers_together(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("bob")
        crossing.congestion.fell_behind("eve")
        crossing.send("1", crossing.bob)
        crossing.send("2", crossing.eve)
        assert crossing.take() == ["1"]
        crossing.clock.advance(1)
        assert crossing.take() == ["2"]

    def test_a_receiver_that_catches_up_lets_all_its_senders_go_on(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("bob")
        for name in "1234":
            crossing.send(name, crossing.bob)
        crossing.congestion.caught_up("bob")
        assert crossing.take() == ["1"]
        crossing.clock.advance(0)
        assert crossing.take() == ["2", "3", "4"] and not crossing.clock.getDelayedCalls()

    def test_senders_to_another_that_is_still_behind_wait_on(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("bob")
        crossing.congestion.fell_behind("eve")
        for number, receivers in enumerate([crossing.eve, crossing.eve, crossing.bob, crossing.eve]):
            crossing.send(str(number), receivers)
        crossing.congestion.caught_up("bob")
        crossing.clock.advance(0)
        assert crossing.take() == ["0", "2"]
        crossing.clock.pump([1, 1])
        assert crossing.take() == ["1", "3"]

    def test_a_sender_that_has_gone_is_not_resumed(self, crossing: Crossing) -> None:
        crossing.congestion.fell_behind("bob")
        crossing.send("1", crossing.bob)
        second, third = crossing.send("2", crossing.bob), crossing.send("3", crossing.bob)
        crossing.congestion.forget(second)
        crossing.clock.advance(1)
        assert crossing.take() == ["1", "3"]
        crossing.congestion.forget(third)
        fourth = crossing.send("4", crossing.bob)
        crossing.congestion.forget(fourth)
        assert not crossing.clock.getDelayedCalls()

    def test_an_error_in_one_sender_does_not_stop_the_others(self, crossing: Crossing) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        crossing.congestion.fell_behind("bob")
        crossing.send("1", crossing.bob)
        crossing.congestion.wait(fail, crossing.bob)
        crossing.send("2", crossing.bob)
        with pytest.raises(ZeroDivisionError):
            crossing.clock.advance(1)
        crossing.clock.advance(0)
        assert crossing.take() == ["1", "2"]


class TestActions:
    """Whatever a member does that others are sent waits for them, and has changed nothing until then."""

    @pytest.fixture
    def core(self) -> ChatCore:
        return build_core(send_rate=1024)

    @pytest.fixture
    def ann(self, core: ChatCore) -> Member:
        return enter(core, "ann")[0]

    def refused(self, core: ChatCore, ann: Member, action: Any, *arguments: object) -> None:
        """Expect that an action waits for bob, and is done as soon as bob has caught up."""
        bob, got = enter(core, "bob")
        before = (ann.name, list(ann.rooms), lobby(core).topic, list(lobby(core).history))
        core.congestion.fell_behind(bob)
        # Takes the time that is free.
        core.whisper(ann, bob, "x" * 1000)
        got.take()
        with pytest.raises(CongestedError):
            action(ann, *arguments)
        assert got.take() == []
        assert before == (ann.name, list(ann.rooms), lobby(core).topic, list(lobby(core).history))
        core.congestion.caught_up(bob)
        action(ann, *arguments)
        assert len(got.take()) == 1

    def test_say(self, core: ChatCore, ann: Member) -> None:
        self.refused(core, ann, core.say, lobby(core), "hi")

    def test_act(self, core: ChatCore, ann: Member) -> None:
        self.refused(core, ann, core.act, lobby(core), "waves")

    def test_rename(self, core: ChatCore, ann: Member) -> None:
        core.join(ann, "den")
        self.refused(core, ann, core.rename, "amy")

    def test_retitle(self, core: ChatCore, ann: Member) -> None:
        self.refused(core, ann, core.retitle, lobby(core), "tea")

    def test_leave(self, core: ChatCore, ann: Member) -> None:
        self.refused(core, ann, core.leave, lobby(core))

    def test_join(self, core: ChatCore, ann: Member) -> None:
        core.leave(ann, lobby(core))
        self.refused(core, ann, core.join, "lobby")

    def test_whisper(self, core: ChatCore, ann: Member) -> None:
        self.refused(core, ann, lambda ann: core.whisper(ann, core.find("bob"), "psst"))

    def test_a_member_in_several_rooms_is_charged_for_a_new_name_once(self, core: ChatCore, ann: Member) -> None:
        bob, _ = enter(core, "bob")
        for member in (ann, bob):
            core.join(member, "den")
        core.congestion.fell_behind(bob)
        core.rename(ann, "amy")

    def test_how_many_are_behind_is_a_metric(self, core: ChatCore, ann: Member) -> None:
        core.start()
        values = []
        for change in (core.congestion.fell_behind, core.congestion.caught_up):
            change(ann)
            values.append(core.context.metrics.value("behind"))
        assert values == [1, 0]
        core.stop()

    def test_one_that_leaves_while_it_is_behind_is_not_waited_for(self, core: ChatCore, ann: Member) -> None:
        bob, _ = enter(core, "bob")
        core.congestion.fell_behind(bob)
        core.say(ann, lobby(core), "x" * 1000)
        core.depart(bob)
        core.say(ann, lobby(core), "y")


class TestWaitingLines:
    """Lines of a client that wait for a receiver."""

    @pytest.fixture
    def core(self) -> ChatCore:
        return build_core(send_rate=1024)

    @pytest.fixture
    def bob(self, core: ChatCore) -> Client:
        return client(core, "bob")

    @pytest.fixture
    def ann(self, core: ChatCore, bob: Client) -> Client:
        """A client that has sent something to bob, who is behind."""
        ann = client(core, "ann")
        bob.sees()
        bob.transport.producer.pauseProducing()
        ann.sends("x" * 1024 + "\n")
        return ann

    def test_they_come_in_order_and_are_not_read_ahead(self, ann: Client, bob: Client) -> None:
        ann.sends("1\n2\n/nick amy\n3\n")
        assert ann.state == "paused"
        bob.transport.producer.resumeProducing()
        ann.clock.advance(0)
        assert bob.sees() == shown(*said("ann", "x" * 1024, 1, 2), Renamed("ann", "amy"), *said("amy", 3))
        assert ann.state == "producing" and not ann.clock.getDelayedCalls()

    def test_a_line_that_is_tried_again_counts_once_and_switches_the_encoding_once(
        self, core: ChatCore, ann: Client, bob: Client
    ) -> None:
        before = core.find("ann").bucket.left(0)
        notice = ann.sends("大家好\n".encode("gbk"))
        assert states(notice, "* ", "gbk")
        # Another client sends meanwhile.
        for _ in range(3):
            ann.protocol.dataReceived(b"")
        bob.transport.producer.resumeProducing()
        ann.clock.advance(0)
        assert bob.sees() == shown(*said("ann", "x" * 1024, "大家好")) and ann.sees() == b""
        assert core.find("ann").bucket.left(0) == before - 1

    def test_they_are_done_before_a_half_closed_connection_closes(self, ann: Client, bob: Client) -> None:
        ann.sends("1\n2")
        ann.protocol.readConnectionLost()
        assert not ann.transport.disconnecting
        ann.clock.pump([1.1, 0.1])
        bob.transport.producer.resumeProducing()
        assert bob.sees() == shown(*said("ann", "x" * 1024, 1, 2), Departed("ann"))
        assert ann.transport.disconnecting
        ann.lose()

    def test_they_are_given_up_when_the_connection_is_lost(self, ann: Client, bob: Client) -> None:
        ann.sends("1\n")
        ann.lose()
        assert not ann.clock.getDelayedCalls()
        bob.transport.producer.resumeProducing()
        assert bob.sees() == shown(*said("ann", "x" * 1024), Departed("ann", Reason.LOST))

    def test_they_are_given_up_when_the_service_stops(self, core: ChatCore, ann: Client, bob: Client) -> None:
        ann.sends("1\n")
        core.drain()
        assert bob.sees() == shown(*said("ann", "x" * 1024), Stopping())
        for each in (ann, bob):
            each.lose()
        assert not ann.clock.getDelayedCalls()

    def test_a_new_client_is_greeted_at_once(self, core: ChatCore, ann: Client, bob: Client) -> None:
        eve = Client(core)
        assert states(eve.sees().splitlines()[-2], "lobby", "bob", "ann")
        assert ann.sees() == shown(Joined("lobby", "guest3"))


def fill(core: ChatCore, count: int, name: str, size: int = 65536) -> list[Client]:
    """Clients whose transports have buffers, as real ones have."""
    return [client(core, f"{name}{number}", FillingTransport(size)) for number in range(count)]


def turn(clients: list[Client]) -> None:
    """One turn of the loop: what was written is flushed, and what is due happens."""
    for each in clients:
        each.transport.flush()
    clients[0].clock.advance(0)


class TestTurns:
    """What one turn of the loop produces disconnects no client."""

    @pytest.mark.parametrize(("senders", "lines"), [(3, 20), (60, 1), (60, 5)])
    def test_all_readers_get_all_lines_however_many_come_at_once(self, senders: int, lines: int) -> None:
        core = build_core(burst=lines + 1)
        readers, talkers = fill(core, 4, "reader"), fill(core, senders, "talker")
        everyone = [*readers, *talkers]
        turn(everyone)
        for each in everyone:
            each.transport.read()
        for each in talkers:
            each.protocol.dataReceived(b"".join(b"%02d" % number + b"x" * 4088 + b"\n" for number in range(lines)))
        got = [b""] * len(readers)
        for _ in range(1 + senders * lines // 10):
            turn(everyone)
            for number, each in enumerate(readers):
                got[number] += each.transport.read()
            for each in talkers:
                each.transport.read()
        # No time has passed.
        assert core.context.reactor.seconds() == 0 and not any(each.transport.disconnected for each in everyone)
        assert got[0].count(b"\n") == senders * lines and got == [got[0]] * len(readers)
        assert {each.state for each in talkers} == {"producing"}

    @pytest.mark.parametrize("line", ["/nick {}", "/msg reader0 {}", "/topic {}", "/me {}", "/join {0}\n/leave {0}"])
    def test_whatever_they_send_waits_for_the_reader(self, line: str) -> None:
        core = build_core(topic_length=4096, line_bytes=200)
        [reader], talkers = fill(core, 1, "reader", 1024), fill(core, 40, "talker")
        everyone = [reader, *talkers]
        for number in range(9):
            turn(everyone)
            reader.sends(f"/join n{number}\n")
        for number, each in enumerate(talkers):
            texts = (f"n{number % 9}" if "join" in line else f"n{number}n{count}" for count in range(9))
            each.protocol.dataReceived("".join(line.format(text) + "\n" for text in texts).encode())
        got = [reader.transport.read()]
        while any(each.state == "paused" for each in talkers) or got[-1]:
            turn(everyone)
            got.append(reader.transport.read())
        assert core.context.reactor.seconds() == 0 and not reader.transport.disconnected
        assert max(map(len, got)) < 1024 + 9 * 64
        assert b"".join(got).count(b"\n") > 360

    def test_all_others_leaving_at_once_disconnects_no_client(self) -> None:
        core = build_core(send_bytes=1024)
        reader = client(core)
        others = [enter(core, f"{number:0>32}")[0] for number in range(100)]
        reader.sees()
        reader.transport.producer.pauseProducing()
        for each in others:
            core.depart(each)
        reader.transport.producer.resumeProducing()
        assert reader.sees().count(b"\n") == 100 and not reader.transport.disconnected

    def test_a_reader_of_the_rate_stays_whatever_is_sent(self) -> None:
        core = build_core()
        [reader], talkers = fill(core, 1, "reader"), fill(core, 60, "talker")
        everyone = [reader, *talkers]
        for second in range(60):
            for each in talkers:
                if each.state == "producing":
                    each.protocol.dataReceived(b"x" * 4090 + b"\n")
            for each in everyone:
                each.transport.flush(core.options["send-rate"] // 4 if each is reader else None)
                each.transport.read()
            core.context.reactor.advance(0.25)
            assert not reader.transport.disconnected, second

    def test_one_that_reads_less_is_disconnected_and_delays_the_others_no_longer(self) -> None:
        core = build_core()
        [slow, reader], talkers = fill(core, 2, "reader"), fill(core, 60, "talker")
        everyone = [reader, *talkers]
        for each in talkers:
            each.protocol.dataReceived((b"x" * 4090 + b"\n") * 19)
        passed = 0
        while not slow.transport.disconnected:
            turn(everyone)
            passed += reader.transport.read().count(b"x\n")
            core.context.reactor.advance(0.07)
        options = core.options
        # What fills the transport and the outbox, at the rate, and one delivery more.
        assert passed < (65536 + options["send-bytes"]) / 4096 + 3
        assert core.context.reactor.seconds() < slow.patience + 2
        slow.lose()
        now = core.context.reactor.seconds()
        while any(each.state == "paused" for each in talkers):
            turn(everyone)
            passed += reader.transport.read().count(b"x\n")
            for each in talkers:
                each.transport.read()
        turn(everyone)
        passed += reader.transport.read().count(b"x\n")
        assert passed == 60 * 19 and core.context.reactor.seconds() == now
