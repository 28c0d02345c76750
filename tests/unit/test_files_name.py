"""Reading a file name from whatever bytes come."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.services.files.file import FileRefusedError
from netsvc.services.files.names import MOST_READINGS, NameReader, readings, whole_name


def read(pieces: list[bytes], limit: int = 8) -> tuple[str, bytes]:
    """Feed `pieces` until one completes the name or is refused."""
    reader = NameReader(limit)
    for piece in pieces:
        try:
            if reader.feed(piece):
                return "name", reader.name
        except FileRefusedError as refusal:
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
    with pytest.raises(FileRefusedError):
        reader.feed(b"x" * 1_000_000)
    assert len(reader.name) == 10


@pytest.mark.parametrize("size", [1024, 4096, 8192])
def test_a_buffer_that_begins_with_a_name_is_complete_at_the_limit(size: int) -> None:
    data = b"f.txt".ljust(size, b"\0")
    outcome, name = read([data], 1024)
    assert outcome == ("waiting" if size == 1024 else "name")
    assert readings(name, "gbk")[0] == b"f.txt"


@pytest.mark.parametrize(
    "commands",
    [b"\xff\xfb\x1f", b"\xff\xfd\x00\xff\xfb\x0a", b"\xff\xfa\x18\x00\x0axterm\xff\xf0", b"\xff\xf1", b"\xff\xfe\x01"],
)
def test_telnet_commands_before_and_in_a_name_are_no_part_of_it(commands: bytes) -> None:
    for data in (commands + b"a.txt\r\n", b"a." + commands + b"txt\n"):
        for pieces in ([data], [data[place : place + 1] for place in range(len(data))]):
            outcome, name = read(pieces, 64)
            assert outcome == "name"
            assert b"a.txt" in readings(name, "gbk")
    assert read([b"a.txt\n" + commands], 64) == ("name", b"a.txt")


# Without a mark, the line ends at the byte LF, which is a half of 上.
@pytest.mark.parametrize(
    ("mark", "name"),
    [("\ufeff", "上海/a.txt"), *product(["\ufeff", ""], ["a.txt", "1.txt", "学习.txt", "学.txt"])],
)
def test_a_line_in_utf_16_is_read_as_powershell_writes_it(mark: str, name: str) -> None:
    data = f"{mark}{name}\r\n".encode("utf-16-le")
    outcome, read_name = read([data], 64)
    assert outcome == "name"
    assert name.encode() in readings(read_name, "gbk")
    assert readings(f"{mark}{name}".encode("utf-16-le"), "gbk").count(name.encode()) == 1


def test_the_likely_reading_is_the_first_one() -> None:
    gbk = "学习 1.txt".encode("gbk")
    assert readings(b"d/f.txt", "gbk") == [b"d/f.txt"]
    assert readings(b"", "gbk") == []
    assert readings(gbk, "gbk")[:2] == [gbk, "学习 1.txt".encode()]
    assert readings("上.txt".encode("utf-16-le"), "gbk")[0] == "上.txt".encode()
    assert readings(b"d\\f.txt", "gbk") == [b"d\\f.txt", b"d/f.txt"]
    assert readings(b' "f" ', "gbk")[0] == b' "f" '
    assert b"f" in readings(b' "f" ', "gbk")
    # A byte order mark is no letter.
    assert readings(b"\xef\xbb\xbff", "gbk") == [b"f"]


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example("/\xe9" * 20)
def test_readings_are_few_distinct_and_never_empty(name: bytes | str) -> None:
    found = readings(name.encode() if isinstance(name, str) else name, "gbk")
    assert len(found) == len(set(found)) <= MOST_READINGS
    assert b"" not in found


@given(st.lists(st.binary(max_size=8)), st.integers(1, 12))
@example([b"12345678", b"\r", b"\n"], 8)
@example([b"12345678", b"\r", b"\r\n"], 8)
def test_any_bytes_in_any_pieces_are_a_name_a_refusal_or_waiting(pieces: list[bytes], limit: int) -> None:
    # For NULs and the byte 255 see above.
    pieces = [piece.replace(b"\xff", b"").replace(b"\0", b"") for piece in pieces]
    whole = b"".join(pieces)
    line, ended, _ = whole.partition(b"\n")
    name = line.removesuffix(b"\r")
    expected = ("name too long", b"") if len(name) > limit else ("name" if ended else "waiting", name)
    assert read(pieces, limit) == expected
    assert whole_name(whole, limit) in (None, expected[1] if expected[0] == "name" else None)
    assert read([whole], limit) == expected
    assert read([whole[place : place + 1] for place in range(len(whole))], limit) == expected
