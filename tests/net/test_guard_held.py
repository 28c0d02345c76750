"""While nothing may be read or written, all that a protocol asks for happens or is remembered; and nothing is lost."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.builders.metered import KINDS, Bench, Echo, Line, Sink, benched, each_kind, pattern, tcp_pair

bench = pytest.fixture(benched)
kind = pytest.fixture(each_kind, params=KINDS)


class TestWhileNothingMayBeRead:
    """The transport is out of the reactor, and what its protocol asks for is remembered."""

    @pytest.fixture
    def line(self, bench: Bench, kind: str) -> Line:
        line = bench.line(kind, read=[bench.bucket(1000)])
        line.peer.to_send = pattern(20_000)
        line.settle()
        assert 1000 <= line.protocol.got <= 1250
        assert line.lowest not in bench.loop.readers
        return line

    def test_one_that_is_paused_stays_paused_and_goes_on_when_it_is_resumed(self, bench: Bench, line: Line) -> None:
        got = line.protocol.got
        line.transport.pauseProducing()
        line.run(5)
        assert line.protocol.got == got
        assert not bench.loop.getDelayedCalls()
        line.transport.resumeProducing()
        line.settle()
        assert 1000 <= line.protocol.got - got <= 1500
        line.run(20)
        assert b"".join(line.protocol.chunks) == pattern(20_000)

    def test_one_that_is_paused_and_resumed_is_not_read_before_its_time(self, bench: Bench, line: Line) -> None:
        got = line.protocol.got
        for _ in range(5):
            line.transport.pauseProducing()
            line.transport.resumeProducing()
            line.settle()
        assert line.protocol.got == got
        assert line.lowest not in bench.loop.readers
        assert len(bench.loop.getDelayedCalls()) == 1

    def test_one_that_reads_all_the_same_is_told_to_wait(self, bench: Bench, line: Line) -> None:
        got = line.protocol.got
        assert line.lowest.doRead() is None
        assert line.protocol.got == got
        assert len(bench.loop.getDelayedCalls()) == 1
        line.run(1)
        assert line.protocol.got > got

    def test_it_writes_as_ever(self, line: Line) -> None:
        line.transport.write(b"hello")
        line.settle()
        assert line.peer.received == b"hello"

    def test_one_that_is_closed_sends_what_it_wrote_and_is_gone(self, bench: Bench, line: Line) -> None:
        line.transport.write(b"good bye")
        line.transport.loseConnection()
        line.settle()
        assert line.peer.received == b"good bye"
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_one_that_is_aborted_is_gone(self, bench: Bench, line: Line) -> None:
        line.transport.abortConnection()
        bench.loop.advance(0)
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_one_that_half_closes_is_read_on(self, line: Line) -> None:
        line.transport.write(b"good bye")
        line.transport.loseWriteConnection()
        line.settle()
        assert line.peer.received == b"good bye"
        assert line.peer.ended
        assert not line.protocol.lost
        line.run(20)
        assert line.protocol.got == 20_000

    def test_a_peer_that_goes_is_heard_to_its_end(self, line: Line) -> None:
        line.run(0.1)
        while line.peer.to_send:
            line.settle()
        line.peer.socket.shutdown(socket.SHUT_WR)
        line.run(20)
        assert line.protocol.got == 20_000
        assert line.protocol.lost == 1


class TestWhileNothingMayBeWritten:
    """The same the other way."""

    @pytest.fixture
    def line(self, bench: Bench, kind: str) -> Line:
        line = bench.line(kind, write=[bench.bucket(1000)])
        line.transport.write(pattern(10_000))
        line.settle()
        assert 1000 <= len(line.peer.received) <= 1250
        assert line.lowest not in bench.loop.writers
        return line

    def test_more_may_be_written_and_waits(self, bench: Bench, line: Line) -> None:
        count = len(line.peer.received)
        line.transport.write(b"more")
        line.transport.writeSequence([b" and", b" more"])
        line.settle()
        assert len(line.peer.received) == count
        assert len(bench.loop.getDelayedCalls()) == 1
        line.run(12)
        assert line.peer.received == pattern(10_000) + b"more and more"

    def test_it_reads_as_ever(self, line: Line) -> None:
        line.peer.to_send = b"hello"
        line.settle()
        assert line.protocol.chunks == [b"hello"]

    def test_one_that_answers_waits_as_well(self, bench: Bench, kind: str) -> None:
        line = bench.line(kind, Echo(), write=[bench.bucket(1000)])
        for number in range(100):
            line.peer.to_send = b"%064d" % number
            line.settle()
        assert 900 <= len(line.peer.received) <= 1250
        line.run(7)
        assert line.peer.received == b"".join(b"%064d" % number for number in range(100))

    def test_one_that_is_closed_sends_all_at_its_pace_and_is_gone(self, bench: Bench, line: Line) -> None:
        line.transport.loseConnection()
        line.run(2)
        assert not line.protocol.lost
        assert 2400 <= len(line.peer.received) <= 3250
        line.run(9)
        assert line.peer.received == pattern(10_000)
        assert line.peer.ended
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_one_that_half_closes_sends_all_and_reads_on(self, line: Line) -> None:
        line.transport.loseWriteConnection()
        line.run(11)
        assert line.peer.received == pattern(10_000)
        assert line.peer.ended
        assert not line.protocol.lost
        line.peer.to_send = b"hello"
        line.settle()
        assert line.protocol.chunks == [b"hello"]

    def test_one_that_is_aborted_is_gone(self, bench: Bench, line: Line) -> None:
        line.transport.abortConnection()
        bench.loop.advance(0)
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_a_peer_that_goes_is_noticed(self, bench: Bench, line: Line) -> None:
        line.peer.socket.close()
        line.settle()
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_one_that_stops_writing_meanwhile_is_not_woken_and_may_start_again(self, bench: Bench, line: Line) -> None:
        count = len(line.peer.received)
        line.transport.stopWriting()
        bench.loop.advance(1)
        assert line.lowest not in bench.loop.writers
        line.settle()
        assert len(line.peer.received) == count
        line.transport.startWriting()
        line.run(20)
        assert line.peer.received == pattern(10_000)

    def test_one_that_writes_all_the_same_is_told_to_wait(self, bench: Bench, line: Line) -> None:
        count = len(line.peer.received)
        assert line.transport.doWrite() is None
        line.settle()
        assert len(line.peer.received) == count
        assert len(bench.loop.getDelayedCalls()) == 1
        line.run(12)
        assert line.peer.received == pattern(10_000)

    @pytest.mark.parametrize("streaming", [True, False])
    def test_a_producer_is_asked_for_no_more_than_goes(self, bench: Bench, kind: str, streaming: bool) -> None:
        line = bench.line(kind, write=[bench.bucket(100_000)])
        produced: list[bytes] = []

        @implementer(IPushProducer)
        class Producer:
            paused = False

            def produce(self) -> None:
                produced.append(pattern(10_000))
                line.transport.write(produced[-1])
                if len(produced) == 100:
                    line.transport.unregisterProducer()

            def resumeProducing(self) -> None:
                self.paused = False
                self.produce()
                while streaming and not self.paused and len(produced) < 100:
                    self.produce()

            def pauseProducing(self) -> None:
                self.paused = True

            def stopProducing(self) -> None:
                raise AssertionError

        producer = Producer()
        line.transport.registerProducer(producer, streaming)
        if streaming:
            producer.resumeProducing()
        line.settle()
        # A streaming producer is paused when 64 KiB wait.
        assert len(line.peer.received) <= 10_000 * len(produced) <= len(line.peer.received) + 90_000
        line.run(5)
        assert 500_000 <= len(line.peer.received) <= 625_000
        line.run(6)
        assert len(produced) == 100
        assert line.peer.received == b"".join(produced)


@pytest.mark.parametrize("kind", ["tcp", "layered tcp", "flushed tcp"])
class TestAResetWhileNothingMayGo:
    """It is seen soon, and the connection's place and turn are free; an orderly end is not taken for one."""

    @pytest.fixture
    def lines(self, bench: Bench, kind: str) -> list[Line]:
        bucket = bench.bucket(10_000)
        lines = [bench.line(kind, read=[bucket], pair=tcp_pair) for _ in range(130)]
        for line in lines:
            line.peer.to_send = pattern(20_000)
        bench.loop.settle(lambda: sum(line.peer.move() for line in lines) > 0)
        assert not bench.loop.readers
        return lines

    def test_those_that_wait_after_them_move_up(self, bench: Bench, lines: list[Line]) -> None:
        turn = next(reversed(lines[0].transport.reads._turns._waiting))
        [last] = [line for line in lines if line.transport is turn.transport]
        got = last.protocol.got
        for line in lines:
            if line is not last:
                line.reset()
        last.run(1)
        assert [line.protocol.lost for line in lines] == [line is not last for line in lines]
        assert last.protocol.got > got
        last.run(2)
        assert last.protocol.got == 20_000
        assert not bench.loop.getDelayedCalls()

    def test_what_was_taken_for_a_turn_is_given_back(self, bench: Bench, kind: str) -> None:
        shared = bench.bucket(1000)
        lines = [bench.line(kind, read=[shared, bench.bucket(2000)], pair=tcp_pair) for _ in range(10)]
        for line in lines:
            line.peer.to_send = pattern(5000)
        bench.loop.settle(lambda: sum(line.peer.move() for line in lines) > 0)
        began = bench.loop.seconds()
        for line in lines:
            line.reset()
        bench.loop.run(0.3)
        assert all(line.protocol.lost == 1 for line in lines)
        assert not bench.loop.getDelayedCalls()
        refilled = 1000 * (1 + bench.loop.seconds() - began)
        assert bench.held(shared) == pytest.approx(refilled - sum(line.protocol.got for line in lines))

    def test_one_whose_protocol_fails_or_ends_another_does_no_harm(
        self, bench: Bench, kind: str, logged_errors: Any
    ) -> None:
        bucket = bench.bucket(1000)

        class Failing(Sink):
            def connectionLost(self, reason: object = None) -> None:
                super().connectionLost(reason)
                for line in lines:
                    if not line.protocol.lost:
                        line.transport.connectionLost(Failure(ConnectionAborted()))
                raise RuntimeError("a bug")

        lines = [bench.line(kind, Failing(), [bucket], pair=tcp_pair) for _ in range(3)]
        for line in lines:
            line.peer.to_send = pattern(5000)
        bench.loop.settle(lambda: sum(line.peer.move() for line in lines) > 0)
        for line in lines:
            line.reset()
        bench.loop.run(0.3)
        assert [line.protocol.lost for line in lines] == [1, 1, 1]
        assert logged_errors.flush(RuntimeError)

    def test_one_that_waits_to_write_and_does_not_read_is_lost(self, bench: Bench, kind: str) -> None:
        line = bench.line(kind, write=[bench.bucket(100)], pair=tcp_pair)
        line.transport.write(pattern(10_000))
        line.transport.pauseProducing()
        line.settle()
        line.reset()
        bench.loop.run(0.3)
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    @pytest.mark.parametrize("both", [False, True])
    def test_what_was_sent_before_an_orderly_end_is_read(self, bench: Bench, kind: str, both: bool) -> None:
        line = bench.line(kind, read=[bench.bucket(1000)], pair=tcp_pair)
        line.peer.to_send = pattern(10_000)
        line.settle()
        assert not line.peer.to_send
        line.peer.socket.shutdown(socket.SHUT_WR)
        if both:
            line.transport.loseWriteConnection()
        line.run(11)
        assert b"".join(line.protocol.chunks) == pattern(10_000)
        assert line.protocol.lost == 1


