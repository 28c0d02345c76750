"""So many bytes a second and no more, on every transport, whatever the protocol does meanwhile; and nothing is lost."""

from __future__ import annotations

import os
import socket
import ssl as standard_ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import ssl
from twisted.internet.interfaces import IFileDescriptorReceiver, IHalfCloseableProtocol, IPullProducer
from zope.interface import implementer

from netsvc.guard.bandwidth import reset
from netsvc.reactor.hooks import Layer
from netsvc.services.files.download import send_share
from netsvc.services.files.file import OpenFile
from netsvc.services.files.transport import can_sendfile
from tests.builders.certificates import write_certificate
from tests.builders.loopback import turn
from tests.builders.metered import KINDS, Bench, Echo, Line, Sink, benched, each_kind, pattern, tcp_pair

RATES = [1, 100, 5_000, 400_000]

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


bench = pytest.fixture(benched)
kind = pytest.fixture(each_kind, params=KINDS)


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


@pytest.mark.parametrize("rate", [100_000, 10_000_000])
def test_below_the_limit_nothing_is_cut_and_nothing_waits(bench: Bench, kind: str, rate: int) -> None:
    line = bench.line(kind, Echo(), [bench.bucket(rate)], [bench.bucket(rate)])
    for number in range(2000):
        line.peer.to_send = b"%064d" % number
        line.settle()
        assert not bench.loop.getDelayedCalls()
        bench.loop.advance(0.001)
    assert line.protocol.chunks == [b"%064d" % number for number in range(2000)]
    assert line.peer.received == b"".join(line.protocol.chunks)


def test_the_limits_are_where_the_hooks_are_and_there_is_a_layer_only_where_there_are_none(
    bench: Bench, kind: str
) -> None:
    line = bench.line(kind, read=[bench.bucket(1000)])
    assert isinstance(line.transport, Layer) == kind.startswith("layered")
    assert (line.lowest is line.transport) != kind.startswith("layered")
    assert line.transport.reads is not None and line.transport.writes is None
    assert line.transport.fileno() == line.lowest.fileno()


@pytest.mark.slow
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

    def test_who_waits_is_woken_once_for_each_turn_in_order_and_not_all_for_each(self, bench: Bench) -> None:
        bucket = bench.bucket(100_000)
        lines = [bench.line("tcp", read=[bucket]) for _ in range(50)]
        for line in lines:
            line.peer.to_send = pattern(100_000)
        bench.loop.settle(lambda: sum(line.peer.move() for line in lines) > 0)
        assert not bench.loop.readers
        woken = []
        for _ in range(120):
            [call] = bench.loop.getDelayedCalls()
            bench.loop.advance(call.getTime() - bench.loop.seconds())
            assert len(bench.loop.readers) <= 1
            woken += [lines.index(line) for line in lines if line.lowest in bench.loop.readers]
            bench.loop.settle()
            assert not bench.loop.readers
        assert len(woken) > 100
        assert woken[:50] == woken[50:100]
        assert sorted(woken[:50]) == list(range(50))

    def test_nobody_waits_behind_one_that_waits_for_a_limit_of_its_own(self, bench: Bench) -> None:
        shared = bench.bucket(1_000_000)
        slow = [bench.line("tcp", read=[shared, bench.bucket(100)]) for _ in range(20)]
        fast = [bench.line("tcp", read=[shared, bench.bucket(600_000)]) for _ in range(2)]
        lines = slow + fast
        for line in lines:
            line.peer.to_send = pattern(3_000_000 if line in fast else 1000)
        bench.loop.run(3, lambda: sum(line.peer.move() for line in lines) > 0)
        assert sum(line.protocol.got for line in lines) <= 4_250_000
        assert all(300 <= line.protocol.got <= 425 for line in slow)
        assert all(line.protocol.got >= 1_000_000 for line in fast)

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


@pytest.mark.parametrize("kind", ["unix", "flushed unix"])
def test_what_a_local_peer_sent_before_it_went_is_read_though_it_left_something_unread(bench: Bench, kind: str) -> None:
    line = bench.line(kind, read=[bench.bucket(1000)])
    line.transport.write(b"never read")
    line.peer.reads = False
    line.peer.to_send = pattern(5000)
    line.settle()
    line.peer.socket.close()
    line.run(6)
    assert b"".join(line.protocol.chunks) == pattern(5000)
    assert line.protocol.lost == 1


def test_where_the_system_does_not_tell_of_resets_nobody_is_lost_before_its_turn(bench: Bench) -> None:
    line = bench.line("tcp", read=[bench.bucket(1000)], pair=tcp_pair)
    line.peer.to_send = pattern(5000)
    line.settle()
    line.reset()
    waiting = line.transport.reads
    assert reset([waiting], None) == []
    assert reset([waiting]) == [waiting]


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
            received = 0
            while True:
                bench.loop.settle()
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("layered")])
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
    # A layer stands above the TLS.
    assert bench.held(read) < 49_900 or kind.startswith("layered")
    assert bench.held(write) < 49_000 or kind.startswith("layered")
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
