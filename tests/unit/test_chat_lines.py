from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.lines import ALIVE, OVERLONG, LineSplitter, Overlong, TelnetFilter

Line = bytes | Overlong


def taken(splitter: LineSplitter) -> list[Line]:
    lines: list[Line] = []
    while (line := splitter.take()) is not None:
        lines.append(line)
    return lines


def split(pieces: list[bytes], limit: int = 8, telnet: bool = True) -> list[Line]:
    """All lines of the pieces, fed one after the other, and an end of input."""
    splitter = LineSplitter(limit, telnet=telnet)
    lines: list[Line] = []
    for piece in pieces:
        splitter.feed(piece)
        lines += taken(splitter)
    splitter.finish()
    return lines + taken(splitter)


def singly(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\r\nc", [b"a", b"b", b"c"]),
        # RFC 854: CR NUL is a return without a line feed.
        (b"a\r\0b\r\n", [b"a", b"b"]),
        (b"\n\r\n  \n\t\r\n\r\0\r", []),
        (b"hello\rworld\rend\n", [b"hello", b"world", b"end"]),
        # The zero that ends a text in C, and the padding of a fixed buffer.
        (b"a\0b\0\0\r\0", [b"a", b"b"]),
        (b"last\n" + bytes(8187) + b"more\n", [b"last", b"more"]),
        (b" a \n", [b" a "]),
        (b"12345678\n12345678\r\n12345678\r\0x\n", [b"12345678"] * 3 + [b"x"]),
        (b"123456789\nx\n", [OVERLONG, b"x"]),
        (b"12345678\r9\nx\n", [b"12345678", b"9", b"x"]),
        (b"123456789\r\nx\n", [OVERLONG, b"x"]),
        (b"1234567890123\r\nx\n", [OVERLONG, b"x"]),
        (b"12345678", [b"12345678"]),
        (b"12345678\r", [b"12345678"]),
        (b"123456789", [OVERLONG]),
        (b"1234567890", [OVERLONG]),
        (b"x" * 100, [OVERLONG]),
        ("中\n文".encode("gbk"), ["中".encode("gbk"), "文".encode("gbk")]),
        (b"\xff\xf1\xff\xfd\x06a\n", [b"a"]),
        # Erase Character, Erase Line and Interrupt Process are the keys that do that.
        (b"ab\xff\xf7c\n", [b"ab\x7fc"]),
        (b"ab\xff\xf8c\xff\xf4d\n", [b"ab\x15c\x15d"]),
        ("\ufeff学\r\nok\n\0".encode("utf-16-le"), ["学".encode(), b"ok"]),
        ("\ufeff学\r\nok\n\0".encode("utf-16-be"), ["学".encode(), b"ok"]),
    ],
)
def test_lines_are_the_same_whole_and_byte_by_byte(data: bytes, lines: list[Line]) -> None:
    assert split([data]) == lines
    assert split(singly(data)) == lines


def test_an_overlong_line_is_told_before_it_ends_and_only_once() -> None:
    splitter = LineSplitter(8)
    splitter.feed(b"0123456789")
    assert taken(splitter) == [OVERLONG]
    for _ in range(100):
        splitter.feed(b"x" * 1000)
        assert taken(splitter) == []
        assert splitter._buffer == b""
    splitter.feed(b"\nok\n")
    assert taken(splitter) == [b"ok"]


def test_the_user_may_stop_between_two_lines_and_be_fed_meanwhile() -> None:
    splitter = LineSplitter(8)
    splitter.feed(b"a\nb\nc")
    assert splitter.take() == b"a"
    splitter.feed(b"c\nd")
    splitter.finish()
    assert taken(splitter) == [b"b", b"cc", b"d"]


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"a", None),
        (b"a\0", None),
        (b"a\n", "\n"),
        (b"\n", "\n"),
        (b"a\r\n", "\r\n"),
        (b"a\r", "\r\n"),
        (b"a\nb\r\nc\n", "\r\n"),
        (b"\xff\xfb\x18a\n", "\r\n"),
    ],
)
def test_the_line_end_of_the_client_is_noticed(data: bytes, end: str | None) -> None:
    for pieces in ([data], singly(data)):
        splitter = LineSplitter(8)
        for piece in pieces:
            splitter.feed(piece)
        assert splitter.line_end == end
        assert splitter.ended is (b"\n" in data or b"\r" in data or b"\0" in data)


