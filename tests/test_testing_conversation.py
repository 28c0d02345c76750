"""check_service finds every kind of breach in what a service says and does to its peers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from netsvc.service import PlainCore
from netsvc.testing import check_service
from tests.conftest import LoggedErrors
from tests.test_testing import DatagramParrot, Parrot, breach, service


class Chunky(Parrot):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"[%d]" % len(data))


class LastWords(Parrot):
    """Answers right, and then tells how many chunks there were."""

    chunks = 0

    def dataReceived(self, data: bytes) -> None:
        self.chunks += 1

    def connectionLost(self, reason: Any = None) -> None:
        pass


@implementer(IHalfCloseableProtocol)
class Farewell(LastWords):
    def readConnectionLost(self) -> None:
        self.transport.write(b"%d" % self.chunks)
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


class Impatient(LastWords):
    """Resets the connection at the fifth chunk."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self.chunks == 5:
            self.transport.abortConnection()


class Unlucky(Parrot):
    def dataReceived(self, data: bytes) -> None:
        if b"\xff" in data:
            raise ValueError("no 255")


class LineOnly(Parrot):
    """Fails where its line was cut."""

    seen = b""

    def dataReceived(self, data: bytes) -> None:
        self.seen += data

    def connectionLost(self, reason: Any = None) -> None:
        if self.seen == b"hel":
            raise IndexError("cut line")


class Lingering(Parrot):
    def connectionMade(self) -> None:
        self.factory.core.context.reactor.callLater(9999, self.leave)

    def leave(self) -> None:
        self.transport.loseConnection()


class Late(Parrot):
    def connectionMade(self) -> None:
        self.factory.core.context.reactor.callLater(0.05, lambda: 1 // 0)


class Quitter(Parrot):
    def dataReceived(self, data: bytes) -> None:
        sys.exit("bye")


class Stopper(Parrot):
    def dataReceived(self, data: bytes) -> None:
        self.factory.core.context.reactor.stop()


class Logging(Parrot):
    def connectionLost(self, reason: Any = None) -> None:
        Logger().failure("lost", reason)


class TestStreams:
    @pytest.mark.parametrize(
        ("protocol", "samples", "sentence"),
        [
            (
                Chunky,
                [b"hello"],
                'demo: tcp, "hello" sent byte by byte: the answer is "[1][1][1][1][1]", but whole it is "[5]"; '
                "if each chunk is answered as it comes, name the protocol in chunked=",
            ),
            (
                Farewell,
                [b"abc"],
                'tcp, "abc" sent byte by byte: the answer after the peer has sent all is "3", but whole it is "1"; if',
            ),
            (Impatient, [], "sent byte by byte: the connection ends in another way than when it is sent whole; if"),
            (Unlucky, [], "sent whole: raised ValueError: no 255 at "),
            (LineOnly, [b"hello"], 'tcp, a loss after "hel": raised IndexError: cut line at '),
            (
                Lingering,
                [],
                "tcp, nothing sent whole left a call behind that stop() did not cancel (Lingering.leave)",
            ),
            (Late, [], "tcp, nothing sent whole: raised ZeroDivisionError: "),
            (Quitter, [], "raised SystemExit: bye at "),
            (Stopper, [], "sent whole stopped the reactor, and with it every other service"),
        ],
    )
    def test_each_kind_of_breach_is_named(self, protocol: Any, samples: list[bytes], sentence: str) -> None:
        assert sentence in breach(service(protocol), samples={"tcp": samples})

    def test_a_chunked_protocol_may_answer_each_chunk(self) -> None:
        check_service(service(Chunky), chunked=("tcp",))

    def test_a_chunked_protocol_is_checked_all_the_same(self) -> None:
        assert "tcp, a loss after" in breach(service(Unlucky), chunked=("tcp",))

    def test_an_answer_that_differs_each_time_is_named(self) -> None:
        numbers = count()

        class Numbered(Parrot):
            def connectionMade(self) -> None:
                self.transport.write(b"%d" % next(numbers))

        assert 'tcp, nothing sent byte by byte: the answer is "1", but whole it is "0"' in breach(service(Numbered))
        check_service(service(Numbered), chunked=("tcp",))

    def test_a_peer_that_reads_late_must_get_the_same(self) -> None:
        class Hasty(Parrot):
            def connectionMade(self) -> None:
                self.transport.write(b"welcome")

            def dataReceived(self, data: bytes) -> None:
                if self.transport.dataBuffer:
                    self.transport.abortConnection()

        assert 'sent whole to a peer that reads late: the answer is nothing, but whole it is "welcome"' in breach(
            service(Hasty)
        )

    def test_a_logged_failure_is_a_breach(self, logged_errors: LoggedErrors) -> None:
        assert "logged an error: ConnectionDone: Connection was closed cleanly" in breach(service(Logging))
        assert logged_errors.flush()

    def test_an_endless_answer_has_an_end_in_the_check(self) -> None:
        class Endless(Parrot):
            def connectionMade(self) -> None:
                self.transport.registerProducer(self, False)

            def resumeProducing(self) -> None:
                self.transport.write(b"x" * 1000)

            def stopProducing(self) -> None:
                pass

            def dataReceived(self, data: bytes) -> None:
                pass

        check_service(service(Endless))

    def test_a_factory_that_takes_nobody_is_a_breach(self) -> None:
        class Closed(Factory):
            def buildProtocol(self, addr: object) -> None:
                return None

        assert "raised ConnectionRefusedError: tcp takes no connection from" in breach(service(Closed))

    def test_a_long_sample_is_cut_at_some_places_only(self) -> None:
        report = check_service(service(), samples={"tcp": [bytes(1000)]})
        # 91 cuts of the sample and the whole of it, 1 of nothing, 7 of the line, 86 of all bytes; six endings each.
        assert "tcp: 1116 connections lost, at every moment of the samples" in report.lines


class Unprepared(DatagramParrot):
    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)  # type: ignore[union-attr]


