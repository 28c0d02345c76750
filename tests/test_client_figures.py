"""Numbers and rows fit where they are shown, and are safe for a terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from netsvc.client.figures import ASCII_BLOCKS, BLOCKS, Column, count, delay, fit, row, size, span, sparkline, titles
from netsvc.text import is_unsafe


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.6, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (5e15, "5.00 PB"),
        (9.99e20, "999 EB"),
    ],
)
def test_a_size_has_three_digits(amount: float, written: str) -> None:
    assert size(amount) == written


@given(st.floats(0, 9.99e20))
def test_a_size_is_short(amount: float) -> None:
    assert re.fullmatch(r"\d[\d.]{0,3} [kMGTPE]?B", size(amount))
    assert len(size(amount)) <= 7


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86_399, "23h59m"),
        (90_000, "1d01h"),
        (100 * 86_400 - 1, "99d23h"),
        (100 * 86_400, "100d"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, written: str) -> None:
    assert span(seconds) == written


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, "0.0 ms"), (0.0003, "0.3 ms"), (0.012, "12 ms"), (0.9994, "999 ms"), (1.25, "1.2 s")]
)
def test_a_delay_is_in_milliseconds_as_long_as_it_can(seconds: float, written: str) -> None:
    assert delay(seconds) == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (12_345, "12,345"), (9_999_999, "9,999,999"), (10_000_000, "10.0M"), (1_234_567_890, "1.23G")],
)
def test_a_count_has_groups_and_fits(number: int, written: str) -> None:
    assert count(number) == written


def test_a_sparkline_ends_with_the_newest() -> None:
    assert sparkline([0, 1, 4, 8], 10) == " ▁▄█"
    assert sparkline([0, 1, 4, 8], 10, ASCII_BLOCKS) == " .=@"
    assert sparkline([5], 10) == "█"


def test_a_sparkline_shows_the_highest_of_those_for_which_there_is_no_room() -> None:
    assert sparkline([8, 0, 0, 1, 4, 0], 3) == "█▁▄"
    # One that is left over is the oldest.
    assert sparkline([8, 1, 1, 4, 4], 3) == "█▁▄"


def test_a_sparkline_of_nothing_is_empty() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1], 0) == ""
    assert sparkline([0, 0], 10) == "  "


@given(st.lists(st.floats(0, 1e12, allow_subnormal=False)), st.integers(1, 100))
def test_a_sparkline_fits(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= set(BLOCKS)


@given(st.text(st.characters(exclude_categories=["Mn", "Me", "Cf"])), st.integers(0, 60), st.booleans())
def test_what_is_fitted_is_as_wide_as_asked_for_and_safe(text: str, width: int, right: bool) -> None:
    fitted = fit(text, width, right=right)
    assert get_cwidth(fitted) == width
    assert not any(map(is_unsafe, fitted))


def test_what_is_cut_says_so() -> None:
    assert fit("abcdef", 4) == "abc…"
    assert fit("你好你好", 4) == "你… "
    assert fit("x" * 10**6, 3) == "xx…"
    assert fit("ab", 4, right=True) == "  ab"


def test_one_column_has_what_the_others_leave() -> None:
    columns = [
        Column[int]("NAME", 0, lambda each: "x" * each),
        Column[int]("N", 3, str, right=True),
    ]
    assert titles(columns, 14) == "NAME         N"
    assert row(columns, 20, 14) == "xxxxxxxxx…  20"
    assert row(columns, 2, 5) == "xx  …"
