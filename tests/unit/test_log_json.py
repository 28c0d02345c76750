"""The log as JSON is one object a line, with the fields that are documented, whatever is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python import log as old_log
from twisted.python.failure import Failure

from netsvc.log import formats
from netsvc.log.formats import ACCESS_FIELDS, LOG_FIELDS, MOST_KNOWN, JsonLines
from netsvc.workers.channel import read_report
from netsvc.workers.reports import log_report, relay
from tests.builders.recorded import DATAGRAMS, NOON, STREAM, UNIX, ended_by, records
from tests.conftest import LoggedErrors


def read(line: str | None) -> dict[str, Any]:
    """Read what must be one line of ASCII, and no more."""
    assert line is not None
    assert line.endswith("\n") and line.count("\n") == 1
    assert line[:-1].isascii() and line[:-1].isprintable()
    found: dict[str, Any] = json.loads(line)
    return found


def event(template: object, **fields: object) -> dict[str, Any]:
    return {"log_format": template, "log_time": NOON, "log_level": LogLevel.info, "log_namespace": "netsvc", **fields}


def logged(say: Callable[[], object]) -> list[dict[str, Any]]:
    """Collect the objects of what is logged."""
    lines, found = JsonLines(), []

    def observe(event: Any) -> None:
        found.append(read(lines.event(event)))

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    try:
        say()
    finally:
        globalLogPublisher.removeObserver(observer)
    return found


def failure(error: Exception) -> Failure:
    try:
        raise error
    except type(error):
        return Failure()


def test_an_event_says_when_how_bad_who_and_what() -> None:
    assert read(JsonLines().event(event("{a} b", a=7, log_time=NOON + 0.0625, log_level=LogLevel.warn))) == {
        "time": "2026-05-28T20:26:40.062Z",
        "kind": "log",
        "level": "warn",
        "source": "netsvc",
        "text": "7 b",
    }


def test_a_failure_is_a_field_of_its_own() -> None:
    found = read(JsonLines(3).event(event("it failed", log_failure=failure(ValueError("wrong\n{x}")))))
    assert found["text"] == "it failed"
    assert found["failure"].startswith("Traceback") and found["failure"].endswith("builtins.ValueError: wrong\n{x}")
    assert set(found) == set(LOG_FIELDS) and found["worker"] == 3


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_cannot_be_shown_is_no_end_of_the_log() -> None:
    found = read(JsonLines().event(event("{a}", a=UnshowableError(), log_namespace=UnshowableError())))
    assert found["source"] == "-" and "Unshowable" in found["text"]
    assert read(JsonLines().event(event("x", log_failure=failure(UnshowableError()))))["failure"]
    assert read(JsonLines().event(event("x", log_level=None)))["level"] == "info"


def test_an_event_that_says_nothing_is_no_line() -> None:
    for one in (event(""), event(None), {}):
        assert JsonLines().event(one) is None


@pytest.mark.parametrize("when", [None, 1e20, float("nan"), float("-inf")])
def test_an_event_without_a_time_is_of_now(when: float | None) -> None:
    assert read(JsonLines(now=lambda: NOON).event(event("x", log_time=when)))["time"] == "2026-05-28T20:26:40.000Z"


def test_what_the_old_log_is_told_has_its_source_and_one_traceback(logged_errors: LoggedErrors) -> None:
    def say() -> None:
        old_log.msg("said", system="Echo,1")
        old_log.msg("bare")
        old_log.err(failure(KeyError("old")), "why")

    said, bare, failed = logged(say)
    assert (said["source"], said["text"]) == ("Echo,1", "said")
    assert bare["source"] == "-"
    assert failed["level"] == "critical"
    assert "why" in failed["text"] and "Traceback" not in failed["text"]
    assert "KeyError: 'old'" in failed["failure"]
    logged_errors.flush(KeyError)


def test_what_a_worker_says_has_its_number_as_a_field() -> None:
    told = read_report(log_report(event("it {a}", a="failed", log_failure=failure(OSError("no")), log_system="x")))
    [found] = logged(lambda: relay(2, *told[1:]))
    assert (found["worker"], found["text"], found["source"]) == (2, "it failed", "netsvc")
    assert "OSError: no" in found["failure"]
    [found] = logged(lambda: relay(2, *read_report(log_report(event("plain")))[1:]))
    assert (found["worker"], found["text"]) == (2, "plain") and "failure" not in found


def test_who_uses_the_words_of_a_worker_s_line_ends_nothing() -> None:
    found = logged(lambda: Logger("netsvc").info("[worker {worker}] {text}", text="x"))
    assert found[0]["text"] == "x" and "worker" not in found[0]


def test_a_record_has_the_documented_fields_in_their_order() -> None:
    assert read(JsonLines().record(STREAM)) == {
        "time": "2026-05-28T20:26:40.000Z",
        "kind": "access",
        "service": "echo",
        "protocol": "tcp",
        "transport": "stream",
        "peer": "192.0.2.7",
        "port": 5123,
        "listener": "0.0.0.0:9001",
        "bytes_in": 6,
        "bytes_out": 7,
        "seconds": 1.25,
        "reason": "peer",
    }
    assert list(read(JsonLines(1).record(ended_by("limit", "idle", DATAGRAMS)))) == list(ACCESS_FIELDS)
    assert "port" not in read(JsonLines().record(UNIX))


@given(st.text(), st.text())
def test_any_text_is_read_as_it_was_said(text: str, source: str) -> None:
    found = read(JsonLines().event(event("x{text}", text=text, log_namespace=source or "-")))
    assert found["text"] == f"x{text}".encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("half", ["\ud800", "\ud83dx"])
def test_half_of_a_pair_is_escaped_and_a_whole_one_is_not(half: str) -> None:
    assert "\\ud" in read(JsonLines().event(event("{a}", a=half)))["text"]
    assert read(JsonLines().event(event("{a}", a="\U0001f600")))["text"] == "\U0001f600"


@given(records(st.text(max_size=12) | st.sampled_from(["\n", '","kind":"log', "\x1b[2J\x7f", "\u2028", "\ud800", ""])))
def test_no_peer_forges_a_record_or_a_field_of_it(record: Any) -> None:
    line = JsonLines().record(record)
    found = read(line)
    for name in ("service", "protocol", "listener", "peer"):
        assert found[name] == getattr(record, name).encode("utf-8", "backslashreplace").decode()
    assert found["bytes_in"] == record.bytes_in and found["reason"] == record.reason
    assert set(found) <= set(ACCESS_FIELDS)
    assert list(found) == [name for name in ACCESS_FIELDS if name in found]


def test_a_name_without_end_is_cut() -> None:
    line = JsonLines(256).record(UNIX._replace(service="\U0001f600" * 999, listener="\0" * 999, peer="\ud800" * 999))
    assert len(line) < 16384
    assert read(line)["service"] == "\U0001f600" * 200 + "..."


def test_listeners_and_endings_without_end_cost_no_more_memory() -> None:
    lines = JsonLines()
    for number in range(MOST_KNOWN + 5):
        lines.record(ended_by("limit", f"limit{number}", STREAM._replace(listener=f"127.0.0.1:{number}")))
    assert formats._head.cache_info().currsize == formats._tail.cache_info().currsize == MOST_KNOWN
