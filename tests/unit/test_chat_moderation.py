"""Operators keep order in their rooms: kick, ban, mute, modes, invitations, registered rooms."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, globalLogPublisher

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Changed, Departed, Expelled, Kicked, Reason, Said
from netsvc.services.chat.rules import MODES, MOST_BANS
from tests.builders.chat import PASSWORD, Person, account, build_core, kept_by
from tests.builders.facts import states


@pytest.fixture
def core() -> ChatCore:
    core = build_core(operators="boss", rate=1000, burst=1000)
    core.accounts.restore([account("boss"), account("ann"), account("carl")])
    return core


@pytest.fixture
def ann(core: ChatCore) -> Person:
    """The first one in the den."""
    ann = Person(core)
    ann.does(f"/login ann {PASSWORD}", "/join den")
    return ann


@pytest.fixture
def bob(core: ChatCore, ann: Person) -> Person:
    bob = Person(core, "bob", peer="198.51.100.7")
    bob.does("/join den")
    ann.sees()
    return bob


def enters(person: Person, room: str = "den") -> bool:
    person.does(f"/join {room}")
    found = person.conversation.core.rooms.find(room)
    return found is not None and found in person.conversation.member.rooms


def test_who_came_first_kicks_and_the_room_hears_of_it(ann: Person, bob: Person) -> None:
    ann.does("/kick bob  too loud ")
    assert bob.sees() == [Kicked("den", "bob", "ann", "too loud")]
    assert states(bob.does("hello")[0], "/join") and enters(bob)


def test_others_may_not(core: ChatCore, ann: Person, bob: Person) -> None:
    for line in ("/kick ann", "/ban ann", "/mute ann", "/op bob", "/mode +topic", "/release", "/bans", "/unban ann"):
        assert states(bob.does(line)[0], "den")
    assert len(bob.does("/claim")) == 1
    assert states(bob.does("/disconnect ann")[0], "operator")
    assert ann.sees() == [] and core.rooms.find("den") in ann.conversation.member.rooms
    # In the lobby nobody is the first.
    Person(core, "dora").does("/kick bob")
    assert enters(bob, "lobby") and not any(isinstance(each, Kicked) for each in bob.sees())


def test_a_member_is_banned_by_its_address_for_a_time(core: ChatCore, ann: Person, bob: Person) -> None:
    [answer] = ann.does("/ban bob 10m spam")
    assert states(answer, "address:198.51.100.7")
    assert bob.sees() == [Changed("den", "ann", "banned", "bob", "spam"), Kicked("den", "bob", "ann", "spam")]
    bob.does("/nick rob")
    assert not enters(bob) and not enters(Person(core, peer="198.51.100.7"))
    assert enters(Person(core, peer="198.51.100.8"))
    assert states(ann.does("/bans")[0], "198.51.100.7", "10 more minutes", "spam")
    core.context.reactor.advance(601)
    assert enters(bob)
    assert not states(ann.does("/bans")[0], "198.51.100.7")


def test_an_account_is_banned_whatever_its_address(core: ChatCore, ann: Person) -> None:
    carl = Person(core, peer="203.0.113.1")
    carl.does(f"/login carl {PASSWORD}", "/join den")
    ann.does("/ban carl")
    carl.conversation.end()
    again = Person(core, peer="203.0.113.2")
    assert enters(again)
    again.does("/leave den", f"/login carl {PASSWORD}")
    assert not enters(again)
    ann.does("/unban account:carl")
    assert enters(again)


def test_behind_a_proxy_on_this_machine_the_name_is_banned(core: ChatCore, ann: Person) -> None:
    dora = Person(core, "dora", peer="127.0.0.1")
    [answer] = ann.does("/ban dora")
    assert states(answer, "name:dora") and not enters(dora)
    assert enters(Person(core, peer="127.0.0.1"))


@pytest.mark.parametrize(
    ("pattern", "peer", "banned"),
    [
        ("address:198.51.0.0/16", "198.51.100.7", True),
        ("address:198.51.0.0/16", "203.0.113.1", False),
        ("address:2001:db8::/32", "2001:db8:1:2::/64", True),
        ("address:2001:db8:1:2::99", "2001:db8:1:2::/64", True),
        ("address:2001:db8::/32", "198.51.100.7", False),
        ("address:0.0.0.0/0", "unknown", False),
        ("name:ROB", "198.51.100.7", True),
    ],
)
def test_networks_and_names_that_are_not_here(
    core: ChatCore, ann: Person, pattern: str, peer: str, banned: bool
) -> None:
    ann.does(f"/ban {pattern}")
    assert enters(Person(core, "rob", peer=peer)) is not banned
    ann.does(f"/unban {pattern}")
    assert enters(Person(core, "bert", peer=peer))


@pytest.mark.parametrize("who", ["address:nowhere", "bob 99x", "bob 0s", "nobody-here", "", "ann"])
def test_a_ban_that_cannot_be_is_refused(core: ChatCore, ann: Person, bob: Person, who: str) -> None:
    assert len(ann.does(f"/ban {who}")) == 1 and bob.sees() == []
    assert not core.rooms.find("den").rules.bans  # type: ignore[union-attr]


def test_bans_are_limited(ann: Person) -> None:
    for number in range(MOST_BANS):
        ann.does(f"/ban name:n{number}")
    assert states(ann.does("/ban name:more")[0], str(MOST_BANS))
    # An equal one takes its place.
    assert not states(ann.does("/ban name:n1 5m")[0], "limit")


def test_the_muted_read_only(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/mute bob 5m")
    bob.sees()
    for line in ("hello", "/me waves"):
        assert states(bob.does(line)[0], "muted", "den")
    assert ann.sees() == []
    ann.does("news")
    assert bob.sees() == [Said("den", "ann", "news")]
    core.context.reactor.advance(301)
    assert bob.does("hello") == [] and ann.sees() == [Said("den", "bob", "hello")]


def test_modes(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/mode +moderated topic")
    assert bob.sees() == [Changed("den", "ann", "modes", "+moderated +topic")]
    assert states(bob.does("hi")[0], "den") and states(bob.does("/topic tea")[0], "den")
    ann.does("/op bob")
    bob.sees()
    assert bob.does("hi") == [] and states(bob.does("/topic tea")[0], "tea")
    assert states(bob.does("/mode")[0], "moderated", "topic")
    ann.does("/mode -moderated -topic +secret")
    dora = Person(core, "dora")
    assert not any("den" in line for line in dora.does("/rooms", "/who den") if not line.startswith("* no such"))
    assert any("den" in line for line in bob.does("/rooms"))
    assert states(ann.does("/mode +silly")[0], *MODES)


def test_entry_by_invitation(core: ChatCore, ann: Person) -> None:
    dora = Person(core, "dora", peer="203.0.113.9")
    ann.does("/mode +invite")
    assert not enters(dora)
    ann.does("/invite dora")
    assert dora.sees()[-1:] == [Changed("den", "ann", "invited", "dora")]
    assert enters(dora)
    # It is for one time.
    dora.does("/leave den")
    assert not enters(dora)
    ann.does("/mode -invite +registered")
    assert not enters(dora)
    carl = Person(core)
    carl.does(f"/login carl {PASSWORD}")
    assert enters(carl)


def test_an_operator_makes_operators_and_does_not_get_at_the_founder(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/claim", "/op bob")
    for line in ("/kick ann", "/deop ann", "/ban ann"):
        assert states(bob.does(line)[0], "ann")
    ann.does("/deop bob")
    assert states(bob.does("/kick ann")[0], "operator")


def test_an_operator_without_an_account_is_none_after_it_left(ann: Person, bob: Person) -> None:
    ann.does("/op bob")
    bob.does("/leave den", "/join den")
    assert states(bob.does("/kick ann")[0], "operator")


def test_a_registered_room_outlives_its_members(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/claim", "/mode +topic", "/topic tea", "/ban name:rob")
    ann.does("/leave den"), bob.does("/leave den")
    den: Any = core.rooms.find("den")
    assert not den.members and den.rules.founder == "ann"
    # Others come first now, and are no operators.
    assert enters(bob) and states(bob.does("/topic coffee")[0], "operator")
    assert enters(ann) and states(ann.does("/topic coffee")[0], "coffee")
    [record] = [each for each in kept_by(core).rooms if each.key == "den"]
    assert (record.founder, set(record.modes), record.topic) == ("ann", {"topic"}, "coffee")
    assert [ban.pattern for ban in record.bans] == ["rob"]


def test_a_registered_room_gives_its_place_to_no_other() -> None:
    core = build_core(rooms=3, operators="boss")
    core.accounts.restore([account("ann")])
    ann = Person(core)
    ann.does(f"/login ann {PASSWORD}", "/join den", "/claim", "/leave den", "/join a", "/leave a", "/join b")
    assert [core.rooms.find(name) is not None for name in ("den", "a", "b")] == [True, False, True]
    ann.does("/join den", "/release", "/leave den", "/leave b", "/join c", "/join d")
    assert core.rooms.find("den") is None


def test_the_rules_of_another_room_end_with_its_last_member(core: ChatCore, bob: Person) -> None:
    bob.does("/join shed", "/mode +invite", "/ban name:rob", "/leave shed")
    carl = Person(core, "rob")
    assert enters(carl, "shed") and states(carl.does("/mode")[0], "no modes")


def test_an_account_registers_few_rooms(core: ChatCore, ann: Person) -> None:
    answers = [ann.does(f"/join r{number}", "/claim")[-1] for number in range(6)]
    assert states(answers[5], "5") and not core.rooms.find("r5").rules.founder  # type: ignore[union-attr]


def test_an_operator_of_the_server_operates_every_room(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/claim", "/mode +invite", "/ban account:boss")
    boss = Person(core)
    boss.does(f"/login boss {PASSWORD}")
    assert enters(boss)
    boss.does("/kick ann bye", "/mode -invite")
    assert Kicked("den", "ann", "boss", "bye") in bob.sees()
    boss.does("/join lobby", "/mute bob")
    assert states(bob.does("/join lobby", "hi")[-1], "muted")
    bob.sees(), ann.sees()
    boss.does("/disconnect bob spam")
    assert bob.sees() == [Expelled("boss", "spam")] and bob.ended
    assert Departed("bob", Reason.EXPELLED) in ann.sees()


def test_the_log_says_who_did_what(ann: Person, bob: Person) -> None:
    records: list[Any] = []
    observer = cast(ILogObserver, records.append)
    globalLogPublisher.addObserver(observer)
    try:
        ann.does('/ban bob 1h "so\x1b[31m"')
    finally:
        globalLogPublisher.removeObserver(observer)
    [record] = [each for each in records if "moderator" in each]
    assert (record["moderator"], record["account"], record["room"]) == ("ann", "ann", "den")
    assert "198.51.100.7" in record["whom"] and "\x1b" not in record["because"]