@given(
    kind=st.sampled_from(list(KINDS)),
    read=st.none() | st.integers(50, 20_000),
    write=st.none() | st.integers(50, 20_000),
    events=st.lists(
        st.tuples(
            st.sampled_from(["wait", "send", "pause", "resume", "deaf", "listen"]),
            st.integers(1, 3000),
        ),
        max_size=30,
    ),
    end=st.sampled_from(["nothing", "lose", "half", "abort"]),
)
def test_whatever_happens_nothing_is_lost_exceeded_or_left(
    kind: str, read: int | None, write: int | None, events: list[tuple[str, int]], end: str
) -> None:
    bench = Bench()
    began = bench.loop.seconds()
    line = bench.line(kind, Echo(), [bench.bucket(read)] if read else (), [bench.bucket(write)] if write else ())

    def bounded() -> None:
        passed = bench.loop.seconds() - began
        for rate, count in ((read, line.protocol.got), (write, len(line.peer.received))):
            assert rate is None or count <= rate * (passed + 1) + max(1, rate // 4) + 1

    sent = b""
    for event, value in events:
        if event == "wait":
            line.run(value / 1000, step=0.05)
        elif event == "send":
            line.peer.to_send += b"%d " % value * value
            sent += b"%d " % value * value
            line.settle()
        elif event in ("deaf", "listen"):
            line.peer.reads = event == "listen"
        else:
            getattr(line.transport, f"{event}Producing")()
        bounded()
    line.peer.reads = True
    if end == "nothing":
        line.transport.resumeProducing()
        for _ in range(10_000):
            if len(line.peer.received) == len(sent):
                break
            line.run(0.5, step=0.5)
        bounded()
        assert line.peer.received == sent
        assert line.lowest in bench.loop.readers or not read or bench.loop.getDelayedCalls()
    elif end == "abort":
        line.transport.abortConnection()
        bench.loop.advance(0)
        assert line.protocol.lost == 1
    else:
        got = line.protocol.got
        {"lose": line.transport.loseConnection, "half": line.transport.loseWriteConnection}[end]()
        for _ in range(10_000):
            if line.peer.ended:
                break
            line.run(0.5, step=0.5)
        bounded()
        # What was answered before the end is out.
        assert line.peer.ended
        assert sent.startswith(bytes(line.peer.received))
        assert len(line.peer.received) >= got
    bench.close()
