"""Reports, and the lines that they are in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from netsvc.workers.channel import LONGEST_REPORT, LineCutter, read_report, report
from netsvc.workers.reports import LONGEST_TEXT, log_report


def cut(data: bytes, size: int, limit: int = 10) -> tuple[list[bytes], list[bytes]]:
    cutter = LineCutter(limit)
    ended = [line for start in range(0, len(data), size) for line in cutter.feed(data[start : start + size])]
    return ended, list(cutter.end())


@pytest.mark.parametrize("size", [1, 2, 100])
def test_lines_are_cut_however_they_come(size: int) -> None:
    assert cut(b"one\n\ntwo\nthree", size) == ([b"one", b"", b"two"], [b"three"])
    assert cut(b"0123456789\n0123456789a\n", size) == ([b"0123456789", b"0123456789... (1 more)"], [])


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(1, 20))
def test_nothing_is_lost_but_what_is_counted(data: bytes, size: int, limit: int) -> None:
    ended, rest = cut(data, size, limit)
    whole = data.split(b"\n")
    assert len(ended) == len(whole) - 1
    for line, original in zip([*ended, *rest], whole if whole[-1] else whole[:-1], strict=True):
        more = len(original) - limit
        assert line == (original[:limit] + b"... (%d more)" % more if more > 0 else original)


def test_an_event_is_reported_with_its_level_and_where_it_comes_from() -> None:
    event = {"log_format": "{a} b", "a": 7, "log_level": LogLevel.warn, "log_namespace": "netsvc", "log_time": 1.0}
    assert read_report(log_report(event)) == ("log", "warn", "netsvc", "", "7 b")
    legacy = {"log_format": "{log_legacy}", "log_legacy": "c", "log_system": "Echo,1,::1"}
    assert read_report(log_report(legacy)) == ("log", "info", "-", "Echo,1,::1", "c")


def test_a_failure_is_reported_with_its_traceback() -> None:
    try:
        raise RuntimeError("no")
    except RuntimeError:
        failure = Failure()
    event = {"log_format": "failed", "log_level": LogLevel.critical, "log_namespace": "n", "log_failure": failure}
    text, traceback = read_report(log_report(event))[4:]
    assert text == "failed" and traceback.startswith("Traceback") and traceback.endswith("RuntimeError: no")


def test_an_event_without_text_is_not_reported() -> None:
    assert log_report({"log_format": "", "log_level": LogLevel.debug}) == b""


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\n"])
def test_a_long_text_is_cut_and_fits_a_report(character: str) -> None:
    event = {"log_format": "{text}", "text": character * LONGEST_TEXT, "log_level": LogLevel.info, "log_namespace": "n"}
    assert read_report(log_report(event))[4] == character * LONGEST_TEXT
    longer = log_report({**event, "text": character * (LONGEST_TEXT + 5)})
    assert read_report(longer)[4] == character * LONGEST_TEXT + "… (5 more)"
    assert len(longer) <= LONGEST_REPORT


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\xff", b"{}", b"[]", b"7", b"[1]", b'["access"]', b'["access", "a", "b"]'),
        *(b'["log"]', b'["log", "loud", "n", "", "t"]', b'["log", "info"'),
    ],
)
def test_what_is_no_report_is_not_taken_for_one(line: bytes) -> None:
    assert read_report(line) == ("",)


@given(st.binary())
def test_anything_may_come(line: bytes) -> None:
    assert all(isinstance(word, str) for word in read_report(line))


@given(st.lists(st.text(), min_size=1))
def test_words_come_as_they_were_sent(words: list[str]) -> None:
    line = report("x", *words)
    assert line.count(b"\n") == 1
    assert read_report(line) == ("x", *words)
    assert json.loads(line) == ["x", *words]
