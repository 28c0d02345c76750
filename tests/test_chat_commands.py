from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.commands import COMMANDS
from netsvc.services.chat.conversation import Conversation
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Event
from netsvc.services.chat.wording import wording
from tests.test_chat_core import build_core


class Person:
    """A conversation, and all the lines that it shows."""

    def __init__(self, core: ChatCore, name: str | None = None) -> None:
        self.shown: list[str] = []
        self.conversation = Conversation(core, self, self.tell)
        self.conversation.begin()
        if name:
            self.does(f"/nick {name}")

    def tell(self, lines: Iterable[str]) -> None:
        self.shown += lines

    def deliver(self, event: Event) -> None:
        self.shown.append(wording(event))

    def end(self) -> None:
        raise AssertionError("nobody asked for it")

    def does(self, *lines: str) -> list[str]:
        """Type lines; return what was shown since the last time."""
        self.sees()
        for line in lines:
            self.conversation.line_received(line)
        return self.sees()

    def sees(self) -> list[str]:
        shown, self.shown = self.shown, []
        return shown


@pytest.fixture
def core() -> ChatCore:
    return build_core()


@pytest.fixture
def ann(core: ChatCore) -> Person:
    return Person(core, "ann")


@pytest.fixture
def bob(core: ChatCore, ann: Person) -> Person:
    bob = Person(core, "bob")
    ann.sees(), bob.sees()
    return bob


def test_a_newcomer_is_greeted_and_sees_who_is_there_the_topic_and_the_past(core: ChatCore, ann: Person) -> None:
    ann.does("/topic tea", "hello", "/me waves")
    core.context.reactor.advance(150)
    assert Person(core).sees() == [
        "* welcome to the chat, you are guest2",
        "* /nick NAME changes that, /help shows more",
        "* you are in lobby now, with ann",
        "* the topic of lobby: tea",
        "(2 minutes ago) [lobby] ann: hello",
        "(2 minutes ago) [lobby] * ann waves",
    ]
    assert ann.sees() == ["* guest2 joined lobby"]


def test_the_first_is_alone(core: ChatCore) -> None:
    assert Person(core).sees()[-1] == "* you are in lobby now, alone"


def test_plain_lines_go_to_the_room_and_not_back(ann: Person, bob: Person) -> None:
    assert ann.does("hi", "  two  ", "", "   ", "\x07", "//quit", "///") == []
    assert bob.sees() == ["[lobby] ann: hi", "[lobby] ann:   two  ", "[lobby] ann: /quit", "[lobby] ann: //"]


def test_nick(ann: Person, bob: Person) -> None:
    assert ann.does("/nick 小明") == ["* you are now 小明"]
    assert bob.sees() == ["* ann is now 小明"]
    assert ann.does("/nick") == ["* usage: /nick NAME"]
    assert ann.does("/nick BOB") == ["* BOB is taken; choose another name"]
    assert ann.does("/nick 小明") == ["* you are 小明 already"]
    assert ann.does("/nick a b") == [
        "* a space cannot be in a name; a name is 1 to 32 letters and digits of any script, with - _ . between them"
    ]
    assert bob.sees() == []


def test_join(ann: Person, bob: Person) -> None:
    assert ann.does("/join #Den") == ["* you are in Den now, alone"]
    assert bob.does("/JOIN   den  ") == ["* you are in Den now, with ann"]
    assert ann.sees() == ["* bob joined Den"]
    assert ann.does("here") == []
    assert bob.sees() == ["[Den] ann: here"]
    assert ann.does("/join lobby", "there") == ["* you talk in lobby now"]
    assert bob.sees() == ["[lobby] ann: there"]
    assert ann.does("/join") == ["* usage: /join ROOM"]
    assert ann.does("/join [x]")[0].startswith('* "[" cannot be in a name; a name is 1 to 32')
    assert ann.does("hm") == []
    assert bob.sees() == ["[lobby] ann: hm"]


def test_leave(ann: Person, bob: Person) -> None:
    ann.does("/join a", "/join b", "/join c")
    assert ann.does("/leave a") == ["* you left a; you talk in c"]
    assert ann.does("/leave") == ["* you left c; you talk in b"]
    assert ann.does("/leave a") == ['* you are in no room called "a"']
    assert ann.does("/leave lobby") == ["* you left lobby; you talk in b"]
    assert bob.sees() == ["* ann left lobby"]
    assert ann.does("/leave") == ["* you left b; you are in no room now"]
    refusal = ["* you are in no room; /join ROOM takes you into one, /rooms lists them"]
    for line in ("/leave", "hello?", "/me waves", "/topic", "/topic x", "/who"):
        assert ann.does(line) == refusal


