"""What a peer sent is one line that no terminal obeys."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from netsvc.base.text import escape, is_unsafe, peer_name

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize("character", ["\x00", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\ud800"])
def test_a_control_character_a_separator_and_a_surrogate_are_unsafe(character: str) -> None:
    assert is_unsafe(character)


@pytest.mark.parametrize("character", BIDIRECTIONAL)
def test_a_bidirectional_control_is_unsafe(character: str) -> None:
    assert is_unsafe(character)


@pytest.mark.parametrize("character", ["a", " ", "é", "中", "ש", "😀", "\u200d", "\u0301"])
def test_what_a_terminal_shows_is_safe(character: str) -> None:
    assert not is_unsafe(character)
    assert escape(character) == character


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", ""),
        ("plain text, 中文", "plain text, 中文"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("one\r\ntwo", r"one\r\ntwo"),
        ("tab\t", r"tab\t"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2028", r"\u2028"),
        ('say "hi"', r"say \"hi\""),
        (r"back\slash", r"back\\slash"),
        (r"\x1b", r"\\x1b"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe", r"\xff\xfe"),
        (rb"\xff", r"\\xff"),
        (b"\xc2\x9b", r"\x9b"),
        (b"cut \xe4\xb8", r"cut \xe4\xb8"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\ud800"),
    ],
)
def test_escape_writes_what_is_unsafe_as_a_backslash_escape(value: str | bytes, shown: str) -> None:
    assert escape(value) == shown


def test_whatever_python_prints_a_terminal_only_shows() -> None:
    # What `escape` passes unread.
    assert not [one for one in map(chr, range(sys.maxunicode + 1)) if one.isprintable() and is_unsafe(one)]


@given(st.text(st.sampled_from('a中 "\\\x1b\u202e\udcff\n\xad'), max_size=8), st.integers(0, 8))
def test_a_value_is_escaped_character_by_character(value: str, limit: int) -> None:
    shown = "".join(escape(one) for one in value[:limit])
    more = len(value) - limit
    assert escape(value, limit) == shown + (f"… ({more} more)" if more > 0 else "")


def test_escape_shows_a_value_up_to_the_limit_and_counts_the_rest() -> None:
    assert escape("x" * 200) == "x" * 200
    assert escape("x" * 201) == "x" * 200 + "… (1 more)"
    assert escape("abcdef", 3) == "abc… (3 more)"
    assert escape(b"\xff" * 5, 3) == r"\xff\xff\xff… (2 more)"


@given(st.text() | st.binary() | st.text(alphabet=BIDIRECTIONAL + '\\"\n\x1b\x85\u2028\udc80\ud800x'))
def test_escape_gives_one_printable_line_whatever_comes(value: str | bytes) -> None:
    shown = escape(value)
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    assert not set(shown) & set(BIDIRECTIONAL)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    # So it can stand between quotation marks.
    assert '"' not in shown.replace("\\\\", "").replace('\\"', "")


@given(st.text(max_size=100), st.text(max_size=100))
def test_different_texts_are_shown_differently(one: str, other: str) -> None:
    # A lone surrogate that stands for a byte is shown as that byte, which a C1 control is shown as too.
    if not any("\x80" <= character <= "\x9f" or "\udc80" <= character <= "\udcff" for character in one + other):
        assert (escape(one) == escape(other)) == (one == other)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (IPv4Address("TCP", "192.0.2.1", 4000), "192.0.2.1:4000"),
        (IPv6Address("TCP", "2001:db8::1", 4000), "[2001:db8::1]:4000"),
        (IPv6Address("TCP", "::1", 4000), "[::1]:4000"),
        # RFC 4291, section 2.5.5.2: an IPv4-mapped IPv6 address.
        (IPv6Address("TCP", "::ffff:192.0.2.1", 4000), "192.0.2.1:4000"),
        (IPv6Address("TCP", "::ffff:0:1", 4000), "[::ffff:0:1]:4000"),
        (IPv6Address("TCP", "fe80::1%eth0", 4000), "[fe80::1%eth0]:4000"),
        (UNIXAddress(b"/run/peer"), "/run/peer"),
        (UNIXAddress(b"/run/\xff\n"), r"/run/\xff\n"),
        (UNIXAddress(None), "-"),
        (None, "-"),
        (object(), "-"),
    ],
)
def test_a_peer_is_named_in_the_usual_form(address: object, name: str) -> None:
    assert peer_name(address) == name


def test_a_peer_cannot_name_itself_with_control_characters() -> None:
    # As a client behind the haproxy: endpoint can, in its PROXY header.
    assert peer_name(IPv4Address("TCP", "\x1b[2J\n", 1)) == r"\x1b[2J\n:1"
