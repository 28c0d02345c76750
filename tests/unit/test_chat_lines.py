from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.lines import OVERLONG, LineSplitter, Overlong, TelnetFilter

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
        (b"a\0\rb\n", [b"a\0\rb"]),
        (b" a \n", [b" a "]),
        (b"12345678\n12345678\r\n12345678\r\0x\n", [b"12345678"] * 3 + [b"x"]),
        (b"123456789\nx\n", [OVERLONG, b"x"]),
        (b"12345678\r9\nx\n", [OVERLONG, b"x"]),
        (b"123456789\r\nx\n", [OVERLONG, b"x"]),
        (b"1234567890123\r\nx\n", [OVERLONG, b"x"]),
        (b"12345678", [b"12345678"]),
        (b"12345678\r", [b"12345678"]),
        (b"123456789", [OVERLONG]),
        (b"1234567890", [OVERLONG]),
        (b"x" * 100, [OVERLONG]),
        ("中\n文".encode("gbk"), ["中".encode("gbk"), "文".encode("gbk")]),
        (b"\xff\xf4\xff\xfd\x06a\n", [b"a"]),
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


def test_a_line_end_with_return_is_noticed() -> None:
    splitter = LineSplitter(8)
    splitter.feed(b"a\nb\r")
    assert taken(splitter) == [b"a"] and not splitter.ends_with_return
    splitter.feed(b"\n")
    assert taken(splitter) == [b"b"] and splitter.ends_with_return


def test_without_telnet_255_is_a_letter() -> None:
    assert split(["моя\n".encode("cp1251")], telnet=False) == ["моя".encode("cp1251")]


_BYTES = st.lists(
    st.sampled_from([b"a", b"12345", b"\r", b"\n", b"\0", b" ", b"\xff", b"\xfa", b"\xf0", b"\xfd", b"\xfb", b"\xe4"]),
    max_size=40,
).map(b"".join)


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
        assert len(splitter._buffer) <= 9


def filtered(pieces: list[bytes]) -> tuple[bytes, bytes]:
    telnet = TelnetFilter()
    results = [telnet.feed(piece) for piece in pieces]
    return b"".join(kept for kept, _ in results), b"".join(answers for _, answers in results)


@pytest.mark.parametrize(
    ("data", "kept", "answers"),
    [
        # RFC 854: Interrupt Process; the option that is asked for next is timing-mark, as clients do for Ctrl-C.
        (b"a\xff\xf4b\xff\xfd\x06c", b"abc", b"\xff\xfc\x06"),
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
    assert b"\xff" not in kept and len(answers) <= len(data)


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n", b"\t\r\n", b" \v\f\r \n"])
def test_blank_lines_are_left_out_whatever_their_number(blank: bytes) -> None:
    splitter = LineSplitter(100)
    splitter.feed(b"one\n" + blank * 10_000 + b" two\n" + blank)
    assert [splitter.take(), splitter.take(), splitter.take()] == [b"one", b" two", None]
