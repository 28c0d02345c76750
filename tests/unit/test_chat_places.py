"""A few addresses cannot take all places and rooms from others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.services.chat.core import LOBBY, ChatCore
from netsvc.services.chat.events import Closed, Departed, Displaced, Reason, Said
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.places import Places
from tests.builders.chat import Client, Recorder, build_core, client, enter, lobby, shown
from tests.builders.facts import states


@dataclass(frozen=True)
class Guest:
    peer: str
    number: int


def filled(**numbers: int) -> Places[Guest]:
    """Places of so many guests of each peer, each heard at the time that is its number, all peers in turns."""
    places: Places[Guest] = Places()
    guests = [Guest(peer, number) for peer, count in numbers.items() for number in range(count)]
    for guest in sorted(guests, key=lambda guest: guest.number):
        places.heard(guest, guest.number)
    return places


class TestPlaces:
    def test_the_largest_crowd_makes_room_and_its_longest_silent_member_first(self) -> None:
        places = filled(a=3, b=5, c=4)
        assert places.find_victim("d", 5, kept=3, silence=60) == (Guest("b", 0), 5)
        places.heard(Guest("b", 0), 5)
        assert places.find_victim("a", 5, kept=3, silence=60) == (Guest("b", 1), 5)

    def test_as_many_as_are_kept_keep_their_places(self) -> None:
        places = filled(a=3, b=3)
        assert places.find_victim("c", 5, kept=3, silence=60) is None
        places.heard(Guest("b", 3), 5)
        assert places.find_victim("c", 5, kept=3, silence=60) == (Guest("b", 0), 4)
        places.leave(Guest("b", 0))
        assert places.find_victim("c", 5, kept=3, silence=60) is None

    def test_no_peer_gets_more_than_the_one_that_makes_room(self) -> None:
        places = filled(a=6, b=5, c=4)
        assert places.find_victim("c", 5, kept=3, silence=60) == (Guest("a", 0), 6)
        assert places.find_victim("b", 5, kept=3, silence=60) is None
        assert places.find_victim("a", 5, kept=3, silence=60) is None

    def test_otherwise_the_longest_silent_of_all_does(self) -> None:
        places = filled(a=2, b=2)
        places.heard(Guest("a", 0), 5)
        assert places.find_victim("c", 59.9, kept=3, silence=60) is None
        assert places.find_victim("c", 60, kept=3, silence=60) == (Guest("b", 0), 0)

    def test_a_peer_that_has_as_many_as_are_kept_evicts_its_own_only(self) -> None:
        places = filled(a=3, b=3)
        places.heard(Guest("a", 0), 3)
        assert places.find_victim("a", 60, kept=3, silence=60) is None
        assert places.find_victim("a", 61, kept=3, silence=60) == (Guest("a", 1), 0)

    @given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.sampled_from("abcdefghi"), st.integers(1, 9))
    def test_a_place_goes_from_more_to_fewer(self, peers: list[str], peer: str, kept: int) -> None:
        places: Places[Guest] = Places()
        for number, each in enumerate(peers):
            places.heard(Guest(each, number), 0)
        found = places.find_victim(peer, 0, kept=kept, silence=60)
        if found is None:
            assert max(map(peers.count, peers)) <= max(kept, peers.count(peer) + 1)
        else:
            assert found[1] == peers.count(found[0].peer) > max(kept, peers.count(peer) + 1)


class TestMembers:
    def test_eight_addresses_that_took_all_places_make_room_for_others(self) -> None:
        core = build_core(members=80, peer_members=5)
        for number in range(80):
            enter(core, room=None, peer=f"192.0.2.{number % 8}")
        # None of them is silent.
        for number in range(40):
            member, got = enter(core, peer=f"198.51.100.{number}")
            assert member in lobby(core).members and not got.ended
        assert len(core) == 80
        with pytest.raises(ChatError):
            core.enter(Recorder("203.0.113.1"))

    def test_a_class_behind_one_address_is_as_large_as_there_are_places(self) -> None:
        core = build_core(members=80, peer_members=5)
        members = [enter(core, room=None)[0] for _ in range(80)]
        assert len(core) == len(members) == 80
        with pytest.raises(ChatError):
            core.enter(Recorder())

    def test_who_shares_a_room_is_told_why_a_member_left(self) -> None:
        # What one address keeps is less in a small chat, unless the operator says it.
        core = build_core(members=3)
        _, ann_got = enter(core, "ann", peer="a")
        enter(core, "bob", peer="b")
        _, eve_got = enter(core, "eve", peer="a")
        eve_got.take()
        core.enter(Recorder("c"))
        assert eve_got.take() == [Departed("ann", Reason.CROWDED)]
        assert (ann_got.take()[-1], ann_got.ended) == (Displaced(2), 1)

    def test_a_client_is_told_how_many_are_of_its_address(self) -> None:
        core = build_core(members=2, peer_members=1)
        first, second = client(core), client(core)
        first.sees()
        core.enter(Recorder("198.51.100.1"))
        assert first.sees() == shown(Displaced(2))
        assert first.transport.disconnecting and not second.transport.disconnecting
        for each in (first, second):
            each.lose()


class TestRooms:
    @pytest.fixture
    def core(self) -> ChatCore:
        """Seven rooms are in use: the lobby, five that one peer founded, and one of another."""
        core = build_core(rooms=7, peer_rooms=3)
        crowd = [enter(core, f"crowd{number}", None, peer="a")[0] for number in range(10)]
        for number in range(5):
            for member in crowd[: 3 if number == 2 else 4]:
                core.join(member, f"a{number}")
        enter(core, "bob", "b0", peer="b")
        return core

    def names(self, core: ChatCore) -> list[str]:
        return [room.name for room in core.rooms]

    def test_the_peer_with_the_most_rooms_loses_the_smallest_to_one_with_fewer(self, core: ChatCore) -> None:
        eve, eve_got = enter(core, "eve", LOBBY, peer="c")
        core.join(eve, "c0")
        assert self.names(core) == ["lobby", "a0", "a1", "a3", "a4", "b0", "c0"]
        core.join(eve, "c1")
        assert self.names(core) == ["lobby", "a1", "a3", "a4", "b0", "c0", "c1"]
        # Three are kept.
        with pytest.raises(ChatError):
            core.join(eve, "c2")
        assert len(self.names(core)) == 7 and not eve_got.take()

    def test_who_founded_as_many_gets_none(self, core: ChatCore) -> None:
        with pytest.raises(ChatError):
            core.join(core.find("crowd9"), "a5")
        assert len(self.names(core)) == 7

    def test_the_members_are_told_and_are_in_it_no_more(self, core: ChatCore) -> None:
        _, zoe_got = enter(core, "zoe", "a2", peer="z")
        zoe, eve = core.find("zoe"), enter(core, "eve", None, peer="c")[0]
        core.leave(core.find("crowd0"), core.room_of(core.find("crowd0"), "a2"))
        zoe_got.take()
        core.join(eve, "c0")
        assert zoe_got.take() == [Closed("a2")] and not zoe.rooms
        with pytest.raises(ChatError):
            core.room_of(zoe, "a2")

    def test_the_founder_is_the_first_one_in_it(self, core: ChatCore) -> None:
        [room] = core.find("bob").rooms
        zoe, _ = enter(core, "zoe", "b0", peer="z")
        core.leave(core.find("bob"), room)
        assert room.founder == "b"
        core.leave(zoe, room)
        core.join(zoe, "b0")
        assert room.founder == "z"

    def test_one_who_founds_a_room_may_be_in_the_one_that_is_closed(self, core: ChatCore) -> None:
        bob = core.find("bob")
        core.join(bob, "a2")
        core.leave(core.find("crowd0"), core.room_of(core.find("crowd0"), "a2"))
        core.leave(core.find("crowd1"), core.room_of(core.find("crowd1"), "a2"))
        core.join(bob, "b1")
        assert [room.name for room in bob.rooms] == ["b0", "b1"]

    def test_a_line_for_a_closed_room_goes_to_no_other(self) -> None:
        core = build_core(rooms=3)
        ann = client(core, "ann")
        ann.sends("/join y\n/join x\n")
        _, bob_got = enter(core, "bob", "y")
        eve, _ = enter(core, "eve", LOBBY, peer="198.51.100.1")
        ann.sees()
        core.join(eve, "z")
        assert ann.sees() == shown(Closed("x"))
        bob_got.take()
        assert states(ann.sends("hi\n"), "* ", "/join ROOM", "/rooms")
        ann.sends("/join y\nhi\n")
        assert bob_got.take() == [Said("y", "ann", "hi")]
        ann.lose()


def test_a_client_counts_for_its_address() -> None:
    core = build_core()
    assert Client(core).protocol.peer == "192.168.1.1"
