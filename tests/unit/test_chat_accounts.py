"""A registered name is its owner's: who has the password gets it, from whoever has it."""

from __future__ import annotations

import pytest

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Departed, Expelled, Identified, Reason, Renamed
from tests.builders.chat import PASSWORD, Person, account, build_core, kept_by
from tests.builders.facts import states


@pytest.fixture
def core() -> ChatCore:
    core = build_core(operators="boss")
    core.accounts.restore([account("Ann"), account("boss")])
    return core


def test_a_registered_name_is_refused_to_others_and_so_is_what_looks_like_it(core: ChatCore) -> None:
    bob = Person(core, "bob")
    for name in ("ann", "ANN", "Аnn"):
        [answer] = bob.does(f"/nick {name}")
        assert states(answer, "/login Ann")
    assert bob.conversation.member.name == "bob"


def test_the_password_gives_the_name(core: ChatCore) -> None:
    ann, bob = Person(core), Person(core, "bob")
    bob.sees()
    [answer] = ann.does(f"/login ann {PASSWORD}")
    assert states(answer, "Ann") and ann.conversation.member.account
    assert bob.sees() == [Identified("guest1", "Ann"), Renamed("guest1", "Ann")]
    # Any other name too, and back.
    ann.does("/nick anna", "/nick ann")
    assert ann.conversation.member.name == "ann"


@pytest.mark.parametrize("line", ["/login ann wrong password", "/login nobody-here xxxxxxxx", "/login wrong"])
def test_a_wrong_password_changes_nothing(core: ChatCore, line: str) -> None:
    ann = Person(core)
    assert len(ann.does(line)) == 1
    member = ann.conversation.member
    assert (member.name, member.account) == ("guest1", None)


def test_who_logs_in_takes_the_name_back_from_a_ghost(core: ChatCore) -> None:
    ghost, bob = Person(core), Person(core, "bob")
    ghost.does(f"/login ann {PASSWORD}")
    ann = Person(core)
    bob.sees(), ghost.sees()
    ann.does(f"/login ann {PASSWORD}")
    assert ghost.sees() == [Identified("guest3", "Ann"), Expelled()] and ghost.ended
    assert bob.sees()[1:] == [Departed("Ann", Reason.REPLACED), Renamed("guest3", "Ann")]
    assert core.find("ann") is ann.conversation.member
    # The same connection again is no ghost.
    ann.does(f"/login ann {PASSWORD}")
    assert core.find("ann") is ann.conversation.member and not ann.ended


def test_who_has_a_name_that_was_registered_meanwhile_gives_way(core: ChatCore) -> None:
    bob = Person(core, "bob")
    core.accounts.restore([account("bob")])
    owner = Person(core)
    owner.does(f"/login bob {PASSWORD}")
    assert bob.ended and core.find("bob") is owner.conversation.member


def test_logging_out_makes_a_guest(core: ChatCore) -> None:
    ann = Person(core)
    ann.does(f"/login ann {PASSWORD}", "/logout")
    member = ann.conversation.member
    assert (member.name, member.account) == ("guest2", None)
    assert states(ann.does("/logout")[0], "not logged in")


def test_a_name_is_registered_and_its_password_changed() -> None:
    core = build_core()
    bob = Person(core, "bob")
    answers = bob.does(f"/register {PASSWORD}")
    assert states(answers[0], "bob") and states(answers[1], "restarted")
    record = core.accounts.get("bob")
    assert record is not None and record.password.startswith("$scrypt$") and PASSWORD not in repr(record)
    assert states(bob.does(f"/register {PASSWORD}")[0], "bob")
    bob.does("/password battery staple")
    bob.conversation.end()
    again = Person(core)
    again.does(f"/login bob {PASSWORD}")
    assert again.conversation.member.account is None
    again.does("/login bob battery staple")
    assert again.conversation.member.name == "bob"
    # The store has it, for the next start.
    assert [each.name for each in kept_by(core).accounts] == ["bob"]


@pytest.mark.parametrize("line", ["/register short", "/register " + "x" * 2000, "/register"])
def test_a_guest_a_short_and_an_endless_password_are_refused(core: ChatCore, line: str) -> None:
    bob = Person(core, "bob")
    assert len(bob.does(line)) == 1 and bob.conversation.member.account is None
    guest = Person(core)
    assert len(guest.does(f"/register {PASSWORD}")) == 1 and guest.conversation.member.account is None
    assert len(core.accounts) == 2


def test_guessing_is_slowed_by_address_and_a_right_password_costs_nothing(core: ChatCore) -> None:
    ann = Person(core)
    for _ in range(20):
        ann.does(f"/login ann {PASSWORD}")
    assert ann.conversation.member.name == "Ann"
    guesser, other = Person(core, peer="198.51.100.1"), Person(core, peer="198.51.100.2")
    answers = [guesser.does(f"/login ann wrong{number}")[0] for number in range(12)]
    assert not states(answers[9], "try again in") and states(answers[10], "try again in")
    # Even the right one waits now, from that address.
    assert states(guesser.does(f"/login ann {PASSWORD}")[0], "try again in")
    other.does(f"/login ann {PASSWORD}")
    assert core.find("ann") is other.conversation.member
    core.context.reactor.advance(10)
    guesser.does(f"/login ann {PASSWORD}")
    assert core.find("ann") is guesser.conversation.member


