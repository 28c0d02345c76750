"""Downloads of `netsvc get` over TFTP: URLs, and the client's side of a transfer."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from netsvc.cli.errors import ClientError
from netsvc.cli.fetch import file_name, is_url
from netsvc.cli.tftp import Reception, RemoteName, is_tftp, parse_url
from netsvc.services.files.file import OpenFile, ReadAhead
from netsvc.services.files.tftp_packet import TFTPRequest, agree, parse_packet
from netsvc.services.files.tftp_transfer import TFTPTransfer
from tests.builders.files import pattern


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("tftp://host/f", RemoteName("host", 69, b"f")),
        ("TFTP://[::1]:6969/d/f;mode=octet", RemoteName("::1", 6969, b"d/f")),
        ("tftp://host/%E6%96%87;mode=OCTET#part", RemoteName("host", 69, "文".encode())),
        ("tftp://host//etc/f?a", RemoteName("host", 69, b"/etc/f?a")),
    ],
)
def test_urls(url: str, remote: RemoteName) -> None:
    assert is_url(url) and is_tftp(url)
    assert parse_url(url) == remote


@pytest.mark.parametrize(
    "url",
    [
        "tftp://",
        "tftp:///f",
        "tftp://host",
        "tftp://host/",
        "tftp://host:x/f",
        "tftp://user@host/f",
        "tftp://host/f;mode=netascii",
        "tftp://host/a%00b",
        f"tftp://host/{'x' * 300}",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        parse_url(url)


def test_the_name_of_the_file() -> None:
    assert file_name("tftp://host/d/f;mode=octet") == "f"
    for url in ("tftp://host/d/", "tftp://host/..", "tftp://host/d%2F.."):
        with pytest.raises(ValueError, match="-o FILE"):
            file_name(url)


class Received:
    """A reception, and what came of it."""

    def __init__(self) -> None:
        self.sizes: list[int | None] = []
        self.data = b""
        self.reception = Reception(b"f", self.sizes.append, self._write)

    def _write(self, data: bytes) -> None:
        self.data += data


def block(number: int, data: bytes) -> bytes:
    return b"\0\3" + number.to_bytes(2, "big") + data


def ack(number: int) -> bytes:
    return b"\0\4" + number.to_bytes(2, "big")


REQUEST = b"\0\1f\0octet\0blksize\x001428\0windowsize\x0016\0tsize\x000\0"


def test_a_window_is_acknowledged_at_its_end() -> None:
    one = Received()
    take = one.reception.received
    assert one.reception.last_packet == REQUEST
    assert take(b"\0\6blksize\x0010\0windowsize\x002\0tsize\x0025\0") == ack(0)
    assert [take(block(number, b"x" * 10)) for number in (1, 2)] == [None, ack(2)]
    assert take(block(3, b"y" * 5)) == ack(3)
    assert (one.reception.is_complete, one.data, one.sizes) == (True, b"x" * 20 + b"y" * 5, [25])
    assert take(block(3, b"y" * 5)) is None


def test_a_server_without_options_sends_at_once() -> None:
    one = Received()
    assert one.reception.received(block(1, b"x" * 512)) == ack(1)
    assert one.reception.received(block(2, b"")) == ack(2)
    assert (one.reception.is_complete, one.sizes) == (True, [None])


def test_a_server_that_refuses_options_is_asked_without_them() -> None:
    one = Received()
    plain = b"\0\1f\0octet\0"
    assert one.reception.received(b"\0\5\0\x08no\0") == one.reception.repeat() == plain
    with pytest.raises(ClientError, match="error 8: no"):
        one.reception.received(b"\0\5\0\x08no\0")


def test_a_gap_is_reported_once() -> None:
    one = Received()
    take = one.reception.received
    take(b"\0\6blksize\x0010\0windowsize\x004\0")
    full = b"x" * 10
    assert [take(block(number, full)) for number in (1, 3, 4)] == [None, ack(1), None]
    assert one.reception.repeat() == ack(1)
    # What comes again is not answered.
    assert [take(block(number, full)) for number in (1, 65535)] == [None, None]
    assert [take(block(number, full)) for number in (2, 3, 4, 5)] == [None, None, None, ack(5)]
    assert one.data == full * 5


def test_block_numbers_wrap() -> None:
    reception = Reception(b"f", lambda size: None, lambda data: None)
    reception.received(b"\0\6blksize\x008\0")
    full = b"x" * 8
    for number in range(1, 65540):
        assert reception.received(block(number & 0xFFFF, full)) == ack(number & 0xFFFF)


@pytest.mark.parametrize(
    "packet",
    [
        b"\0\5\0\1no such file\0",
        b"\0\5\0\0\x1b[31m\n",
        b"\0\6blksize\x001429\0",
        b"\0\6blksize\x007\0",
        b"\0\6windowsize\x0017\0",
        b"\0\6windowsize\0x\0",
        b"\0\6timeout\x001\0",
        block(1, b"x" * 513),
    ],
)
def test_what_cannot_go_on_is_one_line(packet: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        Received().reception.received(packet)
    assert str(caught.value).isprintable()


@given(st.lists(st.one_of(st.binary(max_size=20), st.builds(block, st.integers(0, 5), st.binary(max_size=600)))))
def test_any_packets_are_survived(packets: list[bytes]) -> None:
    one = Received()
    try:
        for packet in packets:
            answer = one.reception.received(packet)
            assert answer is None or answer == one.reception.last_packet
    except ClientError:
        pass


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 60_000), seed=st.integers(0, 2**32))
def test_a_lossy_network_loses_nothing(size: int, seed: int) -> None:
    chances, clock, content = Random(seed), Clock(), pattern(size)
    one = Received()
    descriptor = os.memfd_create("tftp")
    os.write(descriptor, content)
    request = parse_packet(one.reception.last_packet)
    assert isinstance(request, TFTPRequest)
    sent: list[bytes] = []
    results: list[str] = []

    def write(packets: bytes | memoryview, stride: int) -> int:
        sent.extend(bytes(packets[start : start + stride]) for start in range(0, len(packets), stride))
        return -(-len(packets) // stride)

    transfer = TFTPTransfer(
        OpenFile(descriptor, size, lambda file: None, lambda file: None),
        agree(request, size),
        clock,
        ReadAhead(clock),
        write=write,
        ended=results.append,
        verified=lambda: None,
    )
    transfer.start()
    for _ in range(3000):
        if one.reception.is_complete or results:
            break
        packets, sent[:] = sent[:], []
        received = [one.reception.received(packet) for packet in packets if chances.randrange(8)]
        answers = [answer for answer in received if answer is not None]
        for answer in answers or [one.reception.repeat()]:
            if answer[1] == 1:
                transfer.send_first()
            elif chances.randrange(8):
                transfer.acknowledged(int.from_bytes(answer[2:4], "big"))
        clock.advance(0.3)
    if one.reception.is_complete:
        assert (one.data, one.sizes) == (content, [size])
    else:
        # Bad luck ended it.
        assert results and content.startswith(one.data)
    transfer.end("test")
