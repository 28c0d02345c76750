from __future__ import annotations

import pytest

from netsvc.services.chat import events
from netsvc.services.chat.events import Acted, Departed, Event, Joined, Left, Reason, Renamed, Retitled, Said, Whispered
from netsvc.services.chat.wording import line_form, past, wording
from tests.builders.facts import states

#: What is of a member's own making, and what the server says.
TALK = [
    (Said("lobby", "ann", "hi"), ["lobby", "ann", "hi"]),
    (Acted("lobby", "ann", "waves"), ["lobby", "ann", "waves"]),
    (Whispered("ann", "psst"), ["ann", "you", "psst"]),
]
NEWS = [
    (Joined("lobby", "ann"), ["ann", "lobby"]),
    (Left("lobby", "ann"), ["ann", "lobby"]),
    (Departed("ann"), ["ann"]),
    *((Departed("ann", reason), ["ann", reason.value]) for reason in Reason),
    (Renamed("ann", "eve"), ["ann", "eve"]),
    (Retitled("lobby", "ann", "tea"), ["ann", "lobby", "tea"]),
    (Retitled("lobby", "ann", ""), ["ann", "lobby"]),
    (events.Closed("den"), ["den", "/rooms"]),
    (events.Displaced(), ["full"]),
    (events.Displaced(7), ["full", "7"]),
    (events.Stopping(), ["stopping"]),
]


@pytest.mark.parametrize(("event", "facts"), [*TALK, *NEWS])
def test_the_line_of_an_event_has_its_facts(event: Event, facts: list[str]) -> None:
    assert states(wording(event), *facts)


def test_the_lines_of_the_server_begin_with_an_asterisk_and_those_of_members_do_not() -> None:
    assert all(wording(event).startswith("* ") for event, _ in NEWS)
    assert not any(wording(event).startswith("*") for event, _ in TALK)
    # Nor can what a member says look like what it does, or what it says to one alone.
    assert len({wording(event).split("ann")[0] + wording(event).split("ann")[1][:1] for event, _ in TALK}) == 3


def test_what_is_different_is_worded_differently() -> None:
    lines = [wording(event) for event, _ in [*TALK, *NEWS]]
    # Without a reason, and with the reason of one that asked to leave.
    assert len(set(lines)) == len(lines) - 1


def test_an_event_without_a_line_is_not_shown() -> None:
    several = events.Several((events.Away("ann", "tea"), Said("lobby", "ann", "hi"), events.Identified("ann", "ann")))
    assert line_form("utf-8", "\n").render(several) == b"[lobby] ann: hi\n"
    assert line_form("utf-8", "\n").with_times.render(events.Away("ann", "tea")) == b""


def test_no_event_is_without_a_line() -> None:
    from netsvc.services.chat.wording import _WORDINGS

    for_clients_of_other_forms = {events.Away, events.Described, events.Identified, events.Marked, events.Tagged}

    exported = {getattr(events, name) for name in events.__all__}
    declared = {each for each in exported if isinstance(each, type) and issubclass(each, Event)}
    assert set(_WORDINGS) == declared - {Event, events.Several} - for_clients_of_other_forms


@pytest.mark.parametrize(
    ("age", "facts"),
    [
        (-5, ["now"]),
        (0.9, ["now"]),
        (1, ["1", "second "]),
        (59.9, ["59", "seconds "]),
        (60, ["1", "minute "]),
        (7200, ["2", "hours "]),
        (86400, ["1", "day "]),
        (1e6, ["11", "days "]),
    ],
)
def test_the_past_is_marked_as_such(age: float, facts: list[str]) -> None:
    event = Said("lobby", "ann", "hi")
    line = past(event, age)
    assert line.endswith(wording(event))
    mark = line.removesuffix(wording(event))
    assert mark.startswith("(") and states(mark, *facts)


def test_an_event_is_rendered_once_a_form() -> None:
    event = Said("lobby", "小明", "é")
    assert line_form("utf-8", "\n").render(event) is line_form("utf-8", "\n").render(event)
    line = wording(event)
    assert event.rendered == {line_form("utf-8", "\n"): f"{line}\n".encode()}
    assert line_form("gbk", "\r\n").render(event) == f"{line}\r\n".encode("gbk")
    assert line_form("latin-1", "\n").render(event) == f"{line}\n".replace("小明", "??").encode("latin-1")
    assert len(event.rendered) == 3


def test_several_events_are_rendered_as_their_lines_and_once_a_form() -> None:
    several = events.Several((Said("lobby", "小明", "é"), Joined("lobby", "ann")))
    first, second = map(wording, several.events)
    assert line_form("utf-8", "\n").render(several) == f"{first}\n{second}\n".encode()
    assert line_form("gbk", "\r\n").render(several) == f"{first}\r\n{second}\r\n".encode("gbk")
    assert line_form("gbk", "\r\n").render(several) is several.rendered[line_form("gbk", "\r\n")]
    assert all(event.rendered == {} for event in several.events)
