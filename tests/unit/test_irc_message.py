"""The parser and the formatter of IRC's messages."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.services.chat.irc.message import (
    LONGEST_TAGS,
    IrcMessage,
    IrcMessageError,
    MessageSplitter,
    escape_tag,
    format_message,
    join_tags,
    parse_message,
    with_tag,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PING", IrcMessage("PING")),
        ("ping a", IrcMessage("PING", ("a",))),
        ("PRIVMSG #a :b c", IrcMessage("PRIVMSG", ("#a", "b c"))),
        ("PRIVMSG #a ::b", IrcMessage("PRIVMSG", ("#a", ":b"))),
        ("PRIVMSG #a :", IrcMessage("PRIVMSG", ("#a", ""))),
        ("USER a  b   c :d  e", IrcMessage("USER", ("a", "b", "c", "d  e"))),
        ("  PING  a ", IrcMessage("PING", ("a",))),
        (":me PING a", IrcMessage("PING", ("a",), source="me")),
        ("@a=b;+c/d=e\\:\\s\\\\\\r\\n;f PING", IrcMessage("PING", (), {"a": "b", "+c/d": "e; \\\r\n", "f": ""})),
        ("@a=b\\ :me PING", IrcMessage("PING", (), {"a": "b"}, "me")),
        ("@a=\\x;=;;b!=c PING", IrcMessage("PING", (), {"a": "x"})),
        ("001 a", IrcMessage("001", ("a",))),
        ("MODE #a +b x\ry\0z :\rlast", IrcMessage("MODE", ("#a", "+b", "xyz", "last"))),
        ("MODE " + " ".join("abcdefghijklmnopq"), IrcMessage("MODE", tuple("abcdefghijklmno"))),
    ],
)
def test_messages(line: str, message: IrcMessage) -> None:
    assert parse_message(line.encode()) == message


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (None, "too long"),
        (b"PING " + b"x" * 506, "too long"),
        (b"@a=" + b"x" * LONGEST_TAGS + b" PING", "too long"),
        (b"PRIVMSG #a :\xff", "encoding"),
        (b"@a=\xff PING", "encoding"),
        (b":", "form"),
        (b"@a", "form"),
        (b"12 a", "form"),
        ("Ping\u00e9 a".encode(), "form"),
    ],
)
def test_lines_that_are_no_messages(line: bytes | None, code: str) -> None:
    with pytest.raises(IrcMessageError) as refused:
        parse_message(line)
    assert refused.value.code == code


def test_lines_of_just_the_permitted_length() -> None:
    assert parse_message(b"PING " + b"x" * 505).params == ("x" * 505,)
    tags = b"a=" + b"x" * (LONGEST_TAGS - 2)
    assert parse_message(b"@" + tags + b" PING " + b"y" * 505).params == ("y" * 505,)


def fed(*parts: bytes) -> list[bytes | None]:
    splitter = MessageSplitter()
    for part in parts:
        splitter.feed(part)
    return [splitter.take() for _ in range(len(splitter))]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\r\nb\nc", [b"a", b"b"]),
        (b"\r\n\n \r\n\0\r\na\r\n", [b"a"]),
        (b"x" * 9000 + b"\r\na\r\n", [None, b"a"]),
        (b"x" * 8190 + b"\n", [b"x" * 8190]),
        (b"x" * 8191 + b"\n", [None]),
    ],
)
def test_lines_come_whole_however_they_arrive(data: bytes, lines: list[bytes | None]) -> None:
    assert fed(data) == fed(data[: len(data) // 2], data[len(data) // 2 :]) == lines
    assert fed(*(data[at : at + 1] for at in range(len(data)))) == lines


def test_the_last_line_needs_no_end() -> None:
    splitter = MessageSplitter()
    splitter.feed(b"QUIT")
    splitter.finish()
    assert splitter.take() == b"QUIT" and not splitter


words = st.text(st.characters(exclude_characters="\0\r\n ", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda word: word[0] not in ":@"
)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(
    st.sampled_from(["PRIVMSG", "JOIN", "353"]),
    st.lists(words, max_size=5),
    st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=30),
    st.dictionaries(st.sampled_from(["a", "+b", "+draft/c", "time"]), values),
)
def test_what_is_written_is_read_again(command: str, params: list[str], last: str, tags: dict[str, str]) -> None:
    line = format_message(command, *params, last, source="ann!~a@b", tags=join_tags(tags))
    assert parse_message(line.encode()) == IrcMessage(command, (*params, last), tags, "ann!~a@b")


@given(values)
def test_a_tag_has_no_separators(value: str) -> None:
    assert not set(escape_tag(value)) & set("; \r\n")


@given(st.binary(max_size=200))
@example(b"@ PING")
@example(b"@a: :\xc3\xa9 \n")
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    for line in fed(data + b"\n"):
        with suppress(IrcMessageError):
            parse_message(line)


def test_a_tag_is_added_before_others() -> None:
    assert with_tag([b"PING\r\n", b"@a=b PING\r\n"], "c=d") == [b"@c=d PING\r\n", b"@c=d;a=b PING\r\n"]
