"""The log as text has the lines of twistd's own, and a line of words for each access record."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel, textFileLogObserver
from twisted.python import log as old_log
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.text import is_unsafe
from netsvc.log.formats import ACCESS_FIELDS, JsonLines, TextLines, access_text, source_name
from netsvc.workers.reports import LONGEST_TEXT
from tests.builders.recorded import DATAGRAMS, NOON, STREAM, UNIX, ended_by, records


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def lines(event: dict[str, Any]) -> tuple[str, str]:
    """Write an event as we do and as Twisted does."""
    theirs = io.StringIO()
    textFileLogObserver(theirs)(event)
    return TextLines().event(event) or "", theirs.getvalue()


def event(template: object, **fields: object) -> dict[str, Any]:
    return {"log_format": template, "log_time": NOON, "log_level": LogLevel.info, "log_namespace": "netsvc", **fields}


class Thing:
    name = "thing"

    def call(self) -> str:
        return "called"


@pytest.mark.parametrize(
    "one",
    [
        event("ready"),
        event("{line}", line='127.0.0.1:1 "f" 7 bytes in 0.000 s: sent'),
        event("{line}", line="two\nlines"),
        event("{line}", line=""),
        event(""),
        event(None),
        event(b"bytes {line}", line="x"),
        event(7),
        event("{line} {line!r} {count:03d}", line="x", count=7),
        event("{thing.name} {thing.call()} {call()}", thing=Thing(), call=lambda: "called"),
        event("{thing}", thing=Unshowable()),
        event("{missing}"),
        event("{0} {}"),
        event("{{doubled}} {line}", line="x"),
        event("half { open"),
        event("half } closed"),
        event("{名}", 名="x"),
        event("{line}", line="x", log_system="-"),
        event("{line}", line="x", log_system="two\nlines"),
        event("{line}", line="x", log_system=7),
        event("{line}", line="x", log_system=Unshowable()),
        event("{line}", line="x", log_level=None),
        event("{line}", line="x", log_time=None),
        event("{line}", line="x", log_namespace=None),
        event("{line}", line="x", log_flattened={"line!:": "flat"}),
        {"log_format": "bare"},
        {},
        event("{count} of {what}", count=3, what=None),
        event("{line} 中文", line="\ud800"),
    ],
)
def test_an_event_is_the_line_that_twisted_writes(one: dict[str, Any]) -> None:
    ours, theirs = lines(one)
    # Where a thing lies in memory is no part of it.
    assert ours == theirs


def test_a_failure_has_its_traceback() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        ours, theirs = lines(event("it {what}", what="failed", log_failure=Failure()))
    assert ours == theirs
    assert "\n\tTraceback" in ours


@given(
    st.text("{}abc.!:() \n", max_size=12),
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "ab"]), st.none() | st.integers() | st.text(max_size=3), max_size=3
    ),
)
def test_any_format_is_filled_in_as_twisted_does(template: str, fields: dict[str, Any]) -> None:
    ours, theirs = lines(event(template, **fields))
    assert ours == theirs


@given(st.lists(st.floats(0, 2e9) | st.integers(0, 2_000_000_000), min_size=1, max_size=5))
def test_the_time_is_that_of_each_event(times: list[float]) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    mine, reference = TextLines(), textFileLogObserver(theirs)
    # Twisted rounds to microseconds, and so may be in the next second a little early.
    for when in (round(each, 3) for each in times):
        for one in (event("{a}", a="x", log_time=when), event("{a!r}", a="x", log_time=when)):
            ours.write(mine.event(one) or "")
            reference(one)
    assert ours.getvalue() == theirs.getvalue()


def test_what_the_old_log_and_a_logger_say_is_written() -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    mine = TextLines()

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        ours.write(mine.event(event) or "")

    observers = observe, textFileLogObserver(theirs)
    for observer in observers:
        old_log.addObserver(observer)
    try:
        old_log.msg("said {as} it is")
        old_log.msg(format="%(count)d things", count=3)
        Logger("some.place").warn("{thing} is late", thing="it")
        print("nothing", file=io.StringIO())
    finally:
        for observer in observers:
            old_log.removeObserver(observer)
    assert ours.getvalue() == theirs.getvalue()
    assert "it is late" in ours.getvalue()


def test_a_record_is_a_line_of_words() -> None:
    assert TextLines().record(STREAM).partition(" ")[2] == (
        "[netsvc.access#info] echo tcp 192.0.2.7:5123 listener=0.0.0.0:9001 bytes_in=6 bytes_out=7 seconds=1.250 "
        "reason=peer\n"
    )
    assert TextLines(2).record(DATAGRAMS).partition("] ")[2] == (
        "echo udp [2001:db8::1]:53 listener=[::]:9001 bytes_in=20 bytes_out=0 seconds=60.000 reason=limit "
        "limit=sessions datagrams_in=2 datagrams_out=0 worker=2\n"
    )
    assert access_text(UNIX).startswith(r"files classic uid:7 listener=/run/a\x20b bytes_in=0")
    assert access_text(UNIX._replace(peer="")).startswith("files classic - listener=")


def test_a_record_has_the_time_of_an_event() -> None:
    one = TextLines()
    for when in (NOON, NOON + 0.9, NOON + 1, NOON - 1):
        words = (one.event(event("ready", log_time=when)) or "").split()[0]
        assert one.record(STREAM._replace(time=when)).split()[0] == words


def test_what_a_record_says_behind_its_peer_has_the_documented_names_in_their_order() -> None:
    words = TextLines(2).record(ended_by("limit", "idle", DATAGRAMS)).split()
    names = [word.partition("=")[0] for word in words if "=" in word]
    assert names == list(ACCESS_FIELDS)[list(ACCESS_FIELDS).index("listener") :]


ODD = st.sampled_from(["\n", " a=b ", "\x1b[2J", "\u2028x", "\u00a0", '"', "\ud800", ""])


@given(records(st.text(max_size=12) | ODD))
def test_no_peer_forges_a_record_or_a_word_of_it(record: Any) -> None:
    line = TextLines().record(record)
    assert line.endswith("\n") and not any(map(is_unsafe, line[:-1]))
    words = 10 + (record.limit is not None) + 2 * (record.datagrams_in is not None)
    assert len(line.split()) == len(line[:-1].split(" ")) == words
    assert len(line) < LONGEST_TEXT


def test_a_name_without_end_is_cut() -> None:
    long = UNIX._replace(service="\0" * 999, listener="\u2028" * 999, peer="\x85" * 999)
    assert len(TextLines(256).record(long)) < 5000


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("twisted.scripts._twistd_unix.UnixAppLogger", "twistd"),
        ("twisted.application.app.AppLogger", "twistd"),
        ("twisted.internet.base", "twisted.internet"),
        ("twisted.web.server.Site", "twisted.web"),
        ("twisted", "twisted"),
        ("netsvc.drain", "netsvc.drain"),
        ("my.long.module.Thing", "my.long.module.Thing"),
    ],
)
def test_twisted_has_short_names(namespace: str, name: str) -> None:
    assert source_name(namespace) == name
    failed = event("{line}", line="x", log_failure=Failure(ValueError("x")))
    for one in (event("{line}", line="x"), event("{line!r}", line="x"), failed):
        one["log_namespace"] = namespace
        assert f" [{name}#info] " in (TextLines().event(one) or "")
        assert f'"source":"{name}"' in (JsonLines().event(one) or "")
