from __future__ import annotations

import pytest

from netsvc.services.chat import events
from netsvc.services.chat.dialect import Dialect
from netsvc.services.chat.events import Acted, Departed, Event, Joined, Left, Renamed, Retitled, Said, Whispered
from netsvc.services.chat.wording import form, past, wording


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Said("lobby", "ann", "hi"), "[lobby] ann: hi"),
        (Acted("lobby", "ann", "waves"), "[lobby] * ann waves"),
        (Whispered("ann", "psst"), "ann -> you: psst"),
        (Joined("lobby", "ann"), "* ann joined lobby"),
        (Left("lobby", "ann"), "* ann left lobby"),
        (Departed("ann", ""), "* ann left the chat"),
        (Departed("ann", "connection lost"), "* ann left the chat (connection lost)"),
        (Renamed("ann", "eve"), "* ann is now eve"),
        (Retitled("lobby", "ann", "tea"), "* ann set the topic of lobby: tea"),
        (Retitled("lobby", "ann", ""), "* ann removed the topic of lobby"),
        (events.Stopping(), "* the server is stopping, goodbye"),
    ],
)
def test_every_event_has_a_line(event: Event, line: str) -> None:
    assert wording(event) == line


def test_no_event_is_without_a_line() -> None:
    from netsvc.services.chat.wording import _WORDINGS

    declared = {getattr(events, name) for name in events.__all__} - {Event, events.Outlet, events.Several}
    assert set(_WORDINGS) == declared


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (-5, "just now"),
        (0.9, "just now"),
        (1, "1 second ago"),
        (59.9, "59 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400, "1 day ago"),
        (1e6, "11 days ago"),
    ],
)
def test_the_past_is_marked_as_such(age: float, words: str) -> None:
    assert past(Said("lobby", "ann", "hi"), age) == f"({words}) [lobby] ann: hi"


def test_an_event_is_rendered_once_a_form() -> None:
    event = Said("lobby", "小明", "é")
    assert form("utf-8", "\n").render(event) is form("utf-8", "\n").render(event)
    assert event.rendered == {form("utf-8", "\n"): "[lobby] 小明: é\n".encode()}
    assert form("gbk", "\r\n").render(event) == "[lobby] 小明: é\r\n".encode("gbk")
    assert form("latin-1", "\n").render(event) == b"[lobby] ??: \xe9\n"
    assert len(event.rendered) == 3


def test_several_events_are_rendered_as_their_lines_and_once_a_form() -> None:
    several = events.Several((Said("lobby", "小明", "é"), Joined("lobby", "ann")))
    assert form("utf-8", "\n").render(several) == "[lobby] 小明: é\n* ann joined lobby\n".encode()
    assert form("gbk", "\r\n").render(several) == "[lobby] 小明: é\r\n* ann joined lobby\r\n".encode("gbk")
    assert form("gbk", "\r\n").render(several) is several.rendered[form("gbk", "\r\n")]
    assert all(event.rendered == {} for event in several.events)


def test_a_client_is_taken_for_what_only_it_can_be() -> None:
    dialect = Dialect("gbk")
    assert dialect.read("é中".encode()) == "é中" and dialect.form is form("utf-8", "\n")
    # In neither.
    assert dialect.read(b"\xff\x20") == "\ufffd " and dialect.encoding == "utf-8"
    assert dialect.read("大家好".encode("gbk")) == "大家好"
    assert (dialect.encoding, dialect.form) == ("gbk", form("gbk", "\n"))
    # These bytes are UTF-8 as well: from now on they are read as GBK all the same.
    assert dialect.read("联通".encode("gbk")) == "联通"
    assert dialect.read(b"\xff\x20") == "\ufffd " and dialect.encoding == "gbk"
    # Not GBK, but UTF-8: a UTF-8 client had sent half a character before.
    assert dialect.read("中".encode()) == "中" and dialect.encoding == "utf-8"


def test_a_client_is_answered_with_its_own_line_end() -> None:
    dialect = Dialect("gbk")
    dialect.end_with_return()
    assert dialect.form is form("utf-8", "\r\n")
    dialect.read("好".encode("gbk"))
    dialect.end_with_return()
    assert dialect.form is form("gbk", "\r\n")
