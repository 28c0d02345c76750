"""What a store of the chat does, whichever it is: its promises, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netsvc.services.chat.store.interface import (
    AccountRecord,
    Ban,
    Kept,
    Message,
    RoomRecord,
    StoreError,
    StoreLimits,
)
from tests.builders.redis import redis_kit
from tests.builders.stores import Kit, memory_kit, sqlite_kit

LIMITS = StoreLimits(messages=8, days=1, rooms=2, accounts=2, markers=2)


@pytest.fixture(params=[memory_kit, sqlite_kit, redis_kit])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    made: Kit = request.param(tmp_path, LIMITS)
    made.open()
    yield made
    made.store.close()


def test_messages_get_growing_ids_times_and_all_that_was_said_of_them(kit: Kit) -> None:
    (first,) = kit.say("hello", account="ann", acted=True)
    assert first == Message(first.id, 1000.0, "den", "Ann", "hello", "ann", acted=True)
    kit.time = 900.0
    (second,) = kit.say("later, by a clock set back", room="other")
    assert second.id > first.id
    assert second.time == 900.0


def test_a_token_appends_once_in_its_room(kit: Kit) -> None:
    (first,) = kit.say("hello", token="t")
    assert kit.say("hello", token="t") == []
    assert kit.heard.again == [first]
    assert len(kit.say("hello", token="t", room="other")) == 1
    assert len(kit.say("hello", "hello")) == 2
    # Once it is dropped, the token is new.
    kit.say(*range(20))
    assert len(kit.say("hello", token="t")) == 1


def test_reading_pages_back_and_catches_up(kit: Kit) -> None:
    said = kit.say(*"abcdef")
    kit.say("x", room="other")
    assert kit.read() == list("abcdef")
    assert kit.read(2) == ["e", "f"]
    assert kit.read(2, before=said[4].id) == ["c", "d"]
    assert kit.read(2, after=said[0].id) == ["b", "c"]
    assert kit.read(after=said[1].id, before=said[4].id) == ["c", "d"]
    assert kit.read(0) == kit.read(room="none") == kit.read(after=said[-1].id) == []


def test_reading_begins_at_a_time(kit: Kit) -> None:
    for text in "abcd":
        kit.say(text)
        kit.time += 10
    assert kit.read(since=1020.0) == ["c", "d"]
    assert kit.read(1, since=1010.0) == ["b"]


def test_a_room_has_at_least_its_limit_and_at_most_an_eighth_more(kit: Kit) -> None:
    seen = set()
    for number in range(40):
        kit.say(number)
        kept = kit.read()
        assert kept == [str(each) for each in range(number + 1)][-len(kept) :]
        seen.add(len(kept))
    assert seen == set(range(1, 10))
    kit.say("x", room="other")
    assert kit.read(room="other") == ["x"]


def test_trimming_removes_the_old_and_the_many(kit: Kit) -> None:
    kit.say(*range(9))
    assert kit.ask(kit.store.trim()) == 1
    assert kit.read() == [str(each) for each in range(1, 9)]
    kit.time += 86401
    kit.say("new")
    assert kit.ask(kit.store.trim()) == 8
    assert kit.read() == ["new"]
    assert kit.ask(kit.store.trim()) == 0


def test_limits_can_change(kit: Kit) -> None:
    kit.say(*range(8))
    kit.store.limit(replace(LIMITS, messages=2, days=None))
    assert len(kit.read()) == 8
    kit.say("new")
    assert kit.read() == ["7", "new"]
    kit.time += 1e9
    assert kit.ask(kit.store.trim()) == 0
    kit.store.limit(replace(LIMITS, messages=0))
    kit.say("gone")
    assert kit.read() == []


def test_an_id_is_never_used_again(kit: Kit) -> None:
    last = kit.say(*range(3), account="ann")[-1]
    kit.ask(kit.store.forget("ann"))
    kit.ask(kit.store.remove(RoomRecord("den", "den")))
    assert kit.say("new")[0].id > last.id


def test_an_account_is_forgotten_in_all_rooms(kit: Kit) -> None:
    kit.say("a", account="ann")
    kit.say("b", account="bob")
    kit.say("c")
    kit.say("d", account="ann", room="other", token="t")
    assert kit.ask(kit.store.forget("ann")) == 2
    assert kit.ask(kit.store.forget("ann")) == 0
    assert kit.read() == ["b", "c"]
    assert len(kit.say("d", account="ann", room="other", token="t")) == 1


BAN = Ban("address", "192.0.2.1", "ann", 5.0, 10.0, "spam")
DEN = RoomRecord(
    "den", "Den", 1.0, "ann", frozenset({"bob", "eve"}), "topic", "Ann", 2.0, frozenset({"invite"}), (BAN,)
)
ANN = AccountRecord("ann", "Ann", "$scrypt$…", 1.0, 2.0)


def test_records_come_back_as_they_were_put(kit: Kit) -> None:
    kit.ask(kit.store.put(DEN, ANN))
    said = kit.say(*"abcd")
    kept = kit.restart(last=2)
    assert kept == Kept((DEN,), (ANN,), {"den": tuple(said[2:])})
    assert kit.restart(last=0).messages.get("den", ()) == ()
    changed = replace(DEN, topic="", bans=(), operators=frozenset(), modes=frozenset())
    kit.ask(kit.store.put(changed))
    assert kit.restart().rooms == (changed,)


def test_a_removed_room_takes_its_messages_and_markers_with_it(kit: Kit) -> None:
    kit.ask(kit.store.put(DEN, ANN))
    (said,) = kit.say("a", account="ann")
    kit.ask(kit.store.mark("ann", "#den", said.id))
    kit.ask(kit.store.remove(DEN))
    assert kit.read() == []
    assert kit.ask(kit.store.marks("ann")) == {}
    kit.ask(kit.store.remove(DEN, RoomRecord("never", "never")))
    assert kit.restart() == Kept((), (ANN,), {})


def test_a_removed_account_leaves_its_messages(kit: Kit) -> None:
    kit.ask(kit.store.put(ANN))
    kit.say("a", account="ann")
    kit.ask(kit.store.mark("ann", "den", 1))
    kit.ask(kit.store.remove(ANN))
    assert kit.read() == ["a"]
    assert kit.restart().accounts == ()
    kit.ask(kit.store.put(ANN))
    assert kit.ask(kit.store.marks("ann")) == {}


def test_more_than_the_limit_is_refused_whole_and_changes_are_not(kit: Kit) -> None:
    kit.ask(kit.store.put(DEN, ANN, RoomRecord("b", "b")))
    for records in (
        (RoomRecord("c", "c"),),
        (replace(DEN, topic="x"), RoomRecord("c", "c")),
        (RoomRecord("c", "c"), AccountRecord("c", "c", "")),
    ):
        with pytest.raises(StoreError):
            kit.ask(kit.store.put(*records))
    kit.ask(kit.store.put(replace(DEN, topic="y"), AccountRecord("bob", "Bob", "")))
    with pytest.raises(StoreError):
        kit.ask(kit.store.put(AccountRecord("c", "c", "")))
    kept = kit.restart()
    assert {room.key: room.topic for room in kept.rooms} == {"den": "y", "b": ""}
    assert {account.key for account in kept.accounts} == {"ann", "bob"}


def test_read_markers_only_advance_and_the_longest_unset_are_dropped(kit: Kit) -> None:
    with pytest.raises(StoreError):
        kit.ask(kit.store.mark("ann", "den", 1))
    kit.ask(kit.store.put(ANN))
    for room, id, markers in (
        ("den", 5, {"den": 5}),
        ("den", 3, {"den": 5}),
        ("b", 1, {"den": 5, "b": 1}),
        ("den", 6, {"den": 6, "b": 1}),
        ("c", 2, {"den": 6, "c": 2}),
    ):
        kit.ask(kit.store.mark("ann", room, id))
        assert kit.ask(kit.store.marks("ann")) == markers
    assert kit.ask(kit.store.marks("bob")) == {}
