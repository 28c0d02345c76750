"""The packets of TFTP, and the options of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.services.files.tftp_packet import (
    MOST_BYTES,
    Ack,
    ErrorCode,
    Failed,
    Other,
    PacketError,
    Terms,
    TFTPRequest,
    agree,
    data_packets,
    error_packet,
    options_packet,
    parse_packet,
)

REQUESTS = [
    (b"\0\1f\0octet\0", TFTPRequest(b"f", b"octet")),
    (b"\0\1f\0OcTeT", TFTPRequest(b"f", b"octet")),
    (b"\0\2d/f\0mail\0", TFTPRequest(b"d/f", b"mail", writes=True)),
    (b"\0\1f\0octet\0blksize\x001428\0", TFTPRequest(b"f", b"octet", ((b"blksize", b"1428"),))),
    (b"\0\1f\0octet\0a\0b\0c", TFTPRequest(b"f", b"octet", ((b"a", b"b"),))),
    (b"\0\1f\0octet\0\0\0\0", TFTPRequest(b"f", b"octet", ((b"", b""),))),
    (b"\0\1f\0\0", TFTPRequest(b"f", b"")),
    (b"\0\1\xce\xc4\0octet\0", TFTPRequest(b"\xce\xc4", b"octet")),
]


@pytest.mark.parametrize(("data", "request_"), REQUESTS)
def test_requests(data: bytes, request_: TFTPRequest) -> None:
    assert parse_packet(data) == request_


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        (b"", None),
        (b"\0", None),
        (b"\0\4", None),
        (b"\0\4\0", None),
        (b"\0\4\1\2", Ack(258)),
        (b"\0\4\1\2more", Ack(258)),
        (b"\0\5\0\1gone\0", Failed(1, b"gone")),
        (b"\0\5", Failed(0, b"")),
        (b"\0\3\0\1data", Other(3)),
        (b"\0\6a\x001\0", Other(6)),
        (b"\0\0", Other(0)),
        (b"\xff\xff", Other(65535)),
    ],
)
def test_other_packets(data: bytes, packet: object) -> None:
    assert parse_packet(data) == packet


@pytest.mark.parametrize("data", [b"\0\1", b"\0\1f", b"\0\1\0octet\0", b"\0\1f\0", b"\0\2"])
def test_a_malformed_request_is_an_error(data: bytes) -> None:
    with pytest.raises(PacketError):
        parse_packet(data)


@given(st.binary(max_size=600), st.sampled_from([b"", b"\0\1", b"\0\2", b"\0\3", b"\0\4", b"\0\5", b"\0\6"]))
def test_any_bytes_are_a_packet_or_the_declared_error(data: bytes, prefix: bytes) -> None:
    try:
        packet = parse_packet(prefix + data)
    except PacketError:
        return
    if isinstance(packet, TFTPRequest):
        terms = agree(packet, 5)
        assert 8 <= terms.block_size <= 65464
        assert 1 <= terms.window <= 256
        assert terms.block_size * (terms.window - 1) <= MOST_BYTES


def _agree(*options: tuple[str, str], size: int | None = 1000) -> Terms:
    written = tuple((name.encode(), value.encode()) for name, value in options)
    return agree(TFTPRequest(b"f", b"octet", written), size)


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("blksize", "8", 8),
        ("blksize", "7", None),
        ("blksize", "65464", 65464),
        ("blksize", "65465", 65464),
        ("blksize", "99999999999999999999", 65464),
        ("blksize", "-1", None),
        ("blksize", "1e3", None),
        ("blksize", "", None),
        ("blksize", " 512", None),
        ("tsize", "0", 1000),
        ("tsize", "7", 1000),
        ("tsize", "x", None),
        ("timeout", "0", None),
        ("timeout", "1", 1),
        ("timeout", "255", 255),
        ("timeout", "256", None),
        ("windowsize", "0", None),
        ("windowsize", "1", 1),
        ("windowsize", "16", 16),
        ("windowsize", "65535", 256),
        ("windowsize", "65536", None),
        ("BLKSIZE", "1024", 1024),
        ("multicast", "", None),
        ("rollover", "0", None),
    ],
)
def test_options(option: str, value: str, accepted: int | None) -> None:
    expected = () if accepted is None else ((option.encode(), accepted),)
    assert _agree((option, value)).accepted == expected


def test_options_together() -> None:
    terms = _agree(("windowsize", "64"), ("blksize", "65464"), ("unknown", "1"), ("timeout", "3"), ("tsize", "0"))
    assert terms == Terms(65464, 16, 3, ((b"windowsize", 16), (b"blksize", 65464), (b"timeout", 3), (b"tsize", 1000)))


def test_the_first_of_two_options_of_a_name_counts() -> None:
    assert _agree(("blksize", "1024"), ("BlkSize", "512")).accepted == ((b"blksize", 1024),)


def test_an_unknown_size_is_not_offered() -> None:
    assert _agree(("tsize", "0"), size=None) == Terms()


def test_packets_are_written() -> None:
    assert data_packets(65535, [b"a", b"b"]) == b"\0\3\xff\xffa" + b"\0\3\0\0b"
    assert options_packet([(b"blksize", 8), (b"tsize", 0)]) == b"\0\6blksize\x008\0tsize\x000\0"
    assert error_packet(ErrorCode.ACCESS, "no") == b"\0\5\0\2no\0"
    assert len(error_packet(ErrorCode.UNDEFINED, "x" * 1000)) == 205
