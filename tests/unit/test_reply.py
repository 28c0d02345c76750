"""Reply answers everything with a fixed text, and nobody can stop it or turn it on somebody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.services.reply import DATAGRAM_TEXT, LINE_LIMIT, STREAM_TEXT, TEXT_LIMIT, ReplyCore, service
from netsvc.testing.wire import FakeTransport
from tests.builders.bench import bind, build, connect
from tests.builders.facts import states

PEER = ("192.0.2.1", 54321)
HELLO = b"hello, tcp client!"

ENCODINGS = st.sampled_from(
    ["utf-8", "gbk", "big5", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "iso2022_jp", "hz", "cp037"]
)


def stream(**settings: object) -> FakeTransport:
    return connect(build("reply", settings), "tcp")[1]


def answer(data: bytes, **settings: object) -> bytes:
    _, transport = bind(build("reply", settings), "udp")
    transport.feed(data, PEER)
    [(answered, address)] = transport.written
    assert address == PEER
    return answered


def core(**settings: object) -> ReplyCore:
    options: Any = parse_settings(service.options, settings)
    return ReplyCore(options, Context(Clock(), Logger("test")))


def errors(**settings: object) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        parse_settings(service.options, settings, "--reply-{}".format)
    return raised.value.errors


def test_reply_speaks_tcp_and_udp() -> None:
    assert service.protocols == {"tcp": "stream", "udp": "datagram"}


def test_the_texts_are_the_tutorial_servers_own() -> None:
    assert (STREAM_TEXT, DATAGRAM_TEXT) == ("hello, tcp client!", "i am udp,i got it")
    assert answer(bytes(100)) == b"i am udp,i got it"
    transport = stream()
    transport.feed(b"anything")
    assert transport.value() == HELLO


def test_one_text_serves_both_in_the_encoding_that_was_asked_for() -> None:
    transport = stream(text="谢谢 !", encoding="gbk")
    transport.feed(b"x")
    assert transport.value() == "谢谢 !".encode("gbk")
    assert answer(bytes(100), text="thank you !", encoding="gbk") == b"thank you !"


def test_each_chunk_is_answered_once_whatever_its_bytes() -> None:
    transport = stream()
    for number, chunk in enumerate(
        [b"a", b"\xff\xfe\x00", "你好".encode("gbk"), b"two\nlines\n", b"\n", b" " * 999], 1
    ):
        transport.feed(chunk)
        assert transport.value() == HELLO * number
    assert not transport.ended


def test_an_empty_text_is_a_silent_service() -> None:
    transport = stream(text="")
    transport.feed(b"x")
    assert transport.value() == b""
    assert not transport.ended
    assert answer(b"x", text="") == b""


@pytest.mark.parametrize("word", [b"exit", b"EXIT", b"eXiT", b"exit\n", b"Exit\r\n", b"  exit \t\r\n", b"\nexit\n\n"])
def test_exit_in_any_case_and_with_any_space_closes_without_an_answer(word: bytes) -> None:
    transport = stream()
    transport.feed(b"hello\n")
    transport.feed(word)
    assert transport.value() == HELLO
    assert transport.ended
    assert not transport.aborted


def test_exit_closes_that_connection_and_no_other() -> None:
    bench = build("reply")
    _, leaving = connect(bench, "tcp")
    _, staying = connect(bench, "tcp")
    leaving.feed(b"exit\r\n")
    staying.feed(b"still here?")
    assert leaving.ended
    assert staying.value() == HELLO
    assert not staying.ended


@pytest.mark.parametrize("chunk", [b"hello\nexit\n", b"hello\r\nEXIT\r\nand more\r\n", b"exit\nbye", b"exit\r\0"])
def test_exit_as_a_line_among_others_closes_with_an_answer_to_the_others(chunk: bytes) -> None:
    transport = stream()
    transport.feed(chunk)
    assert transport.value() == HELLO
    assert transport.ended


@pytest.mark.parametrize("chunk", [b"exiting", b"exit now", b"no exit", b"e x i t", b"exit\x00", b"exi", b"\xffexit"])
def test_a_word_that_only_looks_like_exit_is_answered_like_any_other(chunk: bytes) -> None:
    transport = stream()
    transport.feed(chunk)
    assert transport.value() == HELLO
    assert not transport.ended


@pytest.mark.parametrize("line", [b"exit\r\n", b"  Exit  \n"])
def test_an_exit_line_is_seen_wherever_tcp_cuts_it(line: bytes) -> None:
    for place in range(1, len(line)):
        transport = stream()
        transport.feed(b"hello\n" + line[:place])
        if not transport.ended:
            transport.feed(line[place:])
        assert transport.ended, (line, place)
    transport = stream()
    for byte in line:
        transport.feed(bytes([byte]))
    assert transport.ended


def test_pieces_of_different_lines_do_not_make_an_exit() -> None:
    transport = stream()
    for piece in (b"ex", b"\nit\n", b"exi", b"ting\n", b"no ex", b"it\n"):
        transport.feed(piece)
    assert not transport.ended
    assert transport.value() == HELLO * 6


def test_what_is_remembered_of_a_line_has_an_end() -> None:
    protocol, transport = connect(build("reply"), "tcp")
    for _ in range(100):
        transport.feed(b"x" * 1000)
    assert len(protocol._line) <= LINE_LIMIT
    transport.feed(b"\n")
    assert protocol._line == b""


@given(st.lists(st.binary(min_size=1, max_size=20) | st.sampled_from([b"exit", b"ex", b"it", b"\n"]), max_size=10))
def test_any_chunks_are_answered_or_end_the_connection(chunks: list[bytes]) -> None:
    transport = stream()
    for chunk in chunks:
        transport.feed(chunk)
    assert transport.value() == HELLO * (len(transport.value()) // len(HELLO))
    assert transport.ended or transport.value() == HELLO * len(chunks)
    assert not transport.aborted
    transport.lose()


def test_a_client_that_does_not_read_its_answers_is_read_no_further() -> None:
    _, transport = connect(build("reply", {"text": "x" * TEXT_LIMIT}), "tcp", window=0)
    fed = 0
    while transport.reading and fed < 10000:
        transport.feed(b"x")
        fed += 1
    assert fed < 100
    assert transport.buffered <= 65536 + TEXT_LIMIT
    transport.take(1 << 20)
    assert transport.reading
    assert len(transport.value()) == fed * TEXT_LIMIT


def test_a_client_that_leaves_without_reading_and_sends_on_fills_nothing() -> None:
    _, transport = connect(build("reply"), "tcp", window=0)
    transport.feed(b"hello")
    transport.feed(b"exit")
    for _ in range(1000):
        transport.feed(b"more")
    assert transport.buffered == len(HELLO)
    transport.take(1000)
    assert transport.value() == HELLO
    assert not transport.connected


@pytest.mark.parametrize("window", [0, 1000])
def test_a_client_that_half_closes_gets_its_answers_and_then_the_end(window: int) -> None:
    _, transport = connect(build("reply"), "tcp", window=window)
    transport.half_close(b"hello")
    transport.take(1000)
    assert transport.value() == HELLO
    assert not transport.connected


def test_exit_and_a_half_close_together_are_one_end() -> None:
    _, transport = connect(build("reply"), "tcp", window=0)
    transport.feed(b"hello")
    transport.half_close(b"exit\n")
    transport.take(1000)
    assert transport.value() == HELLO
    assert not transport.connected


def test_a_connection_whose_answers_cannot_go_out_any_more_is_closed() -> None:
    transport = stream()
    transport.loseWriteConnection()
    transport.take(0)
    assert not transport.connected


@pytest.mark.parametrize(
    ("text", "encoding", "size", "answered"),
    [
        ("hello", "utf-8", 5, b"hello"),
        ("hello", "utf-8", 4, b"hell"),
        ("hello", "utf-8", 0, b""),
        ("中文", "utf-8", 6, "中文".encode()),
        ("中文", "utf-8", 5, "中".encode()),
        ("中文", "utf-8", 3, "中".encode()),
        ("中文", "utf-8", 2, b""),
        ("中文", "gbk", 3, "中".encode("gbk")),
        ("中文", "gbk", 1, b""),
        ("😀😀", "utf-16-le", 7, "😀".encode("utf-16-le")),
        # The mark at the beginning is a part of every text in these.
        ("ab", "utf-16", 5, "a".encode("utf-16")),
        ("ab", "utf-16", 1, b""),
        ("ab", "utf-8-sig", 2, b""),
        # And so is the way back to ASCII at the end in these.
        ("日本", "iso2022_jp", 9, "日".encode("iso2022_jp")),
        ("日本", "iso2022_jp", 7, b""),
    ],
)
def test_an_answer_is_cut_between_two_characters(text: str, encoding: str, size: int, answered: bytes) -> None:
    assert core(text=text, encoding=encoding).beginning_within(size) == answered


@given(text=st.text(max_size=30), encoding=ENCODINGS, size=st.integers(0, 150))
def test_an_answer_is_never_longer_than_it_may_be_and_always_a_whole_beginning_of_the_text(
    text: str, encoding: str, size: int
) -> None:
    try:
        whole = text.encode(encoding)
    except UnicodeError:
        assume(False)
    answered = core(text=text, encoding=encoding).beginning_within(size)
    assert len(answered) <= size
    beginnings = [text[:count].encode(encoding) for count in range(len(text) + 1)]
    assert answered in [b"", *beginnings]
    longest = max((beginning for beginning in beginnings if len(beginning) <= size), key=len, default=b"")
    assert len(answered) == len(longest)
    if len(whole) <= size:
        assert answered == whole


def test_an_answer_may_be_longer_than_its_request_if_that_was_asked_for() -> None:
    assert answer(b"", amplify=True) == DATAGRAM_TEXT.encode()
    assert answer(b"x", amplify=True, text="中文", encoding="gbk") == "中文".encode("gbk")
    assert answer(b"", amplify=True, text="x" * 57) == b"x" * 57
    assert answer(b"", amplify=False, text="x" * 57) == b"x" * 56


def test_a_short_answer_is_whole_and_a_long_one_as_long_as_the_limit_lets_through() -> None:
    assert answer(b"hello") == answer(b"") == DATAGRAM_TEXT.encode()
    assert answer(b"hello", text="x" * TEXT_LIMIT) == b"x" * (3 * (5 + 28) - 28)
    assert answer(bytes(400), text="x" * TEXT_LIMIT) == b"x" * TEXT_LIMIT


def test_exit_is_a_datagram_like_any_other() -> None:
    assert answer(b"exit") == DATAGRAM_TEXT.encode()
    assert answer(b"exit".ljust(100)) == DATAGRAM_TEXT.encode()


def test_no_datagram_goes_to_an_echo_like_port_or_to_a_listener_of_the_service() -> None:
    _, transport = bind(build("reply"), "udp", host=IPv4Address("UDP", "127.0.0.1", 9001))
    for port in (0, 7, 19, 9001):
        transport.feed(b"x", ("127.0.0.1", port))
    assert transport.written == []


def test_the_longest_text_fits_a_datagram_in_the_most_wasteful_encoding() -> None:
    for encoding in ("utf-7", "unicode_escape", "utf-32", "gb18030"):
        assert len(answer(bytes(65507), text="\U0010ffff" * TEXT_LIMIT, encoding=encoding)) <= 65507


def test_a_text_has_a_limit() -> None:
    assert answer(bytes(65507), text="x" * TEXT_LIMIT) == b"x" * TEXT_LIMIT
    [line] = errors(text="x" * (TEXT_LIMIT + 1))
    assert line.startswith("--reply-text xxx")
    assert states(line, f"({TEXT_LIMIT + 1 - 200} more): ", f" {TEXT_LIMIT} ")


@pytest.mark.parametrize("encoding", ["klingon", "base64", "undefined", "idna", "", "a\nb"])
def test_a_wrong_encoding_is_one_line_that_names_the_option(encoding: str) -> None:
    [line] = errors(encoding=encoding)
    assert states(line, "--reply-encoding ", ": ", "encoding")


@pytest.mark.parametrize(
    ("text", "encoding", "facts"),
    [
        ("☃", "gbk", ["--reply-encoding gbk", "--reply-text '☃'"]),
        ("é", "ascii", ["--reply-encoding ascii", "--reply-text 'é'"]),
        ("\udcff", "utf-8", ["--reply-encoding utf-8", r"--reply-text '\udcff'"]),
    ],
)
def test_a_text_that_the_encoding_cannot_express_is_one_line_that_names_both_options(
    text: str, encoding: str, facts: list[str]
) -> None:
    [line] = errors(text=text, encoding=encoding)
    assert states(line, *facts)


def test_every_wrong_option_is_named_at_once() -> None:
    lines = errors(text="x" * 2000, encoding="klingon", amplify="yes")
    assert [line.split()[0] for line in lines] == ["--reply-text", "--reply-encoding", "--reply-amplify"]
    assert lines[2] == "--reply-amplify takes no value"


def test_amplification_is_shown_as_a_limit() -> None:
    assert "amplify" in service.options().limits  # type: ignore[attr-defined]
