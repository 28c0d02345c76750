"""Both stores do the same, whatever they are asked, and a crash loses only what was not answered."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netsvc.services.chat.store.interface import (
    AccountRecord,
    Ban,
    NewMessage,
    Record,
    RoomRecord,
    StoreError,
    StoreLimits,
)
from tests.builders.redis import RedisKit, lose_after, lose_before
from tests.builders.stores import AtOnce, Kit, memory_kit, result_of, sqlite_kit

ROOMS = ("den", "lobby", "学习")
ACCOUNTS = ("ann", "bob")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=10)

rooms = st.sampled_from(ROOMS)
accounts = st.sampled_from(ACCOUNTS)
messages = st.builds(
    NewMessage,
    rooms,
    TEXTS,
    TEXTS,
    st.sampled_from(("", *ACCOUNTS)),
    st.booleans(),
    st.sampled_from(("", "", "", "t", "u")),
)
bans = st.builds(Ban, TEXTS, TEXTS, accounts, st.just(1.5), st.sampled_from((None, 2.5)), TEXTS)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        RoomRecord,
        rooms,
        TEXTS,
        founder=accounts,
        operators=st.frozensets(accounts),
        topic=TEXTS,
        modes=st.frozensets(TEXTS),
        bans=st.lists(bans, max_size=2).map(tuple),
    ),
    st.builds(AccountRecord, accounts, TEXTS, TEXTS),
)


class TwoStores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.limits = StoreLimits(messages=8, days=1, rooms=2, accounts=1, markers=2)
        self.kits = [make(self.directory, self.limits) for make in (memory_kit, sqlite_kit)]
        self.memory, self.sqlite = self.kits
        for kit in self.kits:
            kit.open()

    def teardown(self) -> None:
        self.sqlite.store.close()
        shutil.rmtree(self.directory)

    def both(self, ask: Any) -> None:
        """Ask both stores the same; they answer the same, or refuse both."""
        answers = []
        for kit in self.kits:
            try:
                answers.append(kit.ask(ask(kit.store)))
            except StoreError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]

    @rule(new=st.lists(messages, min_size=1, max_size=12))
    def append(self, new: list[NewMessage]) -> None:
        for kit in self.kits:
            for each in new:
                kit.store.append(each)
            kit.clock.advance(0)
        assert self.memory.heard.messages == self.sqlite.heard.messages
        assert self.memory.heard.again == self.sqlite.heard.again

    @rule(chosen=st.lists(records, min_size=1, max_size=3))
    def put(self, chosen: list[Record]) -> None:
        self.both(lambda store: store.put(*chosen))

    @rule(chosen=st.lists(records, min_size=1, max_size=2))
    def remove(self, chosen: list[Record]) -> None:
        self.both(lambda store: store.remove(*chosen))

    @rule(account=accounts)
    def forget(self, account: str) -> None:
        self.both(lambda store: store.forget(account))

    @rule(account=accounts, room=rooms, id=st.integers(0, 50))
    def mark(self, account: str, room: str, id: int) -> None:
        self.both(lambda store: store.mark(account, room, id))

    @rule(
        room=rooms,
        limit=st.integers(0, 10),
        before=st.none() | st.integers(0, 50),
        after=st.none() | st.integers(0, 50),
        since=st.none() | st.floats(900, 100_000),
    )
    def read(self, room: str, limit: int, before: int | None, after: int | None, since: float | None) -> None:
        self.both(lambda store: store.read(room, limit, before=before, after=after, since=since))

    @rule(seconds=st.sampled_from((1.0, 3600.0, 80_000.0, -100.0)))
    def let_time_pass(self, seconds: float) -> None:
        for kit in self.kits:
            kit.time += seconds

    @rule()
    def trim(self) -> None:
        self.both(lambda store: store.trim())

    @rule(messages=st.sampled_from((0, 1, 8, 9)), days=st.sampled_from((None, 0.5, 1.0)))
    def limit(self, messages: int, days: float | None) -> None:
        for kit in self.kits:
            kit.store.limit(replace(self.limits, messages=messages, days=days))

    @rule(last=st.integers(0, 5))
    def restart(self, last: int) -> None:
        # A restart reads the limits anew.
        self.memory.store.limit(self.limits)
        first, second = (kit.restart(last) for kit in self.kits)
        assert (first.rooms, first.accounts) == (second.rooms, second.accounts)
        for room in first.rooms:
            assert first.messages.get(room.key, ()) == second.messages.get(room.key, ())

    @rule(new=st.lists(messages, min_size=1, max_size=12), written=st.booleans())
    def crash(self, new: list[NewMessage], written: bool) -> None:
        """The process is killed before a transaction, or after it and before anyone hears of it."""
        self.sqlite.work.held = True
        for each in new:
            self.sqlite.store.append(each)
        self.sqlite.clock.advance(0)
        database = self.sqlite.store._database  # type: ignore[attr-defined]
        if written:
            database.run([lambda database, each=each: database.append(each) for each in new])
            for each in new:
                self.memory.store.append(each)
        database.close()
        self.memory.store.limit(self.limits)
        self.sqlite.work = AtOnce()
        self.sqlite.store = self.sqlite._build(self.sqlite)
        for kit in self.kits:
            kit.open()

    @invariant()
    def both_have_the_same(self) -> None:
        for room in ROOMS:
            self.both(lambda store, room=room: store.read(room, 1000))
        for account in ACCOUNTS:
            self.both(lambda store, account=account: store.marks(account))


class MemoryAndRedis(RuleBasedStateMachine):
    """The store in Redis does what that in memory does, though Redis loses connections. Its ids are others."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = StoreLimits(messages=8, days=1, rooms=2, accounts=1, markers=2)
        self.memory, self.redis = memory_kit(Path(), self.limits), RedisKit(self.limits)
        self.kits: tuple[Kit, ...] = (self.memory, self.redis)
        for kit in self.kits:
            kit.open()

    def teardown(self) -> None:
        self.redis.store.close()

    def both(self, ask: Any) -> Any:
        """Ask both stores the same; they answer the same, or refuse both."""
        answers = []
        for kit in self.kits:
            try:
                answer = ask(kit.store)
                kit.clock.pump([1] * 3)
                answers.append(without_ids(result_of(answer)))
            except StoreError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]

    @rule(fault=st.sampled_from((lose_before, lose_after)))
    def lose_the_connection(self, fault: Any) -> None:
        # When something is written next: what is read fails.
        self.redis.link.write_fault = fault

    @rule(new=st.lists(messages, min_size=1, max_size=12))
    def append(self, new: list[NewMessage]) -> None:
        for kit in self.kits:
            for each in new:
                kit.store.append(each)
            kit.clock.pump([1] * 3)
        assert without_ids(self.memory.heard.messages) == without_ids(self.redis.heard.messages)
        assert without_ids(self.memory.heard.again) == without_ids(self.redis.heard.again)
        ids = [each.id for each in self.redis.heard.messages]
        assert ids == sorted(set(ids))

    @rule(chosen=st.lists(records, min_size=1, max_size=3))
    def put(self, chosen: list[Record]) -> None:
        self.both(lambda store: store.put(*chosen))

    @rule(chosen=st.lists(records, min_size=1, max_size=2))
    def remove(self, chosen: list[Record]) -> None:
        self.both(lambda store: store.remove(*chosen))

    @rule(account=accounts, room=rooms, id=st.integers(0, 50))
    def mark(self, account: str, room: str, id: int) -> None:
        self.both(lambda store: store.mark(account, room, id))

    @rule(account=accounts)
    def forget(self, account: str) -> None:
        self.both(lambda store: store.forget(account))

    @rule()
    def trim(self) -> None:
        self.both(lambda store: store.trim())

    @rule(seconds=st.sampled_from((1.0, 3600.0, 80_000.0, -100.0)))
    def let_time_pass(self, seconds: float) -> None:
        for kit in self.kits:
            kit.time += seconds

    @rule(last=st.integers(0, 5))
    def restart(self, last: int) -> None:
        first, second = (kit.restart(last) for kit in self.kits)
        for before, after in ((first.rooms, second.rooms), (first.accounts, second.accounts)):
            assert {each.key: each for each in before} == {each.key: each for each in after}

    @rule(room=rooms, limit=st.integers(0, 10), first=st.booleans(), number=st.integers(0, 12))
    def read_a_part(self, room: str, limit: int, first: bool, number: int) -> None:
        bounds = []
        for kit in self.kits:
            everything = kit.ask(kit.store.read(room, 1000))
            bounds.append(everything[number].id if number < len(everything) else None)
        ids = iter(bounds)
        self.both(lambda store: store.read(room, limit, **{"after" if first else "before": next(ids)}))

    @rule(room=rooms, limit=st.integers(0, 10), since=st.floats(900, 100_000))
    def read_since(self, room: str, limit: int, since: float) -> None:
        self.both(lambda store: store.read(room, limit, since=since))

    @invariant()
    def both_have_the_same(self) -> None:
        for room in ROOMS:
            self.both(lambda store, room=room: store.read(room, 1000))
        for account in ACCOUNTS:
            self.both(lambda store, account=account: store.marks(account))


def without_ids(answer: Any) -> Any:
    return [replace(each, id=0) for each in answer] if isinstance(answer, list) else answer


TestMemoryAndRedis = MemoryAndRedis.TestCase
TestMemoryAndRedis.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
