"""A transfer over TFTP, driven by packets and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.services.files.file import OpenFile, ReadAhead
from netsvc.services.files.tftp_packet import Ack, Failed, Other, Terms, TFTPRequest, agree
from netsvc.services.files.tftp_transfer import HALF_OPEN, REFUSED_PAUSE, REFUSED_TRIES, TRIES, TFTPTransfer
from tests.builders.files import ColdFile, ThreadedClock, pattern


class Run:
    """A transfer, and what it has done."""

    def __init__(
        self,
        content: bytes,
        terms: Terms | None = None,
        *,
        netascii: bool = False,
        clock: Clock | None = None,
        kind: type[OpenFile] = OpenFile,
    ) -> None:
        self.clock = clock or Clock()
        self.written: list[bytes] = []
        self.results: list[str] = []
        self.verified = self.moves = 0
        self.room = 1 << 30
        self.descriptor = os.memfd_create("tftp")
        os.write(self.descriptor, content)
        self.file = kind(self.descriptor, len(content), self._moved, lambda file: None)
        self.transfer = TFTPTransfer(
            self.file,
            terms or Terms(),
            self.clock,
            ReadAhead(self.clock),
            write=self._write,
            ended=self.results.append,
            verified=self._verified,
            netascii=netascii,
        )
        self.transfer.start()

    def _moved(self, file: OpenFile) -> None:
        self.moves += 1

    def _verified(self) -> None:
        self.verified += 1

    def _write(self, packets: bytes | memoryview, size: int) -> int:
        pieces = [bytes(packets[start : start + size]) for start in range(0, len(packets), size)][: self.room]
        self.room -= len(pieces)
        self.written += pieces
        return len(pieces)

    def take(self) -> list[bytes]:
        written, self.written = self.written, []
        return written

    def numbers(self) -> list[int]:
        return [int.from_bytes(packet[2:4], "big") for packet in self.take()]

    def ack(self, block: int) -> None:
        self.transfer.received(Ack(block & 0xFFFF))

    def fetch(self) -> bytes:
        """Be a client that loses nothing."""
        content, expected = bytearray(), 1
        while not self.results:
            packets = self.take()
            if packets and packets[0][1] == 6:
                self.ack(0)
                continue
            for packet in packets:
                assert packet[:4] == bytes((0, 3)) + (expected & 0xFFFF).to_bytes(2, "big")
                content += packet[4:]
                expected += 1
            self.ack(expected - 1)
        assert self.results == ["sent"]
        return bytes(content)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    names = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    assert not [name for name in names if os.path.lexists(name) and "memfd:tftp" in os.readlink(name)]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 3000])
@pytest.mark.parametrize("window", [1, 2, 16])
def test_a_file_arrives_whole(size: int, window: int) -> None:
    run = Run(pattern(size), Terms(window=window))
    assert run.fetch() == pattern(size)
    assert run.file.offset == size
    assert run.clock.getDelayedCalls() == []


def test_block_numbers_wrap() -> None:
    size = 8 * (2 * 65536 + 5)
    assert Run(pattern(size), Terms(8, 255)).fetch() == pattern(size)


def test_a_multiple_of_the_block_size_ends_with_an_empty_block() -> None:
    run = Run(b"x" * 16, Terms(8, 4))
    run.ack(1)
    assert run.take() == [b"\0\3\0\1" + b"x" * 8, b"\0\3\0\2" + b"x" * 8, b"\0\3\0\3"]
    run.ack(2)
    assert run.take() == [b"\0\3\0\3"]
    run.ack(3)
    assert run.results == ["sent"]


def test_options_are_acknowledged_before_the_first_block() -> None:
    run = Run(b"content", agree(TFTPRequest(b"f", b"octet", ((b"tsize", b"0"), (b"blksize", b"9"))), 7))
    assert run.take() == [b"\0\6tsize\x007\0blksize\x009\0"]
    run.ack(1)
    assert (run.take(), run.verified) == ([], 0)
    run.ack(0)
    assert (run.take(), run.verified) == ([b"\0\3\0\1content"], 1)
    run.ack(0)
    assert run.take() == []
    run.ack(1)
    assert run.results == ["sent"]


def test_nothing_is_repeated_before_something_is_acknowledged() -> None:
    run = Run(pattern(2000), Terms(window=8))
    assert run.numbers() == [1]
    run.clock.advance(HALF_OPEN - 0.1)
    assert run.take() == []
    run.transfer.send_first()
    assert run.numbers() == [1]
    run.clock.advance(0.1)
    assert (run.take(), run.results, run.verified) == ([], ["client did not answer"], 0)
    assert run.clock.getDelayedCalls() == []
    run.transfer.send_first()
    run.ack(1)
    assert run.take() == []


def test_an_acknowledgement_of_nothing_new_is_not_answered() -> None:
    run = Run(pattern(5000))
    run.ack(1)
    run.ack(2)
    assert run.numbers() == [1, 2, 3]
    for block in (2, 1, 0, 4, 5, 65535, 2):
        run.ack(block)
    assert run.take() == []
    run.transfer.send_first()
    assert run.take() == []
    run.ack(3)
    assert run.numbers() == [4]
    run.transfer.end("test")


def test_what_follows_the_acknowledged_block_of_a_window_is_sent_next() -> None:
    run = Run(pattern(20 * 8), Terms(8, 4))
    run.ack(1)
    assert run.numbers() == [1, 2, 3, 4, 5]
    run.ack(3)
    assert run.numbers() == [4, 5, 6, 7]
    # It is late, and was sent before.
    run.ack(2)
    assert run.take() == []
    run.ack(7)
    assert run.numbers() == [8, 9, 10, 11]
    run.transfer.end("test")


def test_retransmissions_back_off_and_end() -> None:
    run = Run(pattern(2000), Terms(window=2))
    run.ack(1)
    assert run.numbers() == [1, 2, 3]
    sent: list[float] = []
    while not run.results:
        run.clock.advance(0.5)
        if numbers := run.numbers():
            assert numbers == [2, 3]
            sent.append(run.clock.seconds())
    assert sent == [1, 3, 7, 15, 23, 31]
    assert len(sent) == TRIES
    assert run.clock.seconds() == 39
    assert run.results == ["client does not answer"]


def test_progress_ends_the_back_off() -> None:
    run = Run(pattern(2000))
    run.ack(1)
    run.clock.advance(1)
    run.clock.advance(2)
    assert run.numbers() == [1, 2, 2, 2]
    run.ack(2)
    run.clock.advance(1)
    assert run.numbers() == [3, 3]
    run.transfer.end("test")


def test_the_client_chooses_the_timeout() -> None:
    run = Run(pattern(2000), Terms(timeout=60))
    run.ack(1)
    run.clock.advance(59.9)
    assert run.numbers() == [1, 2]
    run.clock.advance(0.1)
    run.clock.advance(60)
    assert run.numbers() == [2, 2]
    run.transfer.end("test")


@pytest.mark.parametrize(
    ("packet", "answer", "result"),
    [
        (Failed(3, b"disk full"), [], "ended by the client"),
        (Other(3), [b"\0\5\0\4unexpected packet\0"], "unexpected packet"),
    ],
)
def test_other_packets_end_it(packet: Failed | Other, answer: list[bytes], result: str) -> None:
    run = Run(pattern(2000))
    run.ack(1)
    run.take()
    run.transfer.received(packet)
    assert (run.take(), run.results) == (answer, [result])
    run.transfer.received(packet)
    run.ack(2)
    run.clock.advance(100)
    assert (run.take(), run.results) == ([], [result])


def test_a_request_during_the_transfer_is_ignored() -> None:
    run = Run(pattern(2000))
    run.transfer.received(TFTPRequest(b"f", b"octet"))
    assert (run.numbers(), run.results) == ([1], [])
    run.transfer.end("test")


def test_a_client_may_refuse_the_options() -> None:
    run = Run(b"x", agree(TFTPRequest(b"f", b"octet", ((b"tsize", b"0"),)), 1))
    run.transfer.received(Failed(8, b""))
    assert run.results == ["refused by the client"]


def test_a_file_that_shrinks_is_an_error() -> None:
    run = Run(pattern(2000))
    os.ftruncate(run.descriptor, 600)
    run.ack(1)
    assert run.take()[1:] == [b"\0\5\0\0file shrank\0"]
    assert run.results == ["file shrank"]


def test_a_file_that_grows_is_sent_as_it_was() -> None:
    run = Run(pattern(513))
    os.pwrite(run.descriptor, b"more", 513)
    assert run.fetch() == pattern(513)


def test_what_is_not_taken_is_sent_a_moment_later() -> None:
    run = Run(pattern(3000), Terms(window=3))
    run.room = 2
    run.ack(1)
    assert run.numbers() == [1, 2, 3]
    run.room = 1
    run.clock.advance(REFUSED_PAUSE)
    assert run.numbers() == [4]
    run.room = 0
    run.ack(4)
    for _ in range(REFUSED_TRIES - 1):
        run.clock.advance(REFUSED_PAUSE)
    assert (run.take(), run.results) == ([], [])
    run.clock.advance(REFUSED_PAUSE)
    assert run.results == ["could not be sent"]


def test_what_is_on_the_disk_is_read_by_a_thread() -> None:
    clock = ThreadedClock()
    run = Run(pattern(2000), Terms(window=2), clock=clock, kind=ColdFile)
    assert run.take() == []
    run.transfer.send_first()
    assert len(clock.jobs) == 1
    clock.work()
    assert run.numbers() == [1]
    run.ack(1)
    assert run.numbers() == [2, 3]
    assert clock.jobs == []
    run.ack(3)
    run.ack(4)
    assert run.results == ["sent"]


def test_time_does_not_pass_while_the_disk_is_read() -> None:
    clock = ThreadedClock()
    run = Run(pattern(2000), agree(TFTPRequest(b"f", b"octet", ((b"tsize", b"0"),)), 2000), clock=clock, kind=ColdFile)
    run.ack(0)
    clock.advance(1000)
    assert run.results == []
    clock.work()
    assert run.take()[1:] == [b"\0\3\0\1" + pattern(512)]
    run.transfer.end("test")


def test_a_transfer_that_ends_while_the_disk_is_read_sends_nothing() -> None:
    clock = ThreadedClock()
    run = Run(pattern(2000), clock=clock, kind=ColdFile)
    run.transfer._ahead.forget(run.file)
    run.transfer.end("test")
    clock.work()
    assert run.take() == []


def netascii(content: bytes) -> bytes:
    return b"".join({13: b"\r\0", 10: b"\r\n"}.get(byte, bytes((byte,))) for byte in content)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\r", b"\r\n", b"1234567\n", b"1234567\r8", b"123456\r\n", b"\r" * 9, b"\n" * 8, b"12345678\n"],
)
@pytest.mark.parametrize("window", [1, 3])
def test_netascii(content: bytes, window: int) -> None:
    assert Run(content, Terms(8, window), netascii=True).fetch() == netascii(content)


def _lossy(content: bytes, terms: Terms, is_text: bool, luck: Callable[[], int]) -> tuple[bytes, str]:
    """Be a client over a network that loses, doubles and delays packets."""
    run = Run(content, terms, netascii=is_text)
    received, expected, pending = b"", 1, list[int]()
    for _ in range(3000):
        if run.results:
            break
        for packet in run.take():
            kind = luck()
            if kind == 0:
                continue
            number = int.from_bytes(packet[2:4], "big")
            if number == expected & 0xFFFF:
                received += packet[4:]
                expected += 1
            pending += [expected - 1] * (2 if kind == 1 else 1)
        if luck() != 0:
            for block in pending:
                if luck() != 0:
                    run.ack(block)
            pending = []
        run.clock.advance(0.6)
    return received, run.results[0]


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"\r", b"\n", b"x", b"some text"]), max_size=60).map(b"".join),
    block=st.integers(8, 20),
    window=st.integers(1, 5),
    is_text=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_lossy_network_loses_nothing(content: bytes, block: int, window: int, is_text: bool, seed: int) -> None:
    chances = Random(seed)
    received, result = _lossy(content, Terms(block, window), is_text, lambda: chances.randrange(8))
    wanted = netascii(content) if is_text else content
    if result == "sent":
        assert received == wanted
    else:
        # Bad luck ended it.
        assert wanted.startswith(received)


@given(st.lists(st.one_of(st.integers(0, 65535).map(Ack), st.just(Other(3)), st.just(Failed(0, b""))), max_size=30))
def test_any_packets_are_survived(packets: list[Ack | Other | Failed]) -> None:
    run = Run(pattern(100), Terms(8, 3))
    for packet in packets:
        run.transfer.received(packet)
    run.transfer.end("test")
    assert len(run.results) == 1
    assert run.clock.getDelayedCalls() == []
