"""PROXY headers as HAProxy's proxy-protocol.txt describes them; the sections named here are its own."""

from __future__ import annotations

import ipaddress
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.listen.proxy_header import LONGEST_V1, LONGEST_V2, Endpoint, Header, HeaderError, parse_header
from tests.builders.proxied import SIGNATURE, V6, v2, v2_inet

TCP4 = b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 443\r\n"
TCP6 = b"PROXY TCP6 2001:db8::9 2001:DB8:0:0:0:0:0:1 4000 443\r\n"


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V4 = v2_inet(("192.0.2.9", 4000), ("192.0.2.1", 443))

GOOD = [
    # Section 2.1.
    (TCP4, ("192.0.2.9", 4000), ("192.0.2.1", 443)),
    (TCP6, ("2001:db8::9", 4000), ("2001:db8::1", 443)),
    (b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", ("255.255.255.255", 65535), ("0.0.0.0", 0)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN \xff\0 anything\r at\n all\r\n", None, None),
    (b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", None, None),
    # An IPv4 address is one, whatever it came in.
    (b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:c000:201 4000 443\r\n", ("192.0.2.9", 4000), ("192.0.2.1", 443)),
    (v2_inet(("::ffff:192.0.2.9", 4000), ("::ffff:192.0.2.1", 443)), ("192.0.2.9", 4000), ("192.0.2.1", 443)),
    # Section 2.2.
    (V4, ("192.0.2.9", 4000), ("192.0.2.1", 443)),
    (V6, ("2001:db8::9", 4000), ("2001:db8::1", 443)),
    (v2_inet(("192.0.2.9", 1), ("192.0.2.1", 2), 0x12), ("192.0.2.9", 1), ("192.0.2.1", 2)),
    (v2_inet(("2001:db8::9", 1), ("2001:db8::1", 2), 0x22), ("2001:db8::9", 1), ("2001:db8::1", 2)),
    (v2(0, 0, b""), None, None),
    # Of LOCAL the family is ignored, and what stands behind is skipped.
    (v2(0, 0x11, bytes(12)), None, None),
    (v2(0, 0xFF, b"abc"), None, None),
    (v2(1, 0x00, b"any"), None, None),
    (v2(1, 0x10, b""), None, None),
    (v2(1, 0x01, b""), None, None),
    (v2(1, 0x31, b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0")), None, None),
    (v2(1, 0x32, bytes(216)), None, None),
    # What is behind the addresses belongs to the header, well-formed or not.
    (
        v2_inet(("192.0.2.9", 1), ("192.0.2.1", 2), behind=tlv(2, b"example.org") + tlv(0x20, bytes(99))),
        ("192.0.2.9", 1),
        ("192.0.2.1", 2),
    ),
    (v2_inet(("192.0.2.9", 1), ("192.0.2.1", 2), behind=b"\x02\xff\xff."), ("192.0.2.9", 1), ("192.0.2.1", 2)),
    (v2(1, 0x11, V4[16:].ljust(LONGEST_V2 - 16, b"x")), ("192.0.2.9", 4000), ("192.0.2.1", 443)),
]

BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"\0",
    b"\r\n\r\n\r",
    b"PROXIES",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"proxy TCP4 192.0.2.9 192.0.2.1 4000 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UDP4 192.0.2.9 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 443 \r\n",
    b"PROXY TCP4  192.0.2.9 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 443 7\r\n",
    b"PROXY TCP4 192.0.2.09 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4 192.0.2 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4 \xff\xfe 192.0.2.1 4000 443\r\n",
    b"PROXY TCP4 2001:db8::9 2001:db8::1 4000 443\r\n",
    b"PROXY TCP6 192.0.2.9 192.0.2.1 4000 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 fe80::2 4000 443\r\n",
    b"PROXY TCP6 2001:db8::9::1 2001:db8::1 4000 443\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 04000 443\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 65536 443\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 -1\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 \xd9\xa1\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 " + b"4" * 40 + b" 443\r\n",
    # A single LF or CR ends no line (section 2.1), so this has none.
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 443\n".ljust(LONGEST_V1, b"."),
    b"PROXY UNKNOWN".ljust(LONGEST_V1 - 1, b".") + b"\r\n",
    # Section 2.2: version, command, family, protocol.
    SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x2f",
    v2(1, 0x41, bytes(300)),
    v2(1, 0x13, bytes(300)),
    v2(1, 0x03, b""),
    v2(1, 0x40, b""),
    # Its length has no room for the addresses.
    v2(1, 0x11, bytes(11)),
    v2(1, 0x21, bytes(35)),
    v2(1, 0x31, bytes(215)),
    v2(1, 0x11, b"", LONGEST_V2 - 15),
    v2(0, 0, b"", 0xFFFF),
]


@pytest.mark.parametrize(("data", "source", "destination"), GOOD)
def test_a_header_is_read_whole_byte_by_byte_and_with_what_follows_it(
    data: bytes, source: Endpoint | None, destination: Endpoint | None
) -> None:
    expected = Header(len(data), source, destination)
    assert parse_header(data) == expected
    assert parse_header(data + b"PROXY \r\nhello" + bytes(65536)) == expected
    assert all(parse_header(data[:size]) is None for size in range(len(data)))


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_header_is_refused_at_the_latest_when_it_is_complete(data: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(data)
    with pytest.raises(HeaderError):
        parse_header(data + b"\r\n" + bytes(65536))


@pytest.mark.parametrize(
    "data", [b"X", b"PR0", b"\r\n\r\n\r", b"\r\n\r\n\0\r\nQUIT\r", SIGNATURE + b"\x10", v2(1, 0x11, b"", 11)]
)
def test_a_connection_is_aborted_as_soon_as_possible(data: bytes) -> None:
    assert parse_header(data[:-1]) is None
    with pytest.raises(HeaderError):
        parse_header(data)


def test_a_line_of_107_bytes_is_taken_and_no_longer_one() -> None:
    longest = b"PROXY UNKNOWN ".ljust(LONGEST_V1 - 2, b"x") + b"\r\n"
    assert len(longest) == 107
    assert parse_header(longest) == Header(107)
    assert parse_header(longest[:-1]) is None
    with pytest.raises(HeaderError, match=r"\b107 bytes"):
        parse_header(longest[:-2] + b"x\r\n")


hosts4 = st.ip_addresses(v=4).map(str)
hosts6 = st.ip_addresses(v=6).map(str).filter(lambda host: ipaddress.IPv6Address(host).ipv4_mapped is None)
ports = st.integers(0, 65535)
pairs = st.one_of(
    st.tuples(st.tuples(hosts4, ports), st.tuples(hosts4, ports)),
    st.tuples(st.tuples(hosts6, ports), st.tuples(hosts6, ports)),
)


def v1_inet(source: Endpoint, destination: Endpoint) -> bytes:
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


@given(
    pairs,
    st.one_of(st.none(), st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=5)),
    st.binary(max_size=100),
    st.data(),
)
def test_any_header_comes_back_from_any_segments(
    pair: tuple[Endpoint, Endpoint], tlvs: list[tuple[int, bytes]] | None, behind: bytes, draw: st.DataObject
) -> None:
    header = v1_inet(*pair) if tlvs is None else v2_inet(*pair, behind=b"".join(tlv(*each) for each in tlvs))
    rest, received, found = header + behind, b"", None
    while found is None:
        size = draw.draw(st.integers(1, len(rest)))
        received, rest = received + rest[:size], rest[size:]
        found = parse_header(received)
    assert found == Header(len(header), *pair, encrypted=found.encrypted)
    assert received[found.size :] + rest == behind


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=120).map(lambda data: b"PROXY " + data),
        st.binary(max_size=80).map(lambda data: b"PROXY TCP4 " + data + b"\r\n"),
        st.lists(st.sampled_from([b"1.2.3.4", b"::1", b"80", b"TCP6", b"%", b"\r\n"])).map(
            lambda words: b"PROXY " + b" ".join(words)
        ),
        st.binary(max_size=300).map(SIGNATURE.__add__),
        st.tuples(st.sampled_from([0x20, 0x21]), st.integers(0, 255), st.binary(max_size=250)).map(
            lambda parts: SIGNATURE + bytes(parts[:2]) + bytes([0, len(parts[2])]) + parts[2]
        ),
    )
)
def test_any_bytes_give_a_header_or_ask_for_more_or_are_refused(data: bytes) -> None:
    decided: Header | HeaderError | None = None
    for size in range(len(data) + 1):
        try:
            found: Header | HeaderError | None = parse_header(data[:size])
        except HeaderError as error:
            found = error
        if decided is None:
            decided = found
        elif isinstance(decided, HeaderError):
            # What is refused stays so.
            assert isinstance(found, HeaderError)
        else:
            assert found == decided
    if isinstance(decided, Header):
        assert 8 <= decided.size <= len(data)
        for host, port in filter(None, (decided.source, decided.destination)):
            assert str(ipaddress.ip_address(host)) == host
            assert 0 <= port <= 65535


@given(st.sampled_from([b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(min_size=1, max_size=50))
def test_a_header_of_any_kind_is_decided_within_its_limit(beginning: bytes, data: bytes) -> None:
    with suppress(HeaderError):
        assert parse_header((beginning + data * LONGEST_V2)[:LONGEST_V2]) is not None
