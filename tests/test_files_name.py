"""Reading a file name from whatever bytes come."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.services.files.name import NameReader, whole_name
from netsvc.services.files.source import RefusedError


def read(pieces: list[bytes], limit: int = 8) -> tuple[str, bytes]:
    """Feed `pieces` until one completes the name or is refused."""
    reader = NameReader(limit)
    for piece in pieces:
        try:
            if reader.feed(piece):
                return "name", reader.name
        except RefusedError as refusal:
            return str(refusal), b""
    return "waiting", reader.name


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("trailing", [b"", b"more\r\nof it"])
def test_a_name_ends_at_lf_or_crlf_and_what_follows_is_dropped(end: bytes, trailing: bytes) -> None:
    data = b"a/b.txt" + end + trailing
    assert read([data]) == ("name", b"a/b.txt")
    assert read([data[place : place + 1] for place in range(len(data))]) == ("name", b"a/b.txt")


def test_a_name_at_the_limit_is_read_and_one_byte_more_is_refused_before_its_end_comes() -> None:
    for end in (b"\n", b"\r\n"):
        assert read([b"12345678" + end]) == ("name", b"12345678")
        assert read([b"12345678", end]) == ("name", b"12345678")
        assert read([b"123456789" + end]) == ("name too long", b"")
    assert read([b"123456789"]) == ("name too long", b"")


def test_only_the_last_cr_belongs_to_the_line_end() -> None:
    assert read([b"a\rb\r\r\n"]) == ("name", b"a\rb\r")
    assert read([b"12345678\r\r\n"]) == ("name too long", b"")
    assert read([b"12345678\rx"]) == ("name too long", b"")


def test_a_name_that_comes_whole_needs_no_reader() -> None:
    assert whole_name(b"a/b.txt\n", 8) == whole_name(b"a/b.txt\r\nmore", 8) == b"a/b.txt"
    assert whole_name(b"\n", 8) == b""
    assert whole_name(b"12345678\n", 8) == b"12345678"
    assert whole_name(b"123456789\n", 8) is None
    assert whole_name(b"a/b.txt", 8) is None


def test_a_name_that_never_ends_is_kept_no_longer_than_its_limit() -> None:
    reader = NameReader(8)
    with pytest.raises(RefusedError):
        reader.feed(b"x" * 1_000_000)
    assert len(reader.name) == 10


@given(st.lists(st.binary(max_size=8)), st.integers(1, 12))
@example([b"12345678", b"\r", b"\n"], 8)
@example([b"12345678", b"\r", b"\r\n"], 8)
def test_any_bytes_in_any_pieces_are_a_name_a_refusal_or_waiting(pieces: list[bytes], limit: int) -> None:
    whole = b"".join(pieces)
    line, ended, _ = whole.partition(b"\n")
    name = line.removesuffix(b"\r")
    expected = ("name too long", b"") if len(name) > limit else ("name" if ended else "waiting", name)
    assert read(pieces, limit) == expected
    assert whole_name(whole, limit) in (None, expected[1] if expected[0] == "name" else None)
    assert read([whole], limit) == expected
    assert read([whole[place : place + 1] for place in range(len(whole))], limit) == expected
