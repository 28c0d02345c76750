"""So many bytes a second and no more, on every transport, whatever the protocol does meanwhile; and nothing is lost."""

from __future__ import annotations

import os
import socket
import ssl as standard_ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import ssl
from twisted.internet.interfaces import IFileDescriptorReceiver, IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from netsvc.guard.buckets import Bucket
from netsvc.guard.meter import meter
from netsvc.services.files.sendfile import can_sendfile, send_share
from netsvc.services.files.source import OpenFile
from tests.certificates import write_certificate
from tests.loopback import turn
from tests.metered import KINDS, Echo, Line, Loop, Sink

RATES = [1, 100, 5_000, 400_000]

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


def pattern(size: int) -> bytes:
    return (b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]


class Bench:
    """Lines over buckets of one reactor, all closed at the end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.lines: list[Line] = []

    def bucket(self, rate: float, burst: float | None = None) -> Bucket:
        return Bucket(rate, burst or rate, self.loop.seconds())

    def line(self, kind: str, protocol: Any = None, read: Any = (), write: Any = ()) -> Line:
        self.lines.append(Line(self.loop, kind, protocol, read, write))
        return self.lines[-1]

    def held(self, bucket: Bucket) -> float:
        """Return the tokens in a bucket."""
        now = self.loop.seconds()
        return bucket.burst - bucket.wait(bucket.burst, now) * bucket.rate


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for line in bench.lines:
        line.peer.socket.close()
        if not line.protocol.lost:
            line.transport.abortConnection()
    bench.loop.advance(0)
    assert not bench.loop.getDelayedCalls()
    assert not bench.loop.readers | bench.loop.writers


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("rate", RATES)
def test_so_much_is_read_and_no_more(bench: Bench, kind: str, rate: int) -> None:
    line = bench.line(kind, read=[bench.bucket(rate)])
    data = pattern(rate * 6 + 100_000)
    line.peer.to_send = data
    line.settle()
    most = max(1, min(65536, rate // 4))
    for seconds in range(5):
        passed = rate * (1 + seconds)
        assert passed * 0.8 - 1 <= line.protocol.got <= passed + most
        line.run(1, step=0.1)
    assert b"".join(line.protocol.chunks) == data[: line.protocol.got]
    assert max(map(len, line.protocol.chunks)) <= most


@pytest.mark.parametrize("rate", RATES)
def test_so_much_is_written_and_no_more(bench: Bench, kind: str, rate: int) -> None:
    line = bench.line(kind, write=[bench.bucket(rate)])
    data = pattern(rate * 6 + 100_000)
    line.transport.write(data)
    line.settle()
    most = max(1, min(65536, rate // 4))
    for seconds in range(5):
        passed = rate * (1 + seconds)
        assert passed * 0.8 - 1 <= len(line.peer.received) <= passed + most
        line.run(1, step=0.1)
    assert line.peer.received == data[: len(line.peer.received)]


def test_all_of_it_goes_in_the_end_and_in_order(bench: Bench, kind: str) -> None:
    line = bench.line(kind, Echo(), [bench.bucket(100_000)], [bench.bucket(80_000)])
    line.peer.to_send = data = pattern(500_000)
    line.run(8)
    assert line.peer.received == data
    assert not bench.loop.getDelayedCalls()


def test_below_the_limit_nothing_is_cut_and_nothing_waits(bench: Bench, kind: str) -> None:
    line = bench.line(kind, Echo(), [bench.bucket(100_000)], [bench.bucket(100_000)])
    for number in range(2000):
        line.peer.to_send = b"%064d" % number
        line.settle()
        assert not bench.loop.getDelayedCalls()
        bench.loop.advance(0.001)
    assert line.protocol.chunks == [b"%064d" % number for number in range(2000)]
    assert line.peer.received == b"".join(line.protocol.chunks)


def test_what_is_not_limited_is_the_sockets_own_method(bench: Bench, kind: str) -> None:
    reads = bench.line(kind, read=[bench.bucket(1000)]).transport.socket
    writes = bench.line(kind, write=[bench.bucket(1000)]).transport.socket
    free = bench.line(kind).transport.socket
    assert type(free) is socket.socket
    assert type(reads).send is type(writes).recv is socket.socket.send or type(reads).send is socket.socket.send
    assert type(writes).recv is socket.socket.recv
    assert isinstance(reads, socket.socket)


def test_the_descriptor_stays_the_same_and_does_not_block(bench: Bench, kind: str) -> None:
    line = bench.line(kind)
    descriptor = line.transport.fileno()
    meter(line.transport, bench.loop, [bench.bucket(10)], [bench.bucket(10)])
    assert line.transport.fileno() == line.transport.socket.fileno() == descriptor
    assert line.transport.getHandle() is line.transport.socket
    assert line.transport.socket.gettimeout() == 0


def test_a_transport_below_wrappers_is_metered_and_one_without_a_socket_is_left_alone(bench: Bench) -> None:
    class Layer:
        def __init__(self, transport: Any) -> None:
            self.transport = transport

    line = bench.line("tcp")
    meter(Layer(Layer(line.transport)), bench.loop, [bench.bucket(100)], [])
    line.peer.to_send = pattern(1000)
    line.settle()
    assert 100 <= line.protocol.got <= 125
    transport = StringTransport()
    meter(transport, bench.loop, [bench.bucket(100)], [])
    meter(Layer(None), bench.loop, [bench.bucket(100)], [])
    assert not hasattr(transport, "socket")


class TestShared:
    """Buckets that several connections share, or that one has several of."""

    def test_the_sum_of_all_is_bounded_and_all_get_their_turn(self, bench: Bench, kind: str) -> None:
        bucket = bench.bucket(100_000)
        lines = [bench.line(kind, read=[bucket]) for _ in range(20)]
        for line in lines:
            line.peer.to_send = pattern(1_000_000)

        def move() -> bool:
            return sum(line.peer.move() for line in lines) > 0

        bench.loop.settle(move)
        totals = []
        for second in range(1, 20):
            bench.loop.run(1, move, step=0.05)
            totals.append(sum(line.protocol.got for line in lines))
            # Each may go once beyond what is there, by a quarter of the burst, and all wait the longer for it.
            assert 80_000 * (second + 1) <= totals[-1] <= 100_000 * (second + 1) + 100_000
        assert totals[-1] <= 100_000 * 20 + 25_000
        assert totals[-1] - totals[5] == pytest.approx(100_000 * 13, rel=0.1)
        shares = sorted(line.protocol.got for line in lines)
        assert shares[0] > 0.5 * shares[-1]

    def test_who_waits_is_woken_once_for_each_turn_and_not_all_for_each(self, bench: Bench) -> None:
        bucket = bench.bucket(100_000)
        lines = [bench.line("tcp", read=[bucket]) for _ in range(50)]
        for line in lines:
            line.peer.to_send = pattern(100_000)
        bench.loop.settle(lambda: sum(line.peer.move() for line in lines) > 0)
        waiting = bench.loop.getDelayedCalls()
        assert len(waiting) == 50
        assert len({round(call.getTime(), 4) for call in waiting}) == 50

    def test_the_strictest_of_several_holds(self, bench: Bench, kind: str) -> None:
        line = bench.line(kind, read=[bench.bucket(1_000_000), bench.bucket(1000), bench.bucket(50_000)])
        line.peer.to_send = pattern(100_000)
        line.settle()
        line.run(9)
        assert 8000 <= line.protocol.got <= 10_250

    def test_an_idle_connection_holds_little_back_and_all_is_given_back_at_its_end(self, bench: Bench) -> None:
        bucket = bench.bucket(1_000_000)
        lines = [bench.line("tcp", Echo(), [bucket], []) for _ in range(10)]
        for line in lines:
            line.peer.to_send = b"x" * 100
            line.settle()
        assert 1_000_000 - bench.held(bucket) <= 10 * 512
        for line in lines:
            line.peer.socket.close()
            line.settle()
        assert bench.held(bucket) == pytest.approx(1_000_000 - 1000)

    def test_what_was_waited_for_is_given_back_at_the_end(self, bench: Bench) -> None:
        bucket = bench.bucket(1000)
        line = bench.line("tcp", read=[bucket])
        line.peer.to_send = pattern(5000)
        line.settle()
        got = line.protocol.got
        line.transport.abortConnection()
        bench.loop.advance(0)
        assert bench.held(bucket) == pytest.approx(1000 - got)


class TestWhileNothingMayBeRead:
    """The transport is out of the reactor, and what its protocol asks for is remembered."""

    @pytest.fixture
    def line(self, bench: Bench, kind: str) -> Line:
        line = bench.line(kind, read=[bench.bucket(1000)])
        line.peer.to_send = pattern(20_000)
        line.settle()
        assert 1000 <= line.protocol.got <= 1250
        assert line.transport not in bench.loop.readers
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
        assert line.transport not in bench.loop.readers
        assert len(bench.loop.getDelayedCalls()) == 1

    def test_one_that_reads_all_the_same_is_told_to_wait(self, bench: Bench, line: Line) -> None:
        got = line.protocol.got
        assert line.transport.doRead() is None
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
        assert not set(vars(line.transport)) & {"startReading", "stopReading"}

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
        assert line.transport not in bench.loop.writers
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
        assert not set(vars(line.transport)) & {"startWriting", "stopWriting"}

    def test_a_peer_that_goes_is_noticed(self, bench: Bench, line: Line) -> None:
        line.peer.socket.close()
        line.settle()
        assert line.protocol.lost == 1
        assert not bench.loop.getDelayedCalls()

    def test_one_that_stops_writing_meanwhile_is_not_woken_and_may_start_again(self, bench: Bench, line: Line) -> None:
        count = len(line.peer.received)
        line.transport.stopWriting()
        bench.loop.advance(1)
        assert line.transport not in bench.loop.writers
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


def test_descriptors_that_are_passed_along_count_as_the_bytes_with_them(bench: Bench) -> None:
    passed: list[int] = []

    @implementer(IFileDescriptorReceiver, IHalfCloseableProtocol)
    class Receiver(Sink):
        def fileDescriptorReceived(self, descriptor: int) -> None:
            passed.append(descriptor)

        def readConnectionLost(self) -> None:
            pass

        def writeConnectionLost(self) -> None:
            pass

    for kind in ("unix", "flushed unix"):
        line = bench.line(kind, Receiver(), [bench.bucket(100)], [bench.bucket(100)])
        with open(os.devnull, "rb") as file:
            socket.send_fds(line.peer.socket, [b"abc"], [file.fileno()])
            line.settle()
            assert line.protocol.chunks == [b"abc"]
            os.close(passed.pop())
            for _ in range(150):
                line.transport.sendFileDescriptor(file.fileno())
                line.transport.write(b"x")
            bench.loop.settle()
            received = 0
            while True:
                try:
                    data, descriptors, _, _ = socket.recv_fds(line.peer.socket, 1, 1)
                except BlockingIOError:
                    break
                received += len(data)
                assert len(descriptors) == 1
                os.close(descriptors[0])
            assert 90 <= received <= 125
            assert len(bench.loop.getDelayedCalls()) == 1
            line.transport.abortConnection()
            bench.loop.advance(0)


def test_a_file_that_the_kernel_sends_is_counted(bench: Bench, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pattern(1_000_000))
    line = bench.line(kind, write=[bench.bucket(100_000)])
    file = OpenFile(os.open(path, os.O_RDONLY), 1_000_000, lambda file: None, lambda file: None)

    @implementer(IPullProducer)
    class Sender:
        def resumeProducing(self) -> None:
            assert can_sendfile(line.transport)
            send_share(file, line.transport, 1 << 20)
            if not file.left:
                line.transport.unregisterProducer()
                line.transport.loseConnection()

        def stopProducing(self) -> None:
            raise AssertionError

    line.transport.registerProducer(Sender(), False)
    line.settle()
    for second in range(1, 8):
        assert 80_000 * second <= len(line.peer.received) <= 100_000 * second + 25_000
        line.run(1)
    line.run(4)
    assert line.peer.received == pattern(1_000_000)
    assert line.protocol.lost == 1
    file.close()


class Encrypting:
    """A TLS client on the far end of a line."""

    def __init__(self, line: Line, trusted: Path) -> None:
        context = standard_ssl.create_default_context(cafile=str(trusted))
        self._line = line
        self._to_read, self._written = standard_ssl.MemoryBIO(), standard_ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._to_read, self._written, server_hostname="localhost")

    def try_to(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and move what comes of it; return None if it cannot be done yet."""
        try:
            return call(*arguments)
        except standard_ssl.SSLWantReadError:
            return None
        finally:
            self._line.peer.to_send += self._written.read()
            self._line.settle()
            self._to_read.write(bytes(self._line.peer.received))
            self._line.peer.received.clear()


