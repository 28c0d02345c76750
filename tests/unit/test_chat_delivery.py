from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger

from netsvc.services.chat.events import Audience, Delivery, Event, Left, Receiver, Said, Several


class Ear:
    """One who is told, and keeps what, delivery by delivery."""

    def __init__(self) -> None:
        self.pieces: list[Event] = []
        self.deliver = Receiver(self.pieces.append)

    @property
    def heard(self) -> list[Event]:
        return [event for piece in self.pieces for event in (piece.events if isinstance(piece, Several) else [piece])]


def said(text: object) -> Said:
    return Said("lobby", "ann", str(text))


class ThreeMembers:
    def __init__(self) -> None:
        self.delivery = Delivery(Logger())
        self.ann, self.bob, self.eve = self.ears = [Ear(), Ear(), Ear()]
        self.everyone: Audience = tuple(ear.deliver for ear in self.ears)


@pytest.fixture
def world() -> ThreeMembers:
    return ThreeMembers()


def test_an_event_is_delivered_at_once_to_all_but_one(world: ThreeMembers) -> None:
    world.delivery.send(world.everyone, said(1), world.ann.deliver)
    assert [ear.pieces for ear in world.ears] == [[], [said(1)], [said(1)]]


def test_what_happens_in_a_block_is_delivered_together_at_its_end(world: ThreeMembers) -> None:
    with world.delivery:
        for number in range(3):
            world.delivery.send(world.everyone, said(number), world.ann.deliver)
        assert not world.bob.pieces
    together = Several((said(0), said(1), said(2)))
    assert [ear.pieces for ear in world.ears] == [[], [together], [together]]
    assert world.bob.pieces[0] is world.eve.pieces[0]


def test_one_event_in_a_block_stays_what_it_is(world: ThreeMembers) -> None:
    with world.delivery:
        world.delivery.send(world.everyone, said(1))
    assert world.bob.pieces == [said(1)]


def test_a_block_within_a_block_ends_with_the_outer_one(world: ThreeMembers) -> None:
    with world.delivery:
        world.delivery.send(world.everyone, said(1))
        with world.delivery:
            world.delivery.send(world.everyone, said(2))
        assert not world.bob.pieces
    assert world.bob.pieces == [Several((said(1), said(2)))]


def test_a_block_that_fails_delivers_what_had_happened(world: ThreeMembers) -> None:
    def fail() -> None:
        with world.delivery:
            world.delivery.send(world.everyone, said(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert world.bob.pieces == [said(1)]
    world.delivery.send(world.everyone, said(2))
    assert world.bob.heard == [said(1), said(2)]


def test_another_audience_or_another_speaker_is_told_apart_and_in_order(world: ThreeMembers) -> None:
    pair = (world.bob.deliver, world.eve.deliver)
    with world.delivery:
        world.delivery.send(world.everyone, said(1), world.ann.deliver)
        world.delivery.send(world.everyone, said(2), world.bob.deliver)
        world.delivery.send(pair, said(3), world.bob.deliver)
        world.delivery.send(pair, said(4), world.bob.deliver)
    assert world.ann.pieces == [said(2)]
    assert world.bob.pieces == [said(1)]
    assert world.eve.pieces == [said(1), said(2), Several((said(3), said(4)))]


def test_no_more_than_64_events_wait(world: ThreeMembers) -> None:
    with world.delivery:
        for number in range(63):
            world.delivery.send(world.everyone, said(number))
        assert not world.bob.pieces
        world.delivery.send(world.everyone, said(63))
        assert len(world.bob.pieces) == 1 and len(world.bob.heard) == 64
        world.delivery.send(world.everyone, said(64))
        assert len(world.bob.pieces) == 1
    assert world.bob.heard == [said(number) for number in range(65)]


def test_no_more_than_8192_characters_wait(world: ThreeMembers) -> None:
    with world.delivery:
        for _ in range(2):
            world.delivery.send(world.everyone, said(1), characters=8191)
            assert not len(world.bob.pieces) % 2
            world.delivery.send(world.everyone, said(2), characters=1)
            assert world.bob.pieces[-1:] == [Several((said(1), said(2)))]
            world.delivery.send(world.everyone, said(3), characters=8192)
            assert world.bob.pieces[-1:] == [said(3)]


def test_what_a_delivery_brings_about_is_told_after_it_to_all(world: ThreeMembers) -> None:
    def fall(event: Event) -> None:
        if not isinstance(event, Left):
            world.delivery.send((world.ann.deliver, world.bob.deliver), Left("lobby", "eve"))

    audience = (world.ann.deliver, Receiver(fall), world.bob.deliver)
    with world.delivery:
        world.delivery.send(audience, said(1))
        world.delivery.send(audience, said(2))
    assert world.ann.pieces == world.bob.pieces == [Several((said(1), said(2))), Left("lobby", "eve")]


def test_one_who_cannot_take_it_costs_nobody_else_the_events(world: ThreeMembers, logged_errors: Any) -> None:
    def fail(_event: Event) -> None:
        raise RuntimeError("broken")

    audience = (Receiver(fail), world.bob.deliver)
    with world.delivery:
        world.delivery.send(audience, said(1))
        world.delivery.send(audience, said(2))
    assert world.bob.heard == [said(1), said(2)]
    assert len(logged_errors.flush(RuntimeError)) == 1


def test_what_one_receiver_has_rendered_is_sent_to_the_others_of_its_form_as_bytes(world: ThreeMembers) -> None:
    sent: list[bytes] = []

    def render(event: Event) -> None:
        event.rendered["form"] = b"bytes"

    first = Receiver(render)
    first.form = world.ann.deliver.form = "form"
    world.eve.deliver.form = "another form"
    world.ann.deliver.send_event = sent.append
    world.delivery.send((first, *world.everyone), said(1))
    assert sent == [b"bytes"]
    assert [ear.heard for ear in world.ears] == [[], [said(1)], [said(1)]]


def test_what_was_rendered_is_not_kept(world: ThreeMembers) -> None:
    def render(event: Event) -> None:
        event.rendered["form"] = b"bytes"

    audience = (world.bob.deliver, Receiver(render))
    with world.delivery:
        world.delivery.send(audience, said(1))
        world.delivery.send(audience, said(2))
    assert [event.rendered for event in [*world.bob.pieces, *world.bob.heard]] == [{}, {}, {}]


_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([(0, 1, 2), (0, 1), (2,), ()]), st.sampled_from([None, 0, 1, 2]), st.integers(0, 9000)
        ),
        st.sampled_from(["in", "out"]),
    ),
    max_size=200,
)


@given(_STEPS)
def test_all_hear_all_that_is_theirs_in_the_order_in_which_it_happened(steps: list[Any]) -> None:
    world = ThreeMembers()
    due: list[list[Event]] = [[], [], []]
    audiences: dict[Any, Audience] = {}
    depth = 0
    for number, step in enumerate([*steps, *["out"] * len(steps)]):
        if step == "in":
            world.delivery.__enter__()
            depth += 1
        elif step == "out":
            if depth:
                depth -= 1
                world.delivery.__exit__(None, None, None)
        else:
            places, but, characters = step
            audience = audiences.setdefault(places, tuple(world.ears[place].deliver for place in places))
            spared = None if but is None else world.ears[but].deliver
            world.delivery.send(audience, said(number), spared, characters)
            for place in places:
                if place != but:
                    due[place].append(said(number))
        if not depth:
            assert [ear.heard for ear in world.ears] == due
