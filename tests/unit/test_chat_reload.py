"""The chat takes new options in place: a reload does not part those who come from those who are there."""

from __future__ import annotations

import pytest

from netsvc.options import parse_settings
from netsvc.service import PlainCore, Service
from netsvc.services.chat import service
from netsvc.services.chat.core import LOBBY
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.options import ChatOptions
from tests.builders.chat import build_core, client, enter


def options(**chosen: object) -> ChatOptions:
    parsed = parse_settings(ChatOptions, {name.replace("_", "-"): value for name, value in chosen.items()})
    assert isinstance(parsed, ChatOptions)
    return parsed


def test_those_who_come_meet_those_who_are_there() -> None:
    core = build_core()
    ann = client(core, "ann")
    assert core.reconfigure(options(members=2, peer_members=2))
    bob = client(core, "bob")
    bob.sends("hello\n")
    assert b"hello" in ann.sees()
    with pytest.raises(ChatError, match=r"\b2\b"):
        enter(core)


def test_each_has_the_pace_and_the_lines_of_the_time_when_it_came() -> None:
    core = build_core()
    ann = client(core, "ann")
    core.reconfigure(options(line_bytes=64, rate=1, burst=1))
    bob = client(core)
    assert b" 64 " in bob.sends("x" * 100 + "\n")
    ann.sees()
    assert not ann.sends("x" * 100 + "\n")
    for number in range(10):
        assert not ann.sends(f"{number}\n")
    assert b" 1 " in bob.sends("one\ntwo\nthree\n")


def test_rooms_keep_what_was_said_last_and_there_may_be_fewer() -> None:
    core = build_core(history=5, rooms=5)
    ann, _ = enter(core, "ann")
    den = core.join(ann, "den")
    lobby = core.room_of(ann, LOBBY)
    for number in range(5):
        core.say(ann, den, str(number))
    core.reconfigure(options(history=2, rooms=2))
    assert [event.text for _, event in den.history] == ["3", "4"]
    core.say(ann, den, "5")
    assert [event.text for _, event in den.history] == ["4", "5"]
    core.say(ann, lobby, "x")
    with pytest.raises(ChatError, match=r"\b2\b"):
        core.join(ann, "other")
    core.reconfigure(options(history=3, rooms=3))
    core.say(ann, core.join(ann, "other"), "y")
    assert core.room_of(ann, "other").history.maxlen == den.history.maxlen == 3


def test_the_declaration_offers_it_and_one_without_it_does_not() -> None:
    from twisted.internet.task import Clock
    from twisted.logger import Logger

    from netsvc.interfaces import Context, Options

    context = Context(Clock(), Logger())
    instance = service.build(parse_settings(ChatOptions, {}), context)
    assert instance.reconfigure(options(members=1))  # type: ignore[attr-defined]
    plain: object = Service("plain", "A test", core=PlainCore, streams={"tcp": service.sources["line"]}).build(
        Options(), context
    )
    assert plain.reconfigure is None  # type: ignore[attr-defined]