def test_guessing_one_account_from_many_addresses_is_slowed_and_its_owner_comes_in(core: ChatCore) -> None:
    ann = Person(core, peer="192.0.2.7")
    ann.does(f"/login ann {PASSWORD}")
    refusals: list[str] = []
    for number in range(101):
        answer = core.authenticate("ann", "wrong password", f"2001:db8:{number}::/64")
        answer.addErrback(lambda failure: refusals.append(failure.getErrorMessage()))
    assert [states(refusal, "try again in") for refusal in refusals] == [False] * 100 + [True]
    elsewhere, home = Person(core, peer="198.51.100.1"), Person(core, peer="192.0.2.7")
    assert states(elsewhere.does(f"/login ann {PASSWORD}")[0], "try again in")
    home.does(f"/login ann {PASSWORD}")
    assert core.find("ann") is home.conversation.member
    core.context.reactor.advance(36)
    elsewhere.does(f"/login ann {PASSWORD}")
    assert core.find("ann") is elsewhere.conversation.member


def test_passwords_are_not_taken_where_others_can_read_them(core: ChatCore) -> None:
    bob = Person(core, "bob")
    bob.is_confidential = False
    for line in (f"/register {PASSWORD}", f"/login ann {PASSWORD}", "/password aaaaaaaa"):
        assert states(bob.does(line)[0], "TLS")
    core.reconfigure(build_core(plain_passwords=True).options)
    bob.does(f"/login ann {PASSWORD}")
    assert bob.conversation.member.name == "Ann"


def test_who_leaves_while_the_password_is_checked_is_not_logged_in(core: ChatCore) -> None:
    ann = Person(core)
    member = ann.conversation.member
    logging_in = core.login(member, "ann", PASSWORD)
    ann.conversation.end()
    other = Person(core)
    logging_in.addBoth(lambda _: None)
    assert other.conversation.member.account is None


def test_an_operators_name_is_registered_on_this_machine_only() -> None:
    core = build_core(operators="Chef")
    stranger, local = Person(core, "bob"), Person(core, peer="127.0.0.1")
    assert states(stranger.does("/nick chef")[0], "reserved")
    local.does("/nick chef", f"/register {PASSWORD}", "/logout")
    assert local.conversation.member.name != "chef"
    stranger.does(f"/login chef {PASSWORD}", "/nick bert", "/nick chef")
    assert stranger.conversation.member.name == "chef"


def test_an_account_deletes_its_messages_and_no_others(core: ChatCore) -> None:
    ann, bob = Person(core), Person(core, "bob")
    assert states(ann.does("/forget ann")[0], "log in")
    ann.does(f"/login ann {PASSWORD}", "one", "/me two")
    bob.does("three")
    assert states(ann.does("/forget bob")[0], "/forget Ann")
    assert states(ann.does("/forget ANN")[0], "2", "Ann")
    shown = Person(core).sees()
    assert any("three" in line for line in shown) and not any("one" in line or "two" in line for line in shown)


class TestMissed:
    def test_who_logs_in_is_told_how_much_was_said_since(self, core: ChatCore) -> None:
        now = 1000.0
        core.now = core.archive.store._now = lambda: now  # type: ignore[attr-defined]
        ann, bob = Person(core), Person(core, "bob")
        assert not any("since" in str(line) for line in ann.does(f"/login ann {PASSWORD}"))
        bob.does("seen")
        ann.does("/join den")
        core.depart(ann.conversation.member)
        now += 1
        bob.does("one", "two", "/join den", "three", "/join tea", "four")
        now += 1
        again = Person(core)
        bob.does("/join lobby", "delivered")
        now += 1
        assert states(again.does(f"/login ann {PASSWORD}")[-1], "2 messages in lobby", "/history 1970-01-01 ")
        assert states(again.does("/join den")[-1], "1 message in den")
        assert not any("since" in str(line) for line in again.does("/leave", "/join tea", "/join den"))

    def test_a_drain_notes_what_was_read(self, core: ChatCore) -> None:
        core.now = lambda: 1000.0
        ann = Person(core)
        ann.does(f"/login ann {PASSWORD}")
        core.drain()
        assert core.markers.get("ann", "#lobby")

    def test_an_account_has_so_many_markers_as_the_store_keeps(self, core: ChatCore) -> None:
        for number in range(1000):
            core.markers.advance("ann", f"room{number}", number + 1)
        assert core.markers.get("ann", "room999") == 1000 and not core.markers.get("ann", "room0")
        assert len(core.markers._markers["ann"]) == 200

    def test_a_guest_has_no_markers(self, core: ChatCore) -> None:
        guest, bob = Person(core), Person(core, "bob")
        core.depart(guest.conversation.member)
        bob.does("one")
        assert not any("since" in str(line) for line in Person(core).does("/join den", "/join lobby"))
