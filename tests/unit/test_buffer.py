"""A buffer gives the same messages however the bytes are cut, and holds no more than its limit allows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.buffer import Buffer, LimitError


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data at these places."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[one:other] for one, other in pairwise(edges)]


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\0\0\0"]))
def test_messages_are_those_of_the_whole(data: bytes, places: list[int], delimiter: bytes) -> None:
    buffer, taken = Buffer(), []
    for piece in cut(data, places):
        buffer += piece
        while (message := buffer.until(delimiter, 1000)) is not None:
            taken.append(message)
    assert [*taken, buffer.take(1000)] == data.split(delimiter)


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(0, 30))
def test_exactly_takes_all_or_nothing(pieces: list[bytes], size: int) -> None:
    buffer, data = Buffer(), b"".join(pieces)
    for piece in pieces:
        buffer += piece
    taken = buffer.exactly(size)
    assert taken == (data[:size] if len(data) >= size else None)
    assert (taken or b"") + buffer.take(1000) == data
    assert not buffer


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n"])
def test_the_limit_is_the_last_length_that_is_taken(delimiter: bytes) -> None:
    buffer = Buffer()
    buffer += b"x" * 5 + delimiter
    assert buffer.until(delimiter, 5) == b"x" * 5
    buffer += b"x" * 5 + delimiter[:-1]
    assert buffer.until(delimiter, 5) is None
    buffer += b"x" + delimiter
    with pytest.raises(LimitError):
        buffer.until(delimiter, 5)
    assert buffer.until(delimiter, 5) is None and not buffer


@given(
    st.lists(st.integers(0, 9), max_size=9),
    st.lists(st.integers(0, 60), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r\r\n"]),
)
def test_a_message_over_the_limit_is_dropped_and_no_other(
    sizes: list[int], places: list[int], delimiter: bytes
) -> None:
    buffer, taken = Buffer(), []
    for piece in cut(b"".join(b"x" * size + delimiter for size in sizes), places):
        buffer.add(piece)
        while True:
            try:
                message = buffer.until(delimiter, 5)
            except LimitError:
                message = b"long"
            if message is None:
                break
            taken.append(message)
        assert len(buffer) < 5 + len(delimiter)
    assert taken == [b"x" * size if size <= 5 else b"long" for size in sizes]


@given(st.binary(max_size=30), st.integers(0, 40), st.lists(st.integers(0, 30), max_size=4))
def test_bytes_are_dropped_as_they_arrive(data: bytes, size: int, places: list[int]) -> None:
    buffer = Buffer()
    buffer.skip(size)
    for piece in cut(data, places):
        buffer.add(piece)
    assert buffer.take(100) == data[size:]


def test_another_delimiter_is_searched_for_from_the_start() -> None:
    buffer = Buffer()
    buffer += b"a,b"
    assert buffer.until(b"\n", 10) is None
    assert buffer.until(b",", 10) == b"a"
    assert buffer.take(10) == b"b"
