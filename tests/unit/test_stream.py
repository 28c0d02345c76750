"""A line protocol gets the same lines however they are cut, within its limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.service import Service
from netsvc.stream import LineProtocol
from netsvc.testing import check_service
from netsvc.testing.wire import FakeTransport
from tests.builders.bench import build, connect


class Lines(LineProtocol):
    longest = 5

    def line_received(self, line: bytes) -> None:
        self.transport.write(b"<" + line + b">")
        if line == b"quit":
            self.close()


service = Service("lines", "Lines in brackets", streams={"tcp": Lines})


def client() -> FakeTransport:
    return connect(build(service), "tcp")[1]


@given(st.lists(st.sampled_from([b"", b"a", b"12345", b"\r", b"a\rb"]), max_size=6), st.integers(1, 9))
def test_lines_however_they_are_cut(lines: list[bytes], step: int) -> None:
    one = client()
    data = b"".join(line + b"\r\n" for line in lines)
    for place in range(0, len(data), step):
        one.feed(data[place : place + step])
    assert one.value() == b"".join(b"<" + line + b">" for line in lines)
    one.half_close(b"last")
    assert one.value().endswith(b"<last>") and one.ended


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_line_at_the_limit_and_one_over(ending: bytes) -> None:
    one = client()
    one.feed(b"12345" + ending)
    assert one.value() == b"<12345>" and not one.ended
    one.feed(b"123456" + ending + b"more\n")
    assert one.value() == b"<12345>" and one.ended


def test_a_line_that_does_not_end_is_refused_at_the_limit() -> None:
    one = client()
    one.feed(b"1234567")
    assert one.ended and not one.aborted


def test_an_unfinished_line_over_the_limit_is_refused_at_the_end() -> None:
    one = client()
    one.half_close(b"123456")
    assert one.value() == b"" and one.ended


class Patient(Lines):
    """Answers a long line and goes on, as a server of SMTP does."""

    def line_too_long(self) -> None:
        self.transport.write(b"<?>")


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 20))
def test_one_that_goes_on_after_a_long_line_is_told_of_it_once(sizes: list[int], step: int) -> None:
    one = connect(build(Service("lines", "Lines", streams={"tcp": Patient})), "tcp")[1]
    data = b"".join(b"x" * size + b"\r\n" for size in sizes)
    for place in range(0, len(data), step):
        one.feed(data[place : place + step])
    assert one.value() == b"".join(b"<" + b"x" * size + b">" if size <= 5 else b"<?>" for size in sizes)


def test_nothing_is_taken_after_closing() -> None:
    one = client()
    one.feed(b"quit\nmore\n")
    assert one.value() == b"<quit>" and one.ended


def test_keeps_the_contract() -> None:
    check_service(service, samples={"tcp": [b"one\ntwo\n"]})
