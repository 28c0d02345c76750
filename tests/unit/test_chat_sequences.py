from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netsvc.services.chat.core import LOBBY, Member
from netsvc.services.chat.events import (
    Closed,
    Departed,
    Event,
    Joined,
    Left,
    Reason,
    Renamed,
    Said,
    Whispered,
)
from netsvc.services.chat.names import ChatError, name_key
from tests.builders.chat import Recorder, build_core, enter, lobby

_NAMES = st.sampled_from(["ann", "ANN", "bob", "ｂｏｂ", "小明", "guest2", "Guest5", "ß", "SS", "a b", "", "you"])
_ROOMS = st.sampled_from(["lobby", "#LOBBY", "a", "A", "b", "c", "d", "大厅", "no way", ""])
_WHO = st.integers(0, 7)


class ChatMachine(RuleBasedStateMachine):
    """Any members doing anything: checked against a record of who ought to have been told what."""

    def __init__(self) -> None:
        super().__init__()
        self.core = build_core(members=5, peer_members=2, rooms=3, peer_rooms=1, member_rooms=2, history=2)
        self.present: list[tuple[Member, Recorder]] = []
        self.due: dict[Member, list[Event]] = {}
        self.said = 0
        self.blocks = 0

    @rule()
    def begin_something_that_came_in_one_piece(self) -> None:
        self.core.delivery.__enter__()
        self.blocks += 1

    @rule()
    def end_something_that_came_in_one_piece(self) -> None:
        if self.blocks:
            self.blocks -= 1
            self.core.delivery.__exit__(None, None, None)

    def pick(self, number: int) -> tuple[Member, Recorder] | None:
        return self.present[number % len(self.present)] if self.present else None

    def owe(self, members: Any, event: Event) -> None:
        for member in dict.fromkeys(members):
            self.due[member].append(event)

    def neighbours(self, member: Member) -> list[Member]:
        return [other for room in member.rooms for other in room.members if other is not member]

    @rule(peer=st.sampled_from("abc"))
    def come(self, peer: str) -> None:
        recorder = Recorder(peer)
        crowds = Counter(member.peer for member, _ in self.present)
        neighbours = {member: self.neighbours(member) for member, _ in self.present}
        try:
            member = self.core.enter(recorder)
        except ChatError:
            assert len(self.present) == 5
            assert max(crowds.values()) <= max(2, crowds[peer] + 1)
            return
        for evicted in [each for each in self.present if each[1].ended]:
            assert crowds[evicted[0].peer] == max(crowds.values()) > max(2, crowds[peer] + 1)
            self.present.remove(evicted)
            self.owe((each for each in neighbours[evicted[0]]), Departed(evicted[0].name, Reason.CROWDED))
        self.present.append((member, recorder))
        self.due[member] = []

    @rule(number=_WHO)
    def go(self, number: int) -> None:
        if found := self.pick(number):
            self.owe(self.neighbours(found[0]), Departed(found[0].name, Reason.LOST))
            self.core.depart(found[0], Reason.LOST)
            self.present.remove(found)

    @rule(number=_WHO, name=_NAMES)
    def rename(self, number: int, name: str) -> None:
        if found := self.pick(number):
            member, old = found[0], found[0].name
            try:
                self.core.rename(member, name)
            except ChatError:
                assert member.name == old
                return
            self.owe(self.neighbours(member), Renamed(old, member.name))

    @rule(number=_WHO, name=_ROOMS)
    def join(self, number: int, name: str) -> None:
        if found := self.pick(number):
            before = set(found[0].rooms)
            members = {room: list(room.members) for room in self.core.rooms}
            try:
                room = self.core.join(found[0], name)
            except ChatError:
                assert set(found[0].rooms) == before
                assert members == {room: list(room.members) for room in self.core.rooms}
                return
            for closed in [each for each, those in members.items() if those and not each.members]:
                self.owe(members[closed], Closed(closed.name))
            if room not in before:
                self.owe([other for other in room.members if other is not found[0]], Joined(room.name, found[0].name))

    @rule(number=_WHO, name=_ROOMS)
    def leave(self, number: int, name: str) -> None:
        if found := self.pick(number):
            try:
                room = self.core.room_of(found[0], name)
            except ChatError:
                return
            self.core.leave(found[0], room)
            self.owe(room.members, Left(room.name, found[0].name))

    @rule(number=_WHO)
    def say(self, number: int) -> None:
        if found := self.pick(number):
            for room in found[0].rooms:
                self.said += 1
                self.core.say(found[0], room, str(self.said))
                others = [other for other in room.members if other is not found[0]]
                self.owe(others, Said(room.name, found[0].name, str(self.said)))

    @rule(number=_WHO, other=_WHO)
    def whisper(self, number: int, other: int) -> None:
        found, target = self.pick(number), self.pick(other)
        if found and target and found is not target:
            self.core.whisper(found[0], self.core.find(target[0].name.upper()), "psst")
            self.owe([target[0]], Whispered(found[0].name, "psst"))

    @invariant()
    def everybody_is_told_just_what_they_should_in_one_order(self) -> None:
        for member, recorder in self.present:
            due = self.due[member]
            assert recorder.got == (due[: len(recorder.got)] if self.blocks else due)

    @invariant()
    def names_are_unique(self) -> None:
        keys = [name_key(member.name) for member, _ in self.present]
        assert len(set(keys)) == len(keys) == len(self.core)
        assert all(self.core.find(member.name) is member for member, _ in self.present)

    @invariant()
    def tables_are_bounded_and_agree(self) -> None:
        assert len(self.core) <= 5 and len(self.core.rooms) <= 3
        rooms = Counter(room.founder for room in self.core.rooms if room.key != LOBBY)
        founded = {peer: len(rooms) for peer, rooms in self.core.rooms._founded.items()}
        assert founded == rooms
        for member, _ in self.present:
            assert len(member.rooms) <= 2
            assert all(member in room.members and self.core.rooms.find(room.name) is room for room in member.rooms)
        for room in self.core.rooms:
            assert len(room.history) <= 2
            assert all(room in member.rooms for member in room.members)
        assert self.core.rooms.find(LOBBY)


ChatMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySequence = ChatMachine.TestCase


@settings(deadline=None)
@given(st.text(), st.text())
def test_what_was_said_reaches_others_printable_or_is_refused(text: str, topic: str) -> None:
    core = build_core(topic_length=4096)
    ann, _ = enter(core, "ann")
    _, got = enter(core, "bob")
    try:
        core.say(ann, lobby(core), text)
        core.retitle(ann, lobby(core), topic)
    except ChatError:
        pass
    for event in got.take():
        shown = event.text if isinstance(event, Said) else lobby(core).topic
        assert not set(shown) & set(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x200F]))
