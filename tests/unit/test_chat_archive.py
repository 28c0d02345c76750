"""A store that answers later: what is delivered when, what senders hear, and what waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.services.chat.core import LOBBY, ChatCore
from netsvc.services.chat.events import Forgetting, Joined, Left, Remembering, Said, Stopping, Unsent
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.store.interface import (
    AccountRecord,
    Message,
    NewMessage,
    RoomRecord,
    StoreError,
    StoreListener,
)
from netsvc.services.chat.store.memory import MemoryStore
from tests.builders.chat import Client, enter, lobby, said

FULL = StoreError("the disk is full")


class LateStore(MemoryStore):
    """A store in memory that opens, appends and closes when the test says so."""

    def __init__(self) -> None:
        super().__init__(now=lambda: 5.0)
        self.waiting: deque[Callable[[], object]] = deque()
        self.appends: deque[NewMessage] = deque()
        self.broken: StoreError | None = None
        self.behind = False
        self.kept: list[RoomRecord | AccountRecord] = []

    @property
    def is_behind(self) -> bool:  # type: ignore[override]
        return self.behind

    def open(self, listener: StoreListener, last: int) -> None:
        self.listener = listener
        self.waiting.append(partial(super().open, listener, last))

    def append(self, new: NewMessage) -> None:
        self.appends.append(new)

    def put(self, *records: RoomRecord | AccountRecord) -> Deferred[None]:
        if self.broken:
            return fail(self.broken)
        self.kept += records
        return super().put(*records)

    def close(self) -> Deferred[None]:
        closed: Deferred[None] = Deferred()

        def close() -> None:
            self.keep()
            closed.callback(None)

        self.waiting.append(close)
        return closed

    def go_on(self) -> None:
        while self.waiting:
            self.waiting.popleft()()

    def keep(self, count: int = 1000) -> None:
        for _ in range(min(count, len(self.appends))):
            super().append(self.appends.popleft())

    def refuse(self) -> None:
        refused = list(self.appends)
        self.appends.clear()
        self.listener.refused(refused, FULL)


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> None:
        self.store = LateStore()
        monkeypatch.setattr("netsvc.services.chat.core.build_store", lambda *_: self.store)
        self.clock = Clock()
        options = parse_settings(ChatOptions, chosen)
        assert isinstance(options, ChatOptions)
        self.core = ChatCore(options, Context(self.clock, Logger()), self.clock.seconds)
        self.core.start()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def world(closed: World) -> World:
    closed.store.go_on()
    return closed


def test_a_message_is_delivered_when_it_is_kept_and_later_events_wait_behind_it(world: World) -> None:
    core = world.core
    ann, ann_got = enter(core, "ann")
    _, bob_got = enter(core, "bob")
    ann_got.take()
    core.say(ann, lobby(core), "one")
    core.leave(ann, lobby(core))
    enter(core, "eve")
    assert bob_got.take() == []
    world.store.keep()
    first, *_ = got = bob_got.take()
    assert got[:3] == [*said("ann", "one"), Left(LOBBY, "ann"), Joined(LOBBY, "eve")]
    assert isinstance(first, Said) and (first.id, first.time) == (1, 5.0)
    assert ann_got.take() == []


def test_one_who_joins_meanwhile_gets_the_message_once(world: World) -> None:
    core = world.core
    ann, _ = enter(core, "ann")
    core.say(ann, lobby(core), "one")
    eve, eve_got = enter(core, "eve", room=None)
    assert not core.join(eve, LOBBY).history
    world.store.keep()
    assert said("ann", "one")[0] in eve_got.take()
    assert [event for _, event in lobby(core).history] == said("ann", "one")


def test_messages_kept_together_are_delivered_together(world: World) -> None:
    core = world.core
    ann, _ = enter(core, "ann")
    _, bob_got = enter(core, "bob")
    bob_got.take()
    for number in range(200):
        core.say(ann, lobby(core), str(number))
    world.store.keep()
    assert bob_got.take() == said("ann", *range(200))


def test_the_sender_of_what_is_not_kept_hears_why_and_no_one_else_hears_it(world: World) -> None:
    core = world.core
    ann, ann_got = enter(core, "ann")
    _, bob_got = enter(core, "bob")
    ann_got.take(), bob_got.take()
    core.say(ann, lobby(core), "one")
    world.store.refuse()
    assert ann_got.take() == [Unsent(LOBBY, "one", str(FULL))]
    assert bob_got.take() == []
    assert not lobby(core).history
    core.say(ann, lobby(core), "two")
    world.store.keep()
    assert bob_got.take() == said("ann", "two")


def test_a_broken_store_is_announced_and_refuses_at_once_until_it_works(world: World) -> None:
    core = world.core
    ann, ann_got = enter(core, "ann")
    core.retitle(ann, lobby(core), "before")
    ann_got.take()
    world.store.broken = FULL
    world.store.listener.failed(FULL)
    assert ann_got.take() == [Forgetting(str(FULL))]
    for forbidden in (lambda: core.say(ann, lobby(core), "x"), lambda: core.retitle(ann, lobby(core), "x")):
        with pytest.raises(ChatError, match="disk is full"):
            forbidden()
    assert lobby(core).topic == "before"
    # What cannot wait is done, and kept later.
    core.join(ann, "den")
    world.store.broken = None
    world.store.kept.clear()
    world.store.listener.resumed()
    assert ann_got.take() == [Remembering()]
    assert [record.key for record in world.store.kept] == ["den"]
    core.say(ann, lobby(core), "x")


def test_the_answer_to_a_command_comes_after_the_fate_of_all_earlier_messages(world: World) -> None:
    ann, bob = Client(world.core), Client(world.core)
    ann.sends("/nick ann\n"), bob.sees()
    assert ann.sends("one\n/topic\ntwo\n/topic\n") == b""
    world.store.keep(1)
    assert ann.sees().count(b"no topic") == 1
    assert b"one" in bob.sees()
    world.store.refuse()
    seen = ann.sees()
    assert seen.index(b"disk is full") < seen.index(b"no topic")
    assert bob.sees() == b""


def test_a_client_that_has_ended_its_input_hears_the_fate_of_its_last_message(world: World) -> None:
    ann = Client(world.core)
    ann.sends("last")
    ann.protocol.readConnectionLost()
    assert not ann.transport.disconnecting
    world.store.refuse()
    assert b"disk is full" in ann.sees()
    assert ann.transport.disconnecting


def test_a_sender_may_be_gone_when_its_message_is_kept(world: World) -> None:
    ann, bob = Client(world.core), Client(world.core)
    ann.sends("one\n/quit\n"), bob.sees()
    ann.lose()
    world.store.keep()
    assert b"one" in bob.sees()


def test_connections_wait_while_the_store_opens(closed: World) -> None:
    ann, gone = Client(closed.core), Client(closed.core)
    assert ann.sends("hello\n/who\n") == b""
    gone.lose()
    closed.store.go_on()
    assert len(closed.core) == 1
    assert b"welcome" in ann.sees()
    closed.store.keep()
    assert b"in lobby:" in ann.sees()


def test_a_drain_delivers_what_was_sent_and_refuses_more(world: World) -> None:
    core = world.core
    ann, ann_got = enter(core, "ann")
    _, bob_got = enter(core, "bob")
    ann_got.take(), bob_got.take()
    core.say(ann, lobby(core), "one")
    drained = core.drain()
    assert not drained.called
    with pytest.raises(ChatError):
        core.say(ann, lobby(core), "two")
    world.store.go_on()
    assert drained.called
    assert bob_got.take() == [*said("ann", "one"), Stopping()]
    core.stop()


def test_a_store_that_is_behind_slows_senders(world: World) -> None:
    ann, bob = Client(world.core), Client(world.core)
    bob.sees()
    world.store.behind = True
    ann.sends("x" * 4000 + "\n" + "y" * 4000 + "\n")
    world.store.keep()
    assert b"x" in (seen := bob.sees()) and b"yyy" not in seen
    assert ann.state == "paused"
    world.clock.advance(10)
    world.store.keep()
    assert b"yyy" in bob.sees()
    world.store.behind = False


def test_a_message_of_another_process_is_delivered_to_its_room_only(world: World) -> None:
    core = world.core
    _, ann_got = enter(core, "ann")
    ann_got.take()
    world.store.listener.appended(
        [(Message(7, 5.0, LOBBY, "eve", "hi"), None), (Message(8, 5.0, "?", "eve", "?"), None)]
    )
    assert ann_got.take() == said("eve", "hi")


def test_what_repeats_a_token_is_dropped(world: World) -> None:
    core = world.core
    ann, _ = enter(core, "ann")
    _, bob_got = enter(core, "bob")
    bob_got.take()
    for _ in range(2):
        core.archive.append(ann, lobby(core), NewMessage(LOBBY, "ann", "one", token="t"))
    core.say(ann, lobby(core), "two")
    world.store.keep()
    assert bob_got.take() == said("ann", "one", "two")
    assert not ann.unsettled
