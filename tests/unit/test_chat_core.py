from __future__ import annotations

import unicodedata

import pytest

from netsvc.services.chat.core import LOBBY, ChatCore
from netsvc.services.chat.events import (
    Departed,
    Displaced,
    Joined,
    Left,
    Reason,
    Renamed,
    Retitled,
    Stopping,
)
from netsvc.services.chat.names import ChatError
from tests.builders.chat import Recorder, build_core, enter, lobby


def refused_entry(core: ChatCore) -> bool:
    with pytest.raises(ChatError, match=rf"\b{len(core)}\b"):
        core.enter(Recorder())
    return True


class TestComingAndGoing:
    def test_a_newcomer_has_a_guest_name_and_is_in_no_room(self) -> None:
        core = build_core()
        member, _ = enter(core, room=None)
        assert (member.name, list(member.rooms), len(core)) == ("guest1", [], 1)

    def test_a_guest_name_is_for_guests(self) -> None:
        core = build_core()
        for name in ("GUEST3", "ｇｕｅｓｔ４", "guestl"):
            with pytest.raises(ChatError):
                enter(core, name)

    def test_what_looks_like_another_name_is_refused(self) -> None:
        core = build_core()
        ann, _ = enter(core, "paypal", "Den")
        with pytest.raises(ChatError, match="paypal"):
            enter(core, "раураl")
        with pytest.raises(ChatError, match="Den"):
            core.join(ann, "Dеn")
        core.rename(ann, "раураl")
        assert ann.name == "раураl" and core.find("раураl") is ann

    def test_more_names_can_be_reserved_by_a_reload(self) -> None:
        core = build_core()
        ann, _ = enter(core, "boss")
        core.reconfigure(build_core(reserved="boss,chef").options)
        assert core.find("boss") is ann
        for name in ("chef", "BOSS"):
            with pytest.raises(ChatError, match="reserved"):
                core.rename(ann, name)

    def test_a_guest_name_given_up_is_not_given_again(self) -> None:
        core = build_core()
        member, _ = enter(core)
        core.depart(member)
        assert enter(core)[0].name == "guest2"

    def test_the_member_over_the_limit_is_refused_and_one_fits_when_one_goes(self) -> None:
        core = build_core(members=2)
        first, _ = enter(core)
        enter(core)
        with pytest.raises(ChatError, match=r"\b2\b"):
            core.enter(Recorder())
        core.depart(first)
        enter(core)
        assert len(core) == 2

    def test_in_a_full_chat_who_was_silent_longest_gives_way(self) -> None:
        core = build_core(members=3, silence="60")
        clock = core.context.reactor
        ann, ann_got = enter(core, "ann")
        bob, bob_got = enter(core, "bob")
        eve, eve_got = enter(core, "eve")
        clock.advance(59)
        core.wait(ann)
        assert refused_entry(core)
        clock.advance(1)
        eve_got.take()
        newcomer, _ = enter(core, "zoe")
        assert (len(core), list(lobby(core).members)) == (3, [ann, eve, newcomer])
        assert (bob_got.take()[-1], bob_got.ended) == (Displaced(), 1)
        [gone, *_] = eve_got.take()
        assert gone == Departed("bob", Reason.SILENT)
        core.depart(bob)
        enter(core)
        assert eve_got.take()[-1] == Displaced()
        # Who has just come or talked stays.
        assert refused_entry(core)
        assert (ann_got.ended, eve_got.ended) == (0, 1)

    def test_a_departure_is_told_once_to_whoever_shared_a_room(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        bob, bob_got = enter(core, "bob")
        _, eve_got = enter(core, "eve", "elsewhere")
        core.join(ann, "den")
        core.join(bob, "den")
        bob_got.take()
        core.depart(ann, Reason.LOST)
        assert bob_got.take() == [Departed("ann", Reason.LOST)]
        assert eve_got.take() == []

    def test_departing_twice_is_departing_once_and_spares_whoever_has_the_name_now(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        core.depart(ann)
        heir, _ = enter(core, "ann")
        core.depart(ann)
        assert core.find("ann") is heir

    def test_drain_says_goodbye_ends_everybody_and_lets_nobody_in(self) -> None:
        core = build_core()
        recorders = [enter(core)[1] for _ in range(3)] + [enter(core, room=None)[1]]
        for recorder in recorders:
            recorder.take()
        core.drain()
        # Nobody is told that all the others went.
        assert [recorder.take() for recorder in recorders] == [[Stopping()]] * 4
        assert [recorder.ended for recorder in recorders] == [1] * 4
        assert len(core) == 0 and not lobby(core).members
        with pytest.raises(ChatError):
            core.enter(Recorder())
        core.drain()
        assert [recorder.ended for recorder in recorders] == [1] * 4


class TestNames:
    def test_a_new_name_is_told_once_to_whoever_shares_a_room(self) -> None:
        core = build_core()
        ann, ann_got = enter(core, "ann")
        bob, bob_got = enter(core, "bob")
        core.join(ann, "den")
        core.join(bob, "den")
        _, eve_got = enter(core, "eve", None)
        bob_got.take(), ann_got.take()
        core.rename(ann, "Änn")
        assert (bob_got.take(), ann_got.take(), eve_got.take()) == ([Renamed("ann", "Änn")], [], [])
        assert core.find("ÄNN") is ann

    @pytest.mark.parametrize("rival", ["BOB", "ｂｏｂ", "Bob", "ⓑob"])
    def test_a_name_is_taken_whatever_its_case_or_form(self, rival: str) -> None:
        core = build_core()
        enter(core, "bob")
        ann, _ = enter(core, "ann")
        with pytest.raises(ChatError, match=unicodedata.normalize("NFKC", rival)):
            core.rename(ann, rival)
        assert ann.name == "ann" and core.find("ann") is ann

    def test_one_may_change_the_case_of_ones_own_name_but_not_take_it_again(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        core.rename(ann, "Ann")
        assert ann.name == "Ann"
        with pytest.raises(ChatError, match="Ann"):
            core.rename(ann, "Ann")

    def test_a_name_given_up_is_free(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        core.rename(ann, "anna")
        assert enter(core, "ann")[0].name == "ann"

    def test_nobody_has_an_unknown_name_and_the_answer_is_safe_to_show(self) -> None:
        with pytest.raises(ChatError, match=r'"\\x1b'):
            build_core().find("\x1b[2J")


class TestRooms:
    def test_a_join_is_told_to_those_who_are_there(self) -> None:
        core = build_core()
        _, ann_got = enter(core, "ann")
        _, bob_got = enter(core, "bob")
        assert ann_got.take() == [Joined("lobby", "bob")]
        assert bob_got.take() == []

    def test_joining_again_changes_nothing(self) -> None:
        core = build_core()
        ann, _ = enter(core)
        _, bob_got = enter(core)
        assert core.join(ann, "#Lobby") is lobby(core)
        assert bob_got.take() == []

    @pytest.mark.parametrize("text", ["#den", "DEN", "＃Den", "﹟den", "ｄｅｎ"])
    def test_a_room_is_the_same_whatever_its_case_form_or_sign(self, text: str) -> None:
        core = build_core()
        ann, _ = enter(core, "ann", "#Den")
        assert [room.name for room in ann.rooms] == ["Den"]
        assert core.join(ann, text) in ann.rooms and len(core.rooms) == 2

    @pytest.mark.parametrize("text", ["", "#", "##den", "a b", "[a]"])
    def test_a_room_needs_a_proper_name(self, text: str) -> None:
        core = build_core()
        ann, _ = enter(core)
        with pytest.raises(ChatError, match=r"\b32\b"):
            core.join(ann, text)
        assert len(core.rooms) == 1

    def test_leaving_is_told_to_those_who_stay(self) -> None:
        core = build_core()
        ann, ann_got = enter(core, "ann")
        _, bob_got = enter(core, "bob")
        ann_got.take()
        core.leave(ann, core.room_of(ann, "LOBBY"))
        assert (bob_got.take(), ann_got.take(), list(ann.rooms)) == ([Left("lobby", "ann")], [], [])

    def test_only_a_room_that_one_is_in_is_ones_room(self) -> None:
        core = build_core()
        enter(core, "ann", "den")
        bob, _ = enter(core, "bob")
        for name in ("den", "nowhere"):
            with pytest.raises(ChatError, match=f'"{name}"'):
                core.room_of(bob, name)

    def test_a_member_is_in_so_many_rooms_and_no_more(self) -> None:
        core = build_core(member_rooms=2)
        ann, _ = enter(core)
        core.join(ann, "a")
        with pytest.raises(ChatError, match=r"\b2\b"):
            core.join(ann, "b")
        assert len(core.rooms) == 2
        core.leave(ann, lobby(core))
        core.join(ann, "b")

    def test_an_empty_room_is_remembered_until_its_place_is_needed(self) -> None:
        core = build_core(rooms=3)
        ann, _ = enter(core, "ann", "old")
        core.say(ann, next(iter(ann.rooms)), "old news")
        core.join(ann, "young")
        core.leave(ann, core.room_of(ann, "old"))
        assert [room.name for room in core.rooms] == ["lobby", "young"]
        core.leave(ann, core.room_of(ann, "young"))
        # Coming back makes it young again.
        core.leave(ann, core.join(ann, "old"))
        core.join(ann, "third")
        assert core.rooms.find("young") is None
        assert [event.text for _, event in core.join(ann, "old").history] == ["old news"]

    def test_when_every_room_is_in_use_no_new_one_is_made_and_the_lobby_stays(self) -> None:
        core = build_core(rooms=2)
        ann, _ = enter(core, "ann", "den")
        bob, _ = enter(core, "bob", None)
        with pytest.raises(ChatError, match=r"\b2\b"):
            core.join(bob, "other")
        core.join(bob, LOBBY)
        core.depart(bob)
        with pytest.raises(ChatError, match=r"\b2\b"):
            core.join(ann, "other")
        assert lobby(core) is core.join(ann, LOBBY)

    def test_a_topic_is_told_cleaned_and_limited(self) -> None:
        core = build_core(topic_length=5)
        ann, ann_got = enter(core, "ann")
        _, bob_got = enter(core, "bob")
        ann_got.take()
        core.retitle(ann, lobby(core), " t\x1be\ta ")
        assert (bob_got.take(), ann_got.take()) == ([Retitled("lobby", "ann", "te a")], [])
        core.retitle(ann, lobby(core), "12345")
        with pytest.raises(ChatError, match=r"\b6\b.*\b5\b"):
            core.retitle(ann, lobby(core), "123456")
        assert lobby(core).topic == "12345"
        core.retitle(ann, lobby(core), "")
        assert lobby(core).topic == ""


@pytest.mark.parametrize("character", ["a", "\u0300"])
def test_what_is_too_long_for_a_name_names_nobody_and_no_room(character: str) -> None:
    core = build_core()
    member, _ = enter(core)
    # To compare it would take the square of its length.
    text = character * 100_000
    for ask in (lambda: core.find(text), lambda: core.join(member, text), lambda: core.room_of(member, text)):
        with pytest.raises(ChatError):
            ask()
    assert core.rooms.find(text) is None


def test_a_name_is_found_in_its_longest_form() -> None:
    core = build_core(name_length=8)
    member, _ = enter(core)
    core.rename(member, "\u1f82" * 8)
    assert core.find("\u03b1\u0313\u0300\u0345" * 8) is member