def test_rooms(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/join den", "/topic dark")
    assert bob.does("/join den", "/leave lobby", "/rooms")[-2:] == [
        "* den, 2 members (you are in it): dark",
        "* lobby, 1 member",
    ]
    ann.does("/leave"), bob.does("/leave")
    assert bob.does("/rooms") == ["* lobby, 1 member"]


def test_no_more_rooms_are_listed_than_fit_an_answer(core: ChatCore) -> None:
    people = [Person(core) for _ in range(6)]
    for number, person in enumerate(people):
        person.does(*(f"/join room{number}-{count}" for count in range(9)))
    shown = people[0].does("/rooms")
    assert len(shown) == 51 and shown[0] == "* lobby, 6 members (you are in it)"
    assert shown[-1] == "* and 5 smaller ones"


def test_who(ann: Person, bob: Person) -> None:
    ann.does("/join den")
    assert bob.does("/who") == ["* in lobby: ann, bob"]
    assert bob.does("/who #DEN") == ["* in den: ann"]
    assert bob.does("/who nowhere") == ['* there is no room called "nowhere"; /rooms lists them']
    ann.does("/leave")
    assert bob.does("/who den") == ['* there is no room called "den"; /rooms lists them']
    ann.does("/leave"), bob.does("/leave")
    assert bob.does("/who lobby") == ["* nobody is in lobby"]


def test_no_more_members_are_listed_than_fit_an_answer(core: ChatCore) -> None:
    people = [Person(core) for _ in range(103)]
    names = [f"guest{number}" for number in range(1, 103)]
    assert people[-1].shown[-1] == f"* you are in lobby now, with {', '.join(names[:100])} and 2 more"
    assert people[0].does("/who") == [f"* in lobby: {', '.join(names[:100])} and 3 more"]


def test_msg(core: ChatCore, ann: Person, bob: Person) -> None:
    eve = Person(core, "eve")
    bob.does("/leave"), ann.sees(), eve.sees()
    assert ann.does("/msg BOB  psst, you ") == ["you -> bob: psst, you"]
    assert bob.sees() == ["ann -> you: psst, you"]
    assert eve.sees() == []
    for line in ("/msg", "/msg bob", "/msg bob  "):
        assert ann.does(line) == ["* usage: /msg NAME TEXT"]
    assert ann.does("/msg nobody hi") == ['* nobody is called "nobody"']
    assert ann.does("/msg ann hi") == ["* that is yourself"]
    assert bob.sees() == []


def test_me(ann: Person, bob: Person) -> None:
    assert ann.does("/me waves\tslowly") == []
    assert bob.sees() == ["[lobby] * ann waves slowly"]
    ann.does("/me　鞠躬　了")
    assert bob.sees() == ["[lobby] * ann 鞠躬　了"]
    assert ann.does("/me") == ["* usage: /me TEXT"]


def test_topic(ann: Person, bob: Person) -> None:
    assert ann.does("/topic") == ["* lobby has no topic"]
    assert ann.does("/topic Tea  and cake") == ["* the topic of lobby: Tea  and cake"]
    assert bob.does("/topic") == ["* the topic of lobby: Tea  and cake"]
    assert ann.does(f"/topic {'x' * 201}") == ["* that topic has 201 characters; a topic has at most 200"]
    assert ann.does("/topic -") == ["* lobby has no topic"]
    assert bob.sees() == ["* ann removed the topic of lobby"]


def test_help_names_every_command(ann: Person) -> None:
    shown = ann.does("/help")
    assert all(line.startswith("* ") for line in shown)
    assert set(COMMANDS) == {"nick", "join", "leave", "rooms", "who", "msg", "me", "topic", "help", "quit"}
    for name in COMMANDS:
        assert any(line.startswith(f"* /{name} ") for line in shown)


def test_quit(ann: Person, bob: Person) -> None:
    assert ann.does("/QUIT now") == ["* goodbye"] and ann.conversation.over
    ann.conversation.end()
    ann.conversation.end()
    assert bob.sees() == ["* ann left the chat"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/jion den", "there is no command /jion; did you mean /join? /help lists them"),
        ("/TOPCI", "there is no command /TOPCI; did you mean /topic? /help lists them"),
        ("/m bob hi", "there is no command /m; did you mean /msg or /me? /help lists them"),
        ("/", "there is no command /; /help lists them"),
        ("/ join den", "there is no command /; /help lists them"),
        ("/xyzzy", "there is no command /xyzzy; /help lists them"),
        ("/" + "x" * 30, f"there is no command /{'x' * 20}… (10 more); /help lists them"),
    ],
)
def test_an_unknown_command_names_the_nearest(ann: Person, bob: Person, line: str, answer: str) -> None:
    assert ann.does(line) == [f"* {answer}"]
    assert bob.sees() == []


_TYPED = st.builds(
    "{}{}".format,
    st.sampled_from(["", *(f"/{name} " for name in COMMANDS), "/msg bob ", "/join bob ", "/nick a", "//", "/me * "]),
    st.text(max_size=20),
)


@settings(deadline=None)
@given(st.lists(_TYPED, max_size=12))
def test_nobody_can_write_another_kind_of_line(lines: list[str]) -> None:
    core = build_core()
    ann, bob = Person(core), Person(core, "bob")
    bob.sees()
    before: str = ann.conversation.member.name
    for line in lines:
        shown = ann.does(line)
        name = ann.conversation.member.name
        assert all(part.startswith(("* ", "you -> ", "(")) for part in shown)
        for part in bob.sees():
            assert part.startswith((f"* {before} ", f"[lobby] {name}: ", f"[lobby] * {name} ", f"{name} -> you: "))
            assert "\n" not in part and "\x1b" not in part
        before = name
