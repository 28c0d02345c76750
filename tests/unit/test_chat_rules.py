"""Rules of a room that clients of IRC have words for: keys, limits, voice, exceptions, masks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.services.chat.moderation import BanTarget
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.rules import ADMIT, BAN, EXCEPT, MUTE, EntryError, matches
from tests.builders.chat import Person, build_core, enter, kept_by


def test_a_room_with_a_key_is_for_those_who_know_it() -> None:
    core = build_core()
    ann, bob = Person(core, "ann"), Person(core, "bob")
    ann.does("/join den", "/mode +key:sesame")
    bob.does("/join den", "/join den wrong")
    assert core.rooms.find("den") not in bob.conversation.member.rooms
    bob.does("/join den sesame")
    assert core.rooms.find("den") in bob.conversation.member.rooms


def test_a_room_with_a_limit_is_for_so_many() -> None:
    core = build_core()
    ann, _ = enter(core, "ann", "den")
    den = core.rooms.open("den", "")
    core.moderation.set_modes(ann, den, ["+limit:1"])
    bob, _ = enter(core, "bob", None)
    with pytest.raises(EntryError) as refused:
        core.join(bob, "den")
    assert refused.value.reason == "full"
    core.moderation.invite(ann, den, bob)
    assert core.join(bob, "den") is den


@pytest.mark.parametrize(
    "mode", ["key:", "key:a b", "key:a,b", "limit:", "limit:0", "limit:-1", "limit:x", "limit:1" * 3]
)
def test_a_mode_with_a_wrong_value_changes_nothing(mode: str) -> None:
    core = build_core()
    ann, _ = enter(core, "ann", "den")
    den = core.rooms.open("den", "")
    with pytest.raises(ChatError):
        core.moderation.set_modes(ann, den, [f"+{mode}"])
    assert not den.rules.all_modes


def test_voice_lets_a_member_speak_until_it_leaves() -> None:
    core = build_core()
    ann, bob = Person(core, "ann"), Person(core, "bob")
    ann.does("/join den", "/mode +moderated")
    bob.does("/join den", "lost")
    ann.does("/voice bob")
    bob.does("heard")
    bob.does("/leave", "/join den", "lost again")
    den = core.rooms.open("den", "")
    assert [event.text for _, event in den.history] == ["heard"]
    ann.does("/voice bob", "/devoice bob")
    assert not den.rules.voiced


def test_exceptions_and_standing_invitations() -> None:
    core = build_core()
    ann, _ = enter(core, "ann", "den")
    den = core.rooms.open("den", "")
    bob, _ = enter(core, "bob", None)
    core.moderation.ban(ann, den, BanTarget(BAN, "mask", "b*!*@*", "b*"), None, "")
    with pytest.raises(EntryError):
        core.join(bob, "den")
    core.moderation.ban(ann, den, BanTarget(EXCEPT, "mask", "bo?!*@*", "bo?"), None, "")
    core.join(bob, "den")
    core.moderation.ban(ann, den, BanTarget(MUTE, "name", "bob", "bob"), None, "")
    core.say(bob, den, "an exception is one from mutes, too")
    core.leave(bob, den)
    core.moderation.set_modes(ann, den, ["+invite"])
    with pytest.raises(EntryError):
        core.join(bob, "den")
    core.moderation.ban(ann, den, BanTarget(ADMIT, "name", "bob", "bob"), None, "")
    core.join(bob, "den")


def test_a_registered_room_keeps_its_key_and_limit() -> None:
    core = build_core()
    ann, _ = enter(core, "ann", "den")
    den = core.rooms.open("den", "")
    core.moderation.set_modes(ann, den, ["+key:sesame", "+limit:7", "+secret"])
    core.rooms.set_founder(den, "ann")
    core.keep_room(den)
    (record,) = [room for room in kept_by(core).rooms if room.key == "den"]
    again = build_core()
    room = again.rooms.restore(record)
    assert (room.rules.key, room.rules.limit, set(room.rules.modes)) == ("sesame", 7, {"secret"})


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*", "", True),
        ("", "a", False),
        ("a*c", "abbc", True),
        ("a*c", "abbd", False),
        ("*b?", "abbc", True),
        ("?", "", False),
        ("a**", "a", True),
        ("*a*b*c", "xaxbxcxc", True),
    ],
)
def test_patterns(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_a_pattern_fits_as_a_regular_expression_does(pattern: str, text: str) -> None:
    import re

    expression = "".join({"*": ".*", "?": "."}.get(each, each) for each in pattern)
    assert matches(pattern, text) is bool(re.fullmatch(expression, text))


def test_many_stars_take_no_time() -> None:
    assert not matches("*a" * 100 + "*b", "a" * 5000)
