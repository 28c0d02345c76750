"""A member sees nothing of whom it ignores, and joins, leaves and times as it likes."""

from __future__ import annotations

import re

from netsvc.services.chat.events import Joined, Said
from tests.builders.chat import Client, build_core, client, enter, lobby, shown


def test_nothing_is_seen_of_an_ignored_member_whatever_its_name_becomes() -> None:
    core = build_core()
    ann = client(core, "ann")
    bob, _ = enter(core, "bob")
    carl, _ = enter(core, "carl")
    ann.sees()
    assert b"bob" in ann.sends("/ignore bob\n")
    core.say(bob, lobby(core), "hello")
    core.whisper(bob, core.find("ann"), "psst")
    core.rename(bob, "rob")
    core.say(bob, lobby(core), "hello")
    core.say(carl, lobby(core), "hi")
    assert ann.sees() == shown(Said("lobby", "carl", "hi"))
    assert b"rob" in ann.sends("/ignore\n")
    ann.sends("/unignore rob\n")
    core.say(bob, lobby(core), "back")
    assert ann.sees() == shown(Said("lobby", "rob", "back"))


def test_several_events_at_once_are_selected_one_by_one() -> None:
    core = build_core()
    ann = client(core, "ann")
    bob, _ = enter(core, "bob")
    carl, _ = enter(core, "carl")
    ann.sends("/ignore bob\n")
    with core.delivery:
        core.say(bob, lobby(core), "one")
        core.say(carl, lobby(core), "two")
    assert ann.sees() == shown(Said("lobby", "carl", "two"))


def test_joins_and_leaves_are_hidden_and_shown_again() -> None:
    core = build_core()
    ann = client(core, "ann")
    ann.sends("/quiet\n")
    bob, _ = enter(core, "bob")
    core.depart(bob)
    assert ann.sees() == b""
    ann.sends("/quiet\n")
    enter(core, None)
    assert ann.sees() == shown(Joined("lobby", "guest3"))


def test_lines_have_times() -> None:
    core = build_core()
    ann, bob = client(core, "ann"), client(core, "bob")
    ann.sends("/time\n")
    bob.sends("hello\n")
    assert re.fullmatch(rb"\(\d\d:\d\d\) \[lobby\] bob: hello\n", ann.sees())


def test_ignoring_is_refused_for_oneself_strangers_and_too_many() -> None:
    core = build_core(members=200, rate=1000, burst=1000)
    ann: Client = client(core, "ann")
    for line in ("/ignore ann\n", "/ignore nobody-here\n", "/unignore bob\n"):
        assert ann.sends(line).startswith(b"* ")
    for _ in range(101):
        member, _ = enter(core, None, room=None)
        answer = ann.sends(f"/ignore {member.name}\n")
    assert b"100" in answer
