"""Conditional requests and ranges, by the rules of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.http.request import Request
from netsvc.services.files.conditions import (
    MOST_RANGES,
    PART_OVERHEAD,
    TICK,
    Validator,
    check_conditions,
    http_date,
    parse_date,
    validator,
    wanted_ranges,
)

OLD, NOW, NEW = (b"Sun, 06 Nov 1994 08:49:36 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:38 GMT")
CURRENT = Validator(b'"a"', False, 784111777)
WEAK = Validator(b'"a"', True, 784111777)


def asked(*headers: tuple[bytes, bytes], method: bytes = b"GET") -> Request:
    return Request(method, b"/", 11, list(headers), keep_alive=True)


def test_dates_have_three_forms() -> None:
    for written in (NOW, b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"):
        assert parse_date(written) == CURRENT.modified
    for wrong in (b"", b"784111777", b"Sun, 06 Nov 1994 08:49:37", b"Sun, 99 Nov 1994 08:49:37 GMT", b"\xff"):
        assert parse_date(wrong) is None
    assert http_date(CURRENT.modified) == NOW


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 200),
        (((b"if-match", b'"a"'),), 200),
        (((b"if-match", b'"b", "a"'),), 200),
        (((b"if-match", b'"b"'), (b"if-match", b'"a"')), 200),
        (((b"if-match", b"*"),), 200),
        (((b"if-match", b'"b"'),), 412),
        # Compared strongly.
        (((b"if-match", b'W/"a"'),), 412),
        (((b"if-unmodified-since", NOW),), 200),
        (((b"if-unmodified-since", OLD),), 412),
        (((b"if-unmodified-since", b"nonsense"),), 200),
        # If-Match comes first, and decides alone.
        (((b"if-match", b'"a"'), (b"if-unmodified-since", OLD)), 200),
        (((b"if-none-match", b'"a"'),), 304),
        (((b"if-none-match", b'W/"a"'),), 304),
        (((b"if-none-match", b'"b", W/"a"'),), 304),
        (((b"if-none-match", b"*"),), 304),
        (((b"if-none-match", b'"b"'),), 200),
        (((b"if-modified-since", NOW),), 304),
        (((b"if-modified-since", NEW),), 304),
        (((b"if-modified-since", OLD),), 200),
        (((b"if-modified-since", b"nonsense"),), 200),
        (((b"if-none-match", b'"b"'), (b"if-modified-since", NEW)), 200),
        (((b"if-match", b'"b"'), (b"if-none-match", b'"a"')), 412),
        (((b"if-match", b'"a"'), (b"if-none-match", b'"a"')), 304),
        (((b"if-none-match", b'a, "x'),), 200),
    ],
)
def test_conditions_are_evaluated_in_their_order(headers: tuple[tuple[bytes, bytes], ...], status: int) -> None:
    assert check_conditions(asked(*headers), CURRENT) == status


def test_a_weak_tag_matches_only_weakly() -> None:
    assert check_conditions(asked((b"if-match", b'"a"')), WEAK) == 412
    assert check_conditions(asked((b"if-none-match", b'"a"')), WEAK) == 304
    assert WEAK.written == b'W/"a"'


def test_a_tag_is_that_of_size_time_and_coding_and_weak_while_the_file_may_still_change() -> None:
    made = validator(5, 10 * TICK, 11 * TICK)
    assert not made.is_weak
    assert (made.modified, made.written) == (10, made.tag)
    others = [validator(6, 10 * TICK, 20 * TICK), validator(5, 10 * TICK + 1, 20 * TICK)]
    others.append(validator(5, 10 * TICK, 20 * TICK, "gzip"))
    assert len({made.tag, *(other.tag for other in others)}) == 4
    assert validator(5, 10 * TICK, 11 * TICK - 1).is_weak


@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        (b"bytes=0-0", [(0, 1)]),
        (b"bytes=0-", [(0, 1000)]),
        (b"bytes=-1", [(999, 1000)]),
        (b"bytes=-2000", [(0, 1000)]),
        (b"bytes=500-2000", [(500, 1000)]),
        (b"Bytes = 1 - 2 ", [(1, 3)]),
        (b"bytes=0-0, 999-", [(0, 1), (999, 1000)]),
        (b"bytes=999-,0-0", [(999, 1000), (0, 1)]),
        # Not satisfiable.
        (b"bytes=1000-", []),
        (b"bytes=-0", []),
        (b"bytes=1000-,2000-", []),
        (b"bytes=9999999999999999999-", []),
        # Some of them are.
        (b"bytes=1000-,0-0", [(0, 1)]),
        # Joined.
        (b"bytes=0-9,5-19,20-29", [(0, 30)]),
        (b"bytes=0-9,5-19,50-59", [(0, 20), (50, 60)]),
        (b"bytes=" + b"0-," * 31 + b"0-", [(0, 1000)]),
        # Ignored.
        (b"bytes=", None),
        (b"bytes=,", None),
        (b"bytes=-", None),
        (b"bytes=2-1", None),
        (b"bytes=1_0-20", None),
        (b"bytes=a-b", None),
        (b"bytes=99999999999999999999-", []),
        (b"bytes=0-99999999999999999999", [(0, 1000)]),
        (b"bytes=-99999999999999999999", [(0, 1000)]),
        (b"bytes=0-" + b"9" * 5000, None),
        # In no time: a regular expression that goes back would try to part the blanks in all ways, for minutes.
        (b"bytes=1-" + b" " * 200_000 + b"x", None),
        (b"lines=0-0", None),
        (b"0-0", None),
        (b"bytes=" + b"0-," * MOST_RANGES + b"0-", None),
        # Longer than the file, with the heads of the parts.
        (b"bytes=0-400,402-999", None),
    ],
)
def test_ranges_are_parsed(written: bytes, ranges: list[tuple[int, int]] | None) -> None:
    assert wanted_ranges(asked((b"range", written)), CURRENT, 1000) == ranges


def test_ranges_are_for_one_get() -> None:
    assert wanted_ranges(asked((b"range", b"bytes=0-0"), method=b"HEAD"), CURRENT, 10) is None
    assert wanted_ranges(asked((b"range", b"bytes=0-0"), (b"range", b"bytes=0-0")), CURRENT, 10) is None
    assert wanted_ranges(asked(), CURRENT, 10) is None
    assert wanted_ranges(asked((b"range", b"bytes=0-")), CURRENT, 0) == []


@pytest.mark.parametrize(
    ("value", "current", "applies"),
    [
        (b'"a"', CURRENT, True),
        (NOW, CURRENT, True),
        (b'"b"', CURRENT, False),
        (b'W/"a"', CURRENT, False),
        (OLD, CURRENT, False),
        (NEW, CURRENT, False),
        (b"nonsense", CURRENT, False),
        (b'"a"', WEAK, False),
        (NOW, WEAK, False),
    ],
)
def test_a_range_of_another_version_is_the_whole_file(value: bytes, current: Validator, applies: bool) -> None:
    request = asked((b"range", b"bytes=0-0"), (b"if-range", value))
    assert wanted_ranges(request, current, 10) == ([(0, 1)] if applies else None)


def test_a_range_with_two_conditions_is_the_whole_file() -> None:
    request = asked((b"range", b"bytes=0-0"), (b"if-range", b'"a"'), (b"if-range", b'"a"'))
    assert wanted_ranges(request, CURRENT, 10) is None


SPECIFICATION = st.lists(st.from_regex(rb"(\d{1,3}-\d{0,3}|-\d{1,3}|[-,x ])", fullmatch=True), max_size=40)


@given(SPECIFICATION, st.integers(0, 300))
@example([b"0-", b"-0"], 0)
def test_ranges_are_of_the_file_distinct_and_never_more_than_it(parts: list[bytes], size: int) -> None:
    ranges = wanted_ranges(asked((b"range", b"bytes=" + b",".join(parts))), CURRENT, size)
    if ranges is None:
        return
    assert all(0 <= start < stop <= size for start, stop in ranges)
    sent = [place for start, stop in ranges for place in range(start, stop)]
    assert len(sent) == len(set(sent)) <= size
    assert len(ranges) < 2 or len(ranges) * PART_OVERHEAD < size


@given(st.binary(max_size=60), st.sampled_from([b"if-match", b"if-none-match", b"if-range", b"if-modified-since"]))
def test_any_condition_is_understood_or_ignored(value: bytes, name: bytes) -> None:
    request = asked((name, value), (b"range", b"bytes=0-0"))
    assert check_conditions(request, CURRENT) in (200, 304, 412)
    assert wanted_ranges(request, CURRENT, 10) in (None, [(0, 1)])
