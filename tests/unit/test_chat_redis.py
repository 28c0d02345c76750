"""The store in Redis when Redis fails, is restarted, or another process wants the same chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.services.chat.events import Forgetting, Remembering, Unsent
from netsvc.services.chat.store.interface import NewMessage, RoomRecord, StoreError, StoreLimits
from netsvc.services.chat.store.redis import LEASE, RedisStore
from netsvc.services.chat.store.redis_link import RedisAddress, RefusedError, parse_address
from tests.builders.chat import Person, build_core, said
from tests.builders.logs import Lines, collected
from tests.builders.redis import DirectLink, RedisKit, lose_after, lose_before, refuse

logged = pytest.fixture(collected)


@pytest.fixture
def kit() -> Iterator[RedisKit]:
    made = RedisKit()
    made.open()
    yield made
    made.store.close()


def append(kit: RedisKit, *texts: str) -> None:
    for text in texts:
        kit.store.append(NewMessage("den", "Ann", text))
    kit.clock.advance(0)


def test_what_waits_is_one_script(kit: RedisKit) -> None:
    before = len(kit.link.sent)
    append(kit, *map(str, range(50)))
    assert len(kit.link.sent) == before + 1
    assert kit.read() == [str(each) for each in range(50)]


@pytest.mark.parametrize("fault", [lose_before, lose_after])
def test_a_message_whose_answer_was_lost_is_kept_once_and_delivered_once(kit: RedisKit, fault: Any) -> None:
    kit.link.faults = [fault]
    append(kit, "a", "b")
    assert not kit.heard.messages and not kit.heard.lost
    assert kit.heard.changes == ["Redis cannot be reached"]
    kit.clock.advance(1)
    assert kit.heard.changes == ["Redis cannot be reached", ""]
    assert [each.text for each in kit.heard.messages] == ["a", "b"]
    append(kit, "c")
    assert kit.read() == ["a", "b", "c"] == [each.text for each in kit.heard.messages]


def test_a_script_that_arrives_late_by_a_connection_that_was_given_up_does_nothing(kit: RedisKit) -> None:
    kit.link.faults = [lose_before]
    append(kit, "a")
    late = kit.link.sent[-1]
    kit.clock.advance(1)
    append(kit, "b")
    with pytest.raises(RefusedError, match="LATE"):
        kit.link.ask(*late)
    assert kit.read() == ["a", "b"]


@pytest.mark.parametrize("fault", [lose_before, lose_after])
def test_a_record_whose_answer_was_lost_is_kept_once(kit: RedisKit, fault: Any) -> None:
    kit.link.faults = [fault]
    answer = kit.store.put(RoomRecord("den", "Den"))
    kit.clock.advance(0)
    assert not answer.called
    kit.clock.advance(1)
    assert kit.ask(answer) is None
    assert kit.restart().rooms == (RoomRecord("den", "Den"),)


def test_messages_after_one_in_doubt_are_refused_after_it(kit: RedisKit) -> None:
    kit.link.held = True
    kit.link.faults = [lose_after]
    append(kit, "a")
    append(kit, "b")
    kit.link.away = "Connection refused"
    kit.link.go_on()
    append(kit, "c")
    assert not kit.heard.messages and not kit.heard.lost
    with pytest.raises(StoreError):
        kit.ask(kit.store.put(RoomRecord("den", "Den")))
    kit.link.away = ""
    kit.clock.advance(20)
    assert [each.text for each in kit.heard.messages] == ["a"]
    assert [each.text for each in kit.heard.lost] == ["b", "c"]
    assert kit.read() == ["a"]


def test_doubt_ends_after_some_seconds(kit: RedisKit, logged: Lines) -> None:
    kit.link.away = "Connection refused"
    append(kit, "a", "b")
    kit.clock.pump([1] * 10)
    assert [each.text for each in kit.heard.lost] == ["a", "b"]
    kit.link.away = ""
    kit.clock.advance(20)
    append(kit, "c")
    assert [each.text for each in kit.heard.messages] == ["c"]
    assert not any("has lost" in line for line in logged)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "the memory of Redis is full"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "the disk of Redis is full or broken"),
        ("READONLY You can't write against a read only replica.", "Redis is a replica, which cannot be written"),
        ("LOADING Redis is loading the dataset in memory", "Redis is starting"),
        ("NOAUTH Authentication required.", "Redis wants a password"),
        ("NOPERM this user has no permissions", "Redis does not permit it"),
        ("ERR something new", "Redis refuses it"),
    ],
)
def test_what_redis_refuses_is_refused_with_the_reason_and_service_resumes(
    kit: RedisKit, error: str, reason: str
) -> None:
    kit.link.faults = [refuse(error)] * 3
    append(kit, "a")
    assert [each.text for each in kit.heard.lost] == ["a"]
    assert kit.heard.changes == [reason]
    append(kit, "b")
    assert [each.text for each in kit.heard.lost] == ["a", "b"]
    kit.clock.pump([1] * 5)
    assert kit.heard.changes == [reason, ""]
    append(kit, "c")
    assert kit.read() == ["c"]


def test_a_full_redis_changes_nothing_and_resumes_when_it_has_room() -> None:
    kit = RedisKit()
    kit.open()
    kit.say("a")
    full = RedisKit()
    full.link.connect()
    used = int(full.link.ask("INFO", "memory").split(b"used_memory:")[1].split(b"\r")[0])
    full.link.ask("CONFIG", "SET", "maxmemory", used - 1000)
    try:
        append(kit, "b", "c")
        assert kit.heard.changes == ["the memory of Redis is full"]
        assert [each.text for each in kit.heard.lost] == ["b", "c"]
        assert kit.read(room="none") == [] if not kit.heard.changes else True
    finally:
        full.link.ask("CONFIG", "SET", "maxmemory", 0)
        full.link.close()
    kit.clock.pump([1] * 5)
    append(kit, "d")
    assert kit.read() == ["a", "d"]
    kit.store.close()


def test_members_are_told_and_service_resumes() -> None:
    kit = RedisKit()
    core = build_core(kit.store)
    ann, bob = Person(core, "ann"), Person(core, "bob")
    kit.clock.advance(0)
    ann.does("hello")
    kit.link.away = "Connection refused"
    kit.clock.advance(0)
    assert "Redis cannot be reached" in ann.does("again")[-1]
    kit.clock.pump([1] * 10)
    assert [type(each) for each in bob.sees()] == [Forgetting]
    assert [type(each) for each in ann.sees()] == [Unsent, Forgetting]
    kit.link.away = ""
    kit.clock.advance(10)
    assert [type(each) for each in bob.sees()] == [Remembering]
    ann.does("hello again")
    kit.clock.advance(0)
    assert bob.sees() == said("ann", "hello again")
    core.stop()


def test_the_next_process_waits_until_the_first_one_ends(kit: RedisKit) -> None:
    kit.say("a")
    second = RedisKit(prefix=kit.address.prefix)
    second.store.open(second.heard, 20)
    second.clock.advance(1)
    assert second.heard.kept is None
    kit.restart()
    assert second.heard.kept is None
    kit.store.close()
    second.clock.advance(1)
    assert second.heard.kept is not None
    assert second.say("b")
    assert second.read() == ["a", "b"]
    second.store.close()


def expire(kit: RedisKit) -> None:
    """The process was paused until its lease was over."""
    other = RedisKit(prefix=kit.address.prefix)
    other.link.connect()
    other.link.ask("DEL", f"{kit.address.prefix}owner")
    other.link.close()


def test_a_paused_process_changes_nothing_once_another_one_has_the_chat(kit: RedisKit) -> None:
    expire(kit)
    second = RedisKit(prefix=kit.address.prefix)
    second.open()
    second.say("b")
    append(kit, "a")
    assert [each.text for each in kit.heard.lost] == ["a"]
    kit.clock.pump([5] * 10)
    append(kit, "c")
    assert kit.heard.messages == []
    assert len(kit.heard.changes) <= 2
    assert "another server" in kit.heard.changes[-1]
    second.store.close()
    kit.clock.pump([5] * 10)
    append(kit, "d")
    assert [each.text for each in kit.heard.lost] == ["a", "c", "d"]
    third = RedisKit(prefix=kit.address.prefix)
    third.open()
    assert third.read() == ["b"]
    third.store.close()


def test_a_paused_process_goes_on_if_no_other_one_has_had_the_chat(kit: RedisKit) -> None:
    expire(kit)
    append(kit, "a")
    kit.clock.advance(1)
    append(kit, "b")
    assert kit.read() == ["b"]


def test_the_lease_is_renewed(kit: RedisKit) -> None:
    link = kit.link
    link.ask("PEXPIRE", f"{kit.address.prefix}owner", 1000)
    kit.clock.advance(LEASE / 2)
    assert link.ask("PTTL", f"{kit.address.prefix}owner") > 1000


def test_a_dead_connection_is_noticed_without_any_message(kit: RedisKit) -> None:
    kit.link.away = "no answer"
    kit.clock.advance(LEASE / 2)
    assert kit.heard.changes == ["Redis cannot be reached"]


def test_closing_keeps_what_waits_and_frees_the_chat(kit: RedisKit) -> None:
    kit.store.append(NewMessage("den", "Ann", "last"))
    closed = kit.store.close()
    assert closed.called
    second = RedisKit(prefix=kit.address.prefix)
    second.open()
    assert second.read() == ["last"]
    second.store.close()


def test_closing_without_redis_ends(kit: RedisKit) -> None:
    kit.link.away = "Connection refused"
    append(kit, "a")
    assert kit.store.close().called
    assert [each.text for each in kit.heard.lost] == ["a"]


def test_it_opens_when_redis_can_be_reached() -> None:
    kit = RedisKit()
    kit.link.away = "Connection refused"
    kit.store.open(kit.heard, 20)
    kit.clock.pump([1] * 5)
    assert kit.heard.kept is None and kit.heard.changes == []
    kit.link.away = ""
    kit.clock.pump([5] * 3)
    assert kit.heard.kept is not None
    kit.store.close()


def test_redis_that_forgot_everything_is_used_again(kit: RedisKit, logged: Lines) -> None:
    kit.say("a", "b")
    for key in kit.link.ask("KEYS", f"{kit.address.prefix}*"):
        kit.link.ask("DEL", key)
    append(kit, "c")
    kit.clock.advance(1)
    append(kit, "d")
    assert kit.read() == ["d"]
    assert any("lost all" in line for line in logged)


def test_redis_that_forgot_the_last_scripts_is_reported(kit: RedisKit, logged: Lines) -> None:
    kit.say("a")
    kit.say("b")
    kit.link.ask("HSET", f"{kit.address.prefix}state", "batch", 1)
    kit.link.faults = [lose_before]
    append(kit, "c")
    kit.clock.advance(1)
    assert any("has lost what it had acknowledged last" in line for line in logged)


@pytest.mark.parametrize(
    ("configuration", "worth"),
    [
        ({}, "appendonly yes"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "appendfsync always"),
        ({"maxmemory": "100gb", "maxmemory-policy": "allkeys-lru"}, "maxmemory-policy noeviction"),
    ],
)
def test_what_an_acknowledgement_is_worth_is_said_with_the_cure(configuration: dict[str, str], worth: str) -> None:
    kit = RedisKit()
    kit.link.connect()
    try:
        for name, value in configuration.items():
            kit.link.ask("CONFIG", "SET", name, value)
        kit.open()
        assert worth in kit.store.worth
    finally:
        for name, value in (("appendonly", "no"), ("maxmemory", "0"), ("maxmemory-policy", "noeviction")):
            kit.link.ask("CONFIG", "SET", name, value)
    kit.store.close()


def test_a_redis_that_does_not_tell_its_configuration_is_used() -> None:
    kit = RedisKit()
    kit.link.connect()
    # Taking the lease, then four questions.
    kit.link.faults = [lambda ask: ask(), *[refuse("NOPERM no CONFIG")] * 4]
    kit.open()
    assert "is not known" in kit.store.worth
    kit.store.close()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=10)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from([None, lose_before, lose_after, refuse("OOM full")])), max_size=8))
def test_whatever_is_lost_each_message_is_either_kept_and_delivered_once_or_refused(sent: list[Any]) -> None:
    kit = RedisKit()
    kit.open()
    for number, (text, fault) in enumerate(sent):
        kit.link.faults = [fault] if fault else []
        append(kit, f"{number} {text}")
        kit.clock.pump([1] * 3)
    delivered = [each.text for each in kit.heard.messages]
    assert kit.read() == delivered
    refused = [each.text for each in kit.heard.lost]
    assert sorted(delivered + refused) == sorted(f"{number} {text}" for number, (text, _) in enumerate(sent))
    assert refused == [
        f"{number} {text}" for number, (text, fault) in enumerate(sent) if fault and "refuse" in str(fault)
    ]
    kit.store.close()


@pytest.mark.parametrize(
    ("text", "shown", "more"),
    [
        ("redis://localhost", "redis://localhost:6379", {}),
        ("rediss://u:p%40@r.example:7000/2", "rediss://r.example:7000/2", {"user": "u", "password": "p@", "tls": True}),
        ("redis://[::1]:1", "redis://[::1]:1", {"host": "::1"}),
        ("redis+unix:///run/r.sock?db=1", "unix:/run/r.sock/1", {"path": "/run/r.sock", "database": 1}),
        ("redis://h?password-file=/p&prefix=x:", "redis://h:6379", {"password_file": "/p", "prefix": "x:"}),
    ],
)
def test_an_address_is_a_url_and_is_shown_without_the_password(text: str, shown: str, more: dict[str, object]) -> None:
    address = parse_address(text)
    assert str(address) == shown
    assert {name: getattr(address, name) for name in more} == more
    assert "p@" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "redis:",
        "redis://",
        "redis://h/x",
        "redis://h:0x1",
        "redis://h:70000",
        "redis://h?more=1",
        "redis+unix://",
        "redisx://h",
        "redis://h/-1",
        "redis://h?prefix=",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        parse_address(text)


def test_sync_is_refused() -> None:
    address = RedisAddress("h")
    store = RedisStore(address, StoreLimits(), None, Logger(), now=lambda: 0.0, link=DirectLink(""), sync=True)
    with pytest.raises(UserError, match="appendfsync"):
        store.check()