@pytest.mark.parametrize(
    ("pieces", "typed"),
    [
        (["h", "e", "l"], True),
        (["é", "学", "👍", "\x7f", "\x1b[D"], True),
        (["hello"], False),
        (["h", "ello"], False),
        (["hello", "x"], False),
    ],
)
def test_whether_keys_come_one_by_one_is_noticed_until_a_line_has_ended(pieces: list[str], typed: bool) -> None:
    splitter = LineSplitter(80)
    for piece in pieces:
        splitter.feed(piece.encode())
        assert splitter.take() is None and splitter.unended
    assert splitter.typed is typed
    splitter.end_line()
    assert splitter.take() == "".join(pieces).encode() and splitter.take() is None
    assert not splitter.unended and not splitter.ended


def test_the_lines_that_wait_are_counted_without_the_blank_ones() -> None:
    splitter = LineSplitter(80)
    splitter.feed(b"a\r\n\r\nb\0" + bytes(8192) + b"c\rd")
    assert splitter.waiting() == 3


def test_without_telnet_255_is_a_letter() -> None:
    assert split(["моя\n".encode("cp1251")], telnet=False) == ["моя".encode("cp1251")]


_PIECES = [
    b"a",
    b"12345",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\xff",
    b"\xfe",
    b"\xfa",
    b"\xf0",
    b"\xf6",
    b"\xf7",
    b"\xfd",
    b"\xfb",
    b"\xe4",
]
_BYTES = st.lists(st.sampled_from(_PIECES), max_size=40).map(b"".join)


@settings(deadline=None)
@given(data=st.one_of(_BYTES, st.binary()), cuts=st.lists(st.integers(0, 60)))
def test_any_split_of_the_same_bytes_gives_the_same_lines_in_bounded_memory(data: bytes, cuts: list[int]) -> None:
    pieces = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
    lines = split(pieces)
    assert lines == split([data]) == split(singly(data))
    assert all(line is OVERLONG or (len(line) <= 8 and b"\n" not in line and line.strip()) for line in lines)
    splitter = LineSplitter(8)
    for piece in pieces:
        splitter.feed(piece)
        taken(splitter)
        assert len(splitter._buffer) <= 8


def filtered(pieces: list[bytes]) -> tuple[bytes, bytes]:
    telnet = TelnetFilter()
    results = [telnet.feed(piece) for piece in pieces]
    return b"".join(kept for kept, _ in results), b"".join(answers for _, answers in results)


@pytest.mark.parametrize(
    ("data", "kept", "answers"),
    [
        # RFC 854: Interrupt Process; the option that is asked for next is timing-mark, as clients do for Ctrl-C.
        (b"a\xff\xf4\xff\xfd\x06\xff\xf2c", b"a\x15c", b"\xff\xfc\x06"),
        # Are You There.
        (b"a\xff\xf6b", b"ab", ALIVE),
        # WILL is answered with DONT, DO with WONT; DONT and WONT are not answered.
        (b"\xff\xfb\x18\xff\xfd\x01\xff\xfe\x01\xff\xfc\x18x", b"x", b"\xff\xfe\x18\xff\xfc\x01"),
        # An option's code may be any byte, 255 and line feed included.
        (b"\xff\xfd\xffa\xff\xfb\nb", b"ab", b"\xff\xfc\xff\xff\xfe\n"),
        # A subnegotiation ends at IAC SE only.
        (b"a\xff\xfa\x18\x00xterm\n\xff\xff\xf0\xff\xf1\xff\xf0b", b"ab", b""),
        (b"a\xff\xfa" + b"x" * 1000, b"a", b""),
        (b"a\xff\xffb\xff", b"ab", b""),
        ("中文".encode(), "中文".encode(), b""),
    ],
)
def test_telnet_sequences_are_taken_out_and_options_refused(data: bytes, kept: bytes, answers: bytes) -> None:
    assert filtered([data]) == (kept, answers)
    assert filtered(singly(data)) == (kept, answers)


@settings(deadline=None)
@given(data=_BYTES, cuts=st.lists(st.integers(0, 60)))
def test_telnet_is_the_same_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    pieces = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
    kept, answers = filtered(pieces)
    assert (kept, answers) == filtered([data])
    assert b"\xff" not in kept and len(answers.replace(ALIVE, b"")) <= len(data)


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n", b"\t\r\n", b" \v\f\r \n"])
def test_blank_lines_are_left_out_whatever_their_number(blank: bytes) -> None:
    splitter = LineSplitter(100)
    splitter.feed(b"one\n" + blank * 10_000 + b" two\n" + blank)
    assert [splitter.take(), splitter.take(), splitter.take()] == [b"one", b" two", None]
