"""check_service finds every kind of fault in what a service says and does to its peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from netsvc.coroutine import Stream
from netsvc.service import PlainCore
from netsvc.stream import LineProtocol
from netsvc.testing import check_service, findings
from netsvc.testing.findings import KINDS
from tests.builders.facts import lacks
from tests.builders.parrots import DatagramParrot, Parrot, found, service
from tests.conftest import LoggedErrors

#: What a `Parrot` and all that is made of it is found to do.
HABITS = ("half-close", "slow-reader")


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


class Hoarding(LineProtocol):
    """Holds a line of any length."""

    longest = 1 << 40

    def line_received(self, line: bytes) -> None:
        self.transport.write(line)


class TestStreams:
    @pytest.mark.parametrize(
        ("protocol", "samples", "kind", "facts"),
        [
            (Chunky, [b"hello"], "split", ['"hello" sent byte by byte', '"[1][1][1][1][1]"', '"[5]"']),
            (Farewell, [b"abc"], "split", ['"abc" sent byte by byte', '"3"', '"1"']),
            (Impatient, [], "split", ["sent byte by byte", "ends"]),
            (Unlucky, [], "raises", ["sent whole", "ValueError: no 255 at ", f"{__file__}:"]),
            (LineOnly, [b"hello"], "raises", ['a loss after "hel"', "IndexError: cut line at "]),
            (Lingering, [], "leftover", ["nothing sent whole", "stop()", "(Lingering.leave)"]),
            (Late, [], "raises", ["nothing sent whole", "ZeroDivisionError: "]),
            (Quitter, [], "raises", ["SystemExit: bye at "]),
            (Stopper, [], "raises", ["sent whole", "stopped the reactor"]),
            (Parrot, [], "half-close", ["pipe"]),
            (Parrot, [], "slow-reader", ["does not read"]),
            (Hoarding, [], "unbounded", ["4 MiB", "delimiter"]),
        ],
    )
    def test_each_kind_is_named_with_its_class_and_cure(
        self, protocol: Any, samples: list[bytes], kind: str, facts: Sequence[str]
    ) -> None:
        finding = found(service(protocol), samples={"tcp": samples})[kind]
        assert lacks(finding.what, *facts) == []
        assert (finding.protocol, finding.cure) == ("tcp", KINDS[kind])
        assert finding.where.startswith("tests/unit/test_testing_checks.py:") or protocol is Parrot
        assert finding.where.endswith(f" ({protocol.__name__})")

    def test_a_sound_one_has_none(self) -> None:
        check_service(service(Sound), samples={"tcp": [b"one\ntwo\n"]})

    def test_one_that_never_answers_has_no_habits(self) -> None:
        check_service(service(Protocol))

    def test_what_is_allowed_is_not_found(self) -> None:
        check_service(service(Chunky), allow=("tcp split", *HABITS))
        check_service(service(Chunky), allow=("split", *HABITS))
        assert "split" in found(service(Chunky), allow=("udp split",))
        assert set(found(service(Unlucky), allow=("split", *HABITS))) == {"raises"}

    def test_all_findings_come_together(self) -> None:
        findings = found(service(Hoarding, Growing), samples={"tcp": [b"hello"]})
        assert {kind: each.protocol for kind, each in findings.items()} == {
            "unbounded": "tcp",
            "raises": "udp",
            "empty-datagram": "udp",
        }

    def test_an_answer_that_differs_each_time_is_named(self) -> None:
        numbers = count()

        class Numbered(Parrot):
            def connectionMade(self) -> None:
                self.transport.write(b"%d" % next(numbers))

        assert lacks(found(service(Numbered))["split"].what, "nothing sent byte by byte") == []

    def test_an_answer_with_the_time_in_it_may_differ_when_that_has_changed(self) -> None:
        times = iter([1] + [2] * 1000)

        class Timed(Parrot):
            def connectionMade(self) -> None:
                self.transport.write(b"%d" % next(times))

        check_service(service(Timed), allow=HABITS)

    def test_a_peer_that_reads_late_must_get_the_same(self) -> None:
        class Hasty(Parrot):
            def connectionMade(self) -> None:
                self.transport.write(b"welcome")

            def dataReceived(self, data: bytes) -> None:
                if self.transport.buffered:
                    self.transport.abortConnection()

        assert lacks(found(service(Hasty))["split"].what, "a client that reads late", "nothing", '"welcome"') == []

    def test_a_logged_failure_is_found(self, logged_errors: LoggedErrors) -> None:
        assert "ConnectionDone: Connection was closed cleanly" in found(service(Logging))["raises"].what
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

        assert set(found(service(Endless))) == {"endless"}
        check_service(service(Endless), allow=("tcp endless",))

    def test_a_protocol_that_does_not_end_is_ended_and_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(findings, "LONGEST", 0.2)

        class Spinning(Parrot):
            def dataReceived(self, data: bytes) -> None:
                while data:
                    pass

        class Filling(Parrot):
            def dataReceived(self, data: bytes) -> None:
                while data:
                    self.transport.write(bytes(1024 * 1024))

        async def waiting(stream: Stream) -> None:
            while await stream.read():
                while True:
                    await succeed(1)

        async def calling(stream: Stream) -> None:
            while await stream.read():
                while True:
                    await deferLater(stream.factory.reactor, 0)

        for protocol in (Spinning, Filling, waiting, calling):
            assert set(found(service(protocol))) - set(HABITS) == {"endless"}
        assert "test_testing_checks.py:" in found(service(Spinning))["endless"].what

    def test_a_coroutine_that_goes_on_at_the_end_is_found(self) -> None:
        async def run(stream: Stream) -> None:
            while True:
                await stream.write(await stream.read())

        assert lacks(found(service(run))["raises"].what, "leave the loop", f"{__file__}:") == []


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
        ("protocol", "facts"),
        [
            (Unprepared, ["a datagram of 0 bytes (nothing) from no name", "TypeError"]),
            (Growing, ["MessageLengthError"]),
            (First, ["a datagram of 0 bytes (nothing) from ('192.0.2.1', 54321)", "IndexError"]),
            (Unpacking, ["from /run/peer", "ValueError: too many values to unpack"]),
            (Starting, ["starting for IPv4Address", "OSError: no start"]),
        ],
    )
    def test_each_exception_is_named(self, protocol: Any, facts: Sequence[str]) -> None:
        finding = found(service(None, protocol), allow=HABITS)["raises"]
        assert lacks(finding.what, *facts) == []
        assert finding.protocol == "udp"
        assert finding.where.endswith(f" ({protocol.__name__})")

    def test_a_call_that_is_left_behind_is_named(self) -> None:
        assert "(print)" in found(service(udp=Straggling))["leftover"].what

    def test_a_sample_is_sent(self) -> None:
        seen = []

        class Seeing(DatagramParrot):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                seen.append(datagram)

        check_service(service(None, Seeing), samples={"udp": [b"sample"]})
        assert {b"sample", b"", bytes(65507)} <= set(seen)

    def test_an_answer_to_an_empty_datagram_is_found_and_an_empty_one_is_not(self) -> None:
        answering: Any = lambda data, peer: data or b"what?"  # noqa: E731
        assert lacks(found(service(None, answering))["empty-datagram"].what, "5 bytes") == []
        check_service(service(None, DatagramParrot))


class Sound(LineProtocol):
    """Has no findings."""

    def line_received(self, line: bytes) -> None:
        self.transport.write(line)


class Telling(DatagramProtocol):
    """Answers with so many datagrams of so many bytes."""

    sizes: Sequence[int] = (900,)

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        for size in self.sizes if data == b"tell" and addr else ():
            self.transport.write(bytes(size), addr)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sizes", "how", "drops"),
    [((900,), {}, 900), ((68,), {}, 0), ((69,), {}, 69), ((20, 20), {}, 0), ((20, 21), {}, 41),
     ((900,), {"verifies_peers": True}, 0), ((900,), {"limits": {"amplify": 30}}, 0),
     ((68,), {"limits": {"amplify": 1}}, 68)],
)  # fmt: skip
def test_answers_that_the_limit_amplify_drops_are_found(sizes: Sequence[int], how: Any, drops: int) -> None:
    telling = type("Telling", (Telling,), {"sizes": sizes})
    declared = service(None, telling, **how)
    if drops:
        finding = found(declared, samples={"udp": [b"tell"]})["amplification"]
        assert lacks(finding.what, "udp", " 4 bytes", f" {drops}:", "amplify") == []
    else:
        check_service(declared, samples={"udp": [b"tell"]})


class TestDrain:
    @pytest.mark.parametrize(
        ("result", "facts"),
        [
            (Deferred, ["drain() with no connections", "does not finish"]),
            (lambda: fail(OSError("stuck")), ["drain() with no connections", "OSError: stuck"]),
            (lambda: 5, ["int", "Deferred"]),
        ],
    )
    def test_each_fault_is_named(self, result: Callable[[], object], facts: Sequence[str]) -> None:
        class Draining(PlainCore):
            def drain(self) -> object:
                return result()

        finding = found(service(Sound, core=Draining))["drain"]
        assert lacks(finding.what, *facts) == []
        assert finding.where.endswith("Draining)")

    def test_must_end_with_live_connections_too(self) -> None:
        class Draining(PlainCore):
            connections = 0

            def drain(self) -> Deferred[None]:
                return Deferred() if self.connections else succeed(None)

        class Counting(Sound):
            def connectionMade(self) -> None:
                super().connectionMade()
                object.__setattr__(self.factory.core, "connections", 1)

        assert "with live connections" in found(service(Counting, core=Draining))["drain"].what

    def test_a_deferred_that_fires_later_is_right(self) -> None:
        class Draining(PlainCore):
            def drain(self) -> Deferred[None]:
                done: Deferred[None] = Deferred()
                self.context.reactor.callLater(3, done.callback, None)
                return done

        check_service(service(Sound, core=Draining))