class Growing(DatagramParrot):
    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        super().datagramReceived(datagram + b"!", addr)


class First(DatagramParrot):
    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        datagram[0]


class Unpacking(DatagramParrot):
    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        _host, _port = addr or ("", 0)


class Starting(DatagramParrot):
    def startProtocol(self) -> None:
        raise OSError("no start")


class Straggling(DatagramParrot):
    def startProtocol(self) -> None:
        self.core.context.reactor.callLater(9999, print)


class TestDatagrams:
    @pytest.mark.parametrize(
        ("protocol", "sentence"),
        [
            (
                Unprepared,
                "a datagram of 0 bytes (nothing) from a nameless peer: raised TypeError: a datagram needs an address",
            ),
            (Growing, "raised MessageLengthError: Message is too long to send: message too long. at "),
            (First, "udp, a datagram of 0 bytes (nothing) from ('192.0.2.1', 54321): raised IndexError"),
            (Unpacking, "from /run/peer: raised ValueError: too many values to unpack"),
            (
                Starting,
                "udp at IPv4Address(type='UDP', host='127.0.0.1', port=40000), starting: raised OSError: no start",
            ),
            (Straggling, "left a call behind that stop() did not cancel (print)"),
        ],
    )
    def test_each_kind_of_breach_is_named(self, protocol: Any, sentence: str) -> None:
        assert sentence in breach(service(udp=protocol))

    def test_a_sample_is_sent(self) -> None:
        seen = []

        class Seeing(DatagramParrot):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                seen.append(datagram)

        check_service(service(udp=Seeing), samples={"udp": [b"sample"]})
        assert {b"sample", b"", bytes(65507)} <= set(seen)


class TestDrain:
    @pytest.mark.parametrize(
        ("result", "sentence"),
        [
            (
                Deferred,
                "drain() with no connection does not finish, though every connection is gone: its Deferred must fire",
            ),
            (lambda: fail(OSError("stuck")), "drain() with no connection fails: OSError: stuck"),
            (lambda: 5, "drain() with no connection returns int: return a Deferred, or None"),
        ],
    )
    def test_each_kind_of_breach_is_named(self, result: Callable[[], object], sentence: str) -> None:
        class Draining(PlainCore):
            def drain(self) -> object:
                return result()

        assert breach(service(core=Draining)) == f"demo: {sentence}"

    def test_must_end_with_live_connections_too(self) -> None:
        class Draining(PlainCore):
            connections = 0

            def drain(self) -> Deferred[None]:
                return Deferred() if self.connections else succeed(None)

        class Counting(Parrot):
            def connectionMade(self) -> None:
                object.__setattr__(self.factory.core, "connections", 1)

        assert "drain() with live connections does not finish" in breach(service(Counting, core=Draining))

    def test_a_deferred_that_fires_later_is_right(self) -> None:
        class Draining(PlainCore):
            def drain(self) -> Deferred[None]:
                done: Deferred[None] = Deferred()
                self.context.reactor.callLater(3, done.callback, None)
                return done

        check_service(service(core=Draining))
