from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.text import is_unsafe
from netsvc.cli.terminal import PIECE, LineBuffer, SafeText, make_safe

ENCODINGS = ["utf-8", "gbk", "gb18030", "big5", "shift_jis", "utf-16", "utf-16-le", "utf-7", "latin-1", "hz", "cp037"]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def shown(parts: list[bytes], encoding: str) -> str:
    safe = SafeText(encoding)
    return "".join(safe.feed(part) for part in parts) + safe.feed(b"", final=True)


def is_safe(text: str) -> bool:
    return not any(is_unsafe(character) for character in text if character not in "\n\t")


def test_nothing_printable_is_unsafe() -> None:
    # make_safe takes printable text as it is.
    assert not [code for code in range(sys.maxunicode + 1) if chr(code).isprintable() and is_unsafe(chr(code))]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("你好 🙂", "你好 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb", "a\nb"),
        ("a\rb", "a\\rb"),
        ("\x9b31m\x7f\0", "\\x9b31m\\x7f\\x00"),
        ("\u202eevil", "\\u202eevil"),
        ("no\u00a0break", "no\u00a0break"),
        ("C:\\dir", "C:\\dir"),
    ],
)
def test_a_terminal_obeys_nothing(text: str, safe: str) -> None:
    assert make_safe(text) == safe


@given(
    encoding=st.sampled_from(ENCODINGS), data=st.binary(max_size=60), places=st.lists(st.integers(0, 60), max_size=8)
)
def test_any_bytes_in_any_segments_are_safe(encoding: str, data: bytes, places: list[int]) -> None:
    assert is_safe(shown(cut(data, places), encoding))


@given(
    encoding=st.sampled_from(["utf-8", "gbk", "gb18030", "utf-16-le", "latin-1"]),
    text=st.text(st.sampled_from("aé\r\n\t你好\x1b"), max_size=30),
    places=st.lists(st.integers(0, 99), max_size=8),
)
def test_segments_make_no_difference(encoding: str, text: str, places: list[int]) -> None:
    data = text.encode(encoding, "ignore")
    assert shown(cut(data, places), encoding) == make_safe(data.decode(encoding))
    assert shown([bytes([byte]) for byte in data], encoding) == make_safe(data.decode(encoding))


def test_bytes_that_do_not_decode_are_shown_as_escapes() -> None:
    assert shown([b"a\xff\xe4\xbd", b"b"], "utf-8") == "a\\xff\\xe4\\xbdb"
    assert shown([b"\xe4\xbd"], "utf-8") == "\\xe4\\xbd"


def test_a_decoder_that_gives_up_begins_again() -> None:
    safe = SafeText("utf-16")
    assert safe.feed(b"no mark") == "no mark"
    assert safe.feed("\ufeffmark".encode("utf-16-le")) == "mark"


def test_a_carriage_return_is_held_until_it_is_known_what_follows() -> None:
    safe = SafeText("utf-8")
    assert safe.feed(b"a\r") == "a"
    assert safe.feed(b"\nb\r") == "\nb"
    assert safe.feed(b"c\r") == "\\rc"
    assert safe.feed(b"", final=True) == "\\r"


def test_lines_come_whole() -> None:
    lines = LineBuffer()
    assert lines.feed("a\nb") == "a\n"
    assert lines.holding
    assert lines.feed("") == ""
    assert lines.feed("c\n\nd\ne") == "bc\n\nd\n"
    assert lines.flush() == "e\n"
    assert not lines.holding
    assert lines.flush() == ""


def test_a_line_that_is_too_long_comes_in_pieces() -> None:
    lines = LineBuffer()
    assert lines.feed("x" * (PIECE - 1)) == ""
    assert lines.feed("y") == "x" * (PIECE - 1) + "y\n"
    assert not lines.holding
    assert lines.feed("z" * (2 * PIECE + 3)) == ("z" * PIECE + "\n") * 2
    assert lines.flush() == "zzz\n"


@given(st.lists(st.text("a\n", max_size=10)))
def test_lines_lose_nothing(parts: list[str]) -> None:
    lines = LineBuffer()
    collected = "".join(lines.feed(part) for part in parts)
    whole = "".join(parts)
    assert collected + lines.flush() == (whole if whole.endswith("\n") or not whole else whole + "\n")
