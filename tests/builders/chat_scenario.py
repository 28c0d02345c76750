"""What people do in a chat, written once for every wire form that it has."""

from __future__ import annotations

from typing import Any, Protocol

from netsvc.services.chat.core import ChatCore
from tests.builders.chat import account, build_core

#: What a member has seen: `said`, `acted`, `joined`, `left`, `gone`, `renamed` or `kicked`, and who, where, what. What
#: happened before it came begins with `past`; `over` is the end of the connection.
Seen = tuple[str, ...]


class Chatter(Protocol):
    """A member at the end of a wire. Each verb is what its client sends; a refusal is not raised."""

    def rename(self, name: str) -> None: ...
    def login(self, name: str, password: str) -> None: ...
    def join(self, room: str) -> None: ...
    def part(self, room: str) -> None: ...
    def say(self, room: str, text: str) -> None: ...
    def act(self, room: str, text: str) -> None: ...
    def kick(self, room: str, name: str, why: str) -> None: ...
    def ban(self, room: str, name: str) -> None: ...
    def quit(self) -> None: ...
    def vanish(self) -> None:
        """Lose the connection."""

    def sees(self) -> list[Seen]:
        """Return what it has seen since the last time, without the answers to what it did itself."""


class ChatScenario:
    """The scenario. A subclass connects members over its wire form."""

    def connect(self, core: ChatCore, name: str, peer: str = "192.0.2.1") -> Any:
        """Return a `Chatter` with that name, in the lobby."""
        raise NotImplementedError

    def two(self, core: ChatCore) -> tuple[Chatter, Chatter]:
        """Two members that have seen each other come."""
        ann, bob = self.connect(core, "ann"), self.connect(core, "bob", "198.51.100.7")
        ann.sees(), bob.sees()
        return ann, bob

    def test_talk_reaches_the_others_in_one_order_and_not_oneself(self) -> None:
        ann, bob = self.two(build_core())
        ann.say("lobby", "hello: [x] *")
        bob.say("lobby", "学习")
        ann.act("lobby", "waves")
        assert bob.sees() == [("said", "lobby", "ann", "hello: [x] *"), ("acted", "lobby", "ann", "waves")]
        assert ann.sees() == [("said", "lobby", "bob", "学习")]

    def test_members_come_have_other_names_and_go(self) -> None:
        ann, bob = self.two(build_core())
        bob.join("den")
        ann.join("den")
        assert ("joined", "den", "ann") in bob.sees()
        ann.rename("anna")
        ann.part("den")
        ann.quit()
        assert bob.sees() == [("renamed", "ann", "anna"), ("left", "den", "anna"), ("gone", "anna")]

    def test_a_name_that_is_taken_or_looks_like_it_changes_nothing(self) -> None:
        ann, bob = self.two(build_core())
        for name in ("ANN", "аnn", "admin", "a b", ""):
            bob.rename(name)
        bob.say("lobby", "still me")
        assert ann.sees() == [("said", "lobby", "bob", "still me")]

    def test_what_was_said_before_is_seen_by_who_comes_later(self) -> None:
        core = build_core()
        ann, _ = self.two(core)
        ann.say("lobby", "hello")
        ann.act("lobby", "waves")
        past = [each for each in self.connect(core, "dora").sees() if each[0] == "past"]
        assert past == [("past", "said", "lobby", "ann", "hello"), ("past", "acted", "lobby", "ann", "waves")]

    def test_who_is_kicked_comes_back_and_who_is_banned_does_not(self) -> None:
        ann, bob = self.two(build_core())
        ann.join("den")
        bob.join("den")
        ann.sees()
        ann.kick("den", "bob", "too loud")
        bob.say("den", "lost")
        assert bob.sees() == [("kicked", "den", "bob", "ann", "too loud")] and ann.sees() == []
        bob.join("den")
        assert ann.sees() == [("joined", "den", "bob")]
        ann.ban("den", "bob")
        bob.rename("rob")
        bob.join("den")
        assert not [seen for seen in ann.sees() if seen[0] == "joined"]

    def test_a_ghost_loses_its_name_to_the_owner(self) -> None:
        core = build_core(plain_passwords=True)
        core.accounts.restore([account("ann")])
        ghost, bob = self.connect(core, "ghost"), self.connect(core, "bob")
        ghost.login("ann", "correct horse")
        again = self.connect(core, "again")
        bob.sees(), ghost.sees()
        again.login("ann", "wrong horse")
        assert bob.sees() == []
        again.login("ann", "correct horse")
        assert bob.sees() == [("gone", "ann"), ("renamed", "again", "ann")]
        assert ghost.sees()[-1:] == [("over",)]

    def test_a_lost_connection_is_seen_as_one_that_ended(self) -> None:
        ann, bob = self.two(build_core())
        bob.vanish()
        assert ann.sees() == [("gone", "bob")]

    def test_a_restart_keeps_what_was_said_and_whose_names_and_rooms_there_are(self) -> None:
        core = build_core(plain_passwords=True)
        core.accounts.restore([account("ann")])
        ann = self.connect(core, "guest")
        ann.login("ann", "correct horse")
        ann.join("den")
        core.moderation.register_room(core.find("ann"), core.rooms.open("den", ""))
        ann.say("den", "remember")
        ann.sees()
        core.drain()
        assert ann.sees()[-1:] == [("over",)]
        after = build_core(core.archive.store, plain_passwords=True)
        bob = self.connect(after, "bob")
        bob.rename("ann")
        bob.join("den")
        assert ("past", "said", "den", "ann", "remember") in bob.sees()
        owner = self.connect(after, "guest")
        owner.login("ann", "correct horse")
        owner.join("den")
        bob.sees()
        owner.kick("den", "bob", "mine")
        assert bob.sees() == [("kicked", "den", "bob", "ann", "mine")]