@pytest_twisted.inlineCallbacks
def test_tls_that_is_started_later_lifts_no_limit_and_its_own_bytes_count(
    bench: Bench, tmp_path: Path, kind: str
) -> Any:
    key, certificate = write_certificate(tmp_path, "localhost")
    identity = ssl.PrivateCertificate.loadPEM(key.read_bytes() + certificate.read_bytes()).options()
    read, write = bench.bucket(50_000), bench.bucket(50_000)
    line = bench.line(kind, Echo(), [read], [write])
    line.transport.startTLS(identity)
    client = Encrypting(line, certificate)
    for _ in range(4):
        client.try_to(client.tls.do_handshake)
    client.try_to(client.tls.do_handshake)
    assert bench.held(read) < 49_900
    assert bench.held(write) < 49_000
    client.try_to(client.tls.write, pattern(200_000))
    line.settle()
    assert 25_000 <= line.protocol.got <= 62_500
    echoed = b""
    for _ in range(900):
        bench.loop.advance(0.01)
        # Twisted's TLS gathers small writes until the next turn of the process's own reactor.
        yield turn()
        echoed += client.try_to(client.tls.read, 1 << 20) or b""
        assert len(echoed) <= 50_000 * (bench.loop.seconds() - 1000.7) + 62_500
    assert echoed == pattern(200_000)


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
        assert line.transport in bench.loop.readers or not read or bench.loop.getDelayedCalls()
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
    line.close()
