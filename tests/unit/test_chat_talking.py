from __future__ import annotations

from typing import Any

import pytest

from netsvc.services.chat.core import LOBBY, ChatCore, Member
from netsvc.services.chat.events import (
    Acted,
    Departed,
    Event,
    Reason,
    Said,
    Whispered,
)
from netsvc.services.chat.names import ChatError
from tests.builders.chat import Recorder, build_core, enter, lobby


class TestTalking:
    def test_what_one_says_comes_to_every_other_in_the_room(self) -> None:
        core = build_core()
        ann, ann_got = enter(core, "ann")
        _, bob_got = enter(core, "bob")
        _, eve_got = enter(core, "eve", "den")
        ann_got.take()
        core.say(ann, lobby(core), "hi")
        core.act(ann, lobby(core), "waves")
        assert bob_got.take() == [Said("lobby", "ann", "hi"), Acted("lobby", "ann", "waves")]
        assert ann_got.take() == eve_got.take() == []

    def test_no_control_character_gets_through(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        _, bob_got = enter(core, "bob")
        core.say(ann, lobby(core), "a\x1b[31m\tb\u202e\x9b\x7f\r\n\u2028c\ufeff👩\u200d🚀")
        assert bob_got.take() == [Said("lobby", "ann", "a[31m bc👩\u200d🚀")]

    @pytest.mark.parametrize("text", ["", "  ", "\x00", "\u202e\t"])
    def test_nothing_is_not_said(self, text: str) -> None:
        core = build_core()
        ann, _ = enter(core)
        _, bob_got = enter(core)
        with pytest.raises(ChatError):
            core.say(ann, lobby(core), text)
        assert bob_got.take() == [] and not lobby(core).history

    def test_a_whisper_comes_to_one_alone_and_is_not_remembered(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        bob, bob_got = enter(core, "bob", "den")
        _, eve_got = enter(core, "eve")
        core.whisper(ann, bob, "psst")
        assert (bob_got.take(), eve_got.take()) == ([Whispered("ann", "psst")], [])
        assert not lobby(core).history

    @pytest.mark.parametrize("limit", [0, 1, 3])
    def test_a_room_remembers_its_last_messages_with_their_times(self, limit: int) -> None:
        core = build_core(history=limit)
        ann, _ = enter(core, "ann")
        for number in range(5):
            core.say(ann, lobby(core), str(number))
            core.context.reactor.advance(1)
        assert [(then, event.text) for then, event in lobby(core).history] == [
            (number, str(number)) for number in range(5 - limit, 5)
        ]

    def test_the_rate_is_the_members_own(self) -> None:
        core = build_core(rate=2, burst=3)
        ann, _ = enter(core)
        bob, _ = enter(core)
        assert [core.wait(ann) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
        assert core.wait(bob) == 0
        core.context.reactor.advance(0.5)
        assert [core.wait(ann) for _ in range(2)] == [0, 0.5]


class Fragile(Recorder):
    """An outlet that ends its member in the middle of a delivery, as a transport may that finds its peer gone."""

    def __init__(self, core: ChatCore) -> None:
        super().__init__()
        self.core = core
        self.member: Member | None = None

    def deliver(self, event: Event) -> None:
        super().deliver(event)
        if self.member:
            self.core.depart(self.member, Reason.LOST)


class Broken(Recorder):
    """An outlet that breaks its contract."""

    def deliver(self, event: Event) -> None:
        raise RuntimeError("broken")


class TestDelivery:
    def test_a_loss_during_a_delivery_is_told_after_it_to_all(self) -> None:
        core = build_core()
        ann, ann_got = enter(core, "ann")
        fragile = Fragile(core)
        member = core.enter(fragile)
        core.join(member, LOBBY)
        _, bob_got = enter(core, "bob")
        ann_got.take(), bob_got.take()
        fragile.member = member
        core.say(ann, lobby(core), "one")
        core.say(ann, lobby(core), "two")
        gone = Departed("guest2", Reason.LOST)
        assert bob_got.take() == [Said("lobby", "ann", "one"), gone, Said("lobby", "ann", "two")]
        assert ann_got.take() == [gone]
        assert Said("lobby", "ann", "two") not in fragile.got

    def test_a_broken_outlet_costs_nobody_else_the_event(self, logged_errors: Any) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        core.join(core.enter(Broken()), LOBBY)
        _, bob_got = enter(core, "bob")
        core.say(ann, lobby(core), "hi")
        assert bob_got.take() == [Said("lobby", "ann", "hi")]
        assert len(logged_errors.flush(RuntimeError)) == 2

    def test_an_event_is_rendered_for_those_who_are_told_and_not_kept_so(self) -> None:
        core = build_core()
        ann, _ = enter(core, "ann")
        kept: list[Event] = []

        class Rendering(Recorder):
            def deliver(self, event: Event) -> None:
                event.rendered.setdefault("form", b"bytes")
                kept.append(event)

        core.join(core.enter(Rendering()), LOBBY)
        core.say(ann, lobby(core), "hi")
        assert kept and kept[-1].rendered == {}
        assert lobby(core).history[-1][1].rendered == {}
