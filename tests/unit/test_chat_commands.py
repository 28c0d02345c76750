from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.commands import COMMANDS
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Acted, Departed, Joined, Left, Renamed, Retitled, Said, Whispered
from netsvc.services.chat.wording import past as told
from netsvc.services.chat.wording import wording
from tests.builders.chat import Person, build_core, said
from tests.builders.facts import states


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
    welcome, hint, here, topic, *past = Person(core).sees()
    assert states(welcome, "* ", "guest2") and states(hint, "* ", "/nick", "/help")
    assert states(here, "* ", "lobby", "ann") and states(topic, "* ", "topic", "lobby", "tea")
    assert past == [told(event, 150) for event in (Said("lobby", "ann", "hello"), Acted("lobby", "ann", "waves"))]
    assert ann.sees() == [Joined("lobby", "guest2")]


def test_the_first_is_alone(core: ChatCore) -> None:
    here = Person(core).sees()[-1]
    assert states(here, "* ", "lobby") and "guest" not in here


def test_plain_lines_go_to_the_room_and_not_back(ann: Person, bob: Person) -> None:
    assert ann.does("hi", "  two  ", "", "   ", "\x07", "//quit", "///") == []
    assert bob.sees() == said("ann", "hi", "  two  ", "/quit", "//")


def test_nick(ann: Person, bob: Person) -> None:
    [answer] = ann.does("/nick 小明")
    assert states(answer, "* ", "小明")
    assert bob.sees() == [Renamed("ann", "小明")]
    [answer] = ann.does("/nick")
    assert states(answer, "* ", "/nick NAME")
    for text, *facts in (("BOB", "BOB"), ("小明", "小明"), ("bоb", "bob"), ("a b", "space", "32"), ("admin", "admin")):
        [answer] = ann.does(f"/nick {text}")
        assert states(answer, "* ", *facts)
    assert bob.sees() == []


def test_join(ann: Person, bob: Person) -> None:
    [answer] = ann.does("/join #Den")
    assert states(answer, "* ", "Den") and "bob" not in answer
    [answer] = bob.does("/JOIN   den  ")
    assert states(answer, "* ", "Den", "ann")
    assert ann.sees() == [Joined("Den", "bob")]
    assert ann.does("here") == []
    assert bob.sees() == said("ann", "here", room="Den")
    [answer] = ann.does("/join lobby", "there")
    assert states(answer, "* ", "lobby")
    assert bob.sees() == said("ann", "there")
    [answer] = ann.does("/join")
    assert states(answer, "* ", "/join ROOM")
    assert states(ann.does("/join [x]")[0], "* ", '"["', "32")
    assert ann.does("hm") == []
    assert bob.sees() == said("ann", "hm")


def test_leave(ann: Person, bob: Person) -> None:
    ann.does("/join a", "/join b", "/join c")
    for line, *facts in (("/leave a", " a", " c"), ("/leave", " c", " b"), ("/leave a", '"a"')):
        [answer] = ann.does(line)
        assert states(answer, "* ", *facts)
    [answer] = ann.does("/leave lobby")
    assert states(answer, "* ", "lobby", " b")
    assert bob.sees() == [Left("lobby", "ann")]
    [answer] = ann.does("/leave")
    assert states(answer, "* ", " b")
    for line in ("/leave", "hello?", "/me waves", "/topic", "/topic x", "/who"):
        [answer] = ann.does(line)
        assert states(answer, "* ", "/join ROOM", "/rooms")


def test_rooms(core: ChatCore, ann: Person, bob: Person) -> None:
    ann.does("/join den", "/topic dark")
    den, hall = bob.does("/join den", "/leave lobby", "/rooms")[-2:]
    assert states(den, "* den", "2 members", "you", "dark")
    assert states(hall, "* lobby", "1 member") and "you" not in hall
    ann.does("/leave"), bob.does("/leave")
    assert bob.does("/rooms") == [hall]


def test_no_more_rooms_are_listed_than_fit_an_answer(core: ChatCore) -> None:
    people = [Person(core) for _ in range(6)]
    for number, person in enumerate(people):
        person.does(*(f"/join room{number}-{count}" for count in range(9)))
    shown = people[0].does("/rooms")
    assert len(shown) == 51 and states(shown[0], "* lobby", "6 members")
    assert states(shown[-1], "* ", "5")


def test_who(ann: Person, bob: Person) -> None:
    ann.does("/join den")
    for line, *facts in (("/who", "lobby", "ann, bob"), ("/who #DEN", "den", "ann")):
        [answer] = bob.does(line)
        assert states(answer, "* ", *facts) and answer.endswith(facts[-1])
    [answer] = bob.does("/who nowhere")
    assert states(answer, "* ", '"nowhere"', "/rooms")
    ann.does("/leave")
    [answer] = bob.does("/who den")
    assert states(answer, "* ", '"den"', "/rooms")
    ann.does("/leave"), bob.does("/leave")
    [answer] = bob.does("/who lobby")
    assert states(answer, "* ", "lobby") and "ann" not in answer


def test_no_more_members_are_listed_than_fit_an_answer(core: ChatCore) -> None:
    people = [Person(core) for _ in range(103)]
    names = [f"guest{number}" for number in range(1, 103)]
    assert states(people[-1].shown[-1], "* ", "lobby", f"{', '.join(names[:100])} and 2 more")
    [answer] = people[0].does("/who")
    assert states(answer, "* ", "lobby", f"{', '.join(names[:100])} and 3 more")


def test_msg(core: ChatCore, ann: Person, bob: Person) -> None:
    eve = Person(core, "eve")
    bob.does("/leave"), ann.sees(), eve.sees()
    [copy] = ann.does("/msg BOB  psst, you ")
    assert states(copy, "bob", "psst, you") and not copy.startswith("* ")
    assert bob.sees() == [Whispered("ann", "psst, you")]
    assert eve.sees() == []
    for line in ("/msg", "/msg bob", "/msg bob  "):
        [answer] = ann.does(line)
        assert states(answer, "* ", "/msg NAME TEXT")
    [answer] = ann.does("/msg zoe hi")
    assert states(answer, "* ", '"zoe"')
    [answer] = ann.does("/msg ann hi")
    assert states(answer, "* ")
    assert bob.sees() == []


def test_me(ann: Person, bob: Person) -> None:
    assert ann.does("/me waves\tslowly") == []
    assert bob.sees() == [Acted("lobby", "ann", "waves slowly")]
    ann.does("/me　鞠躬　了")
    assert bob.sees() == [Acted("lobby", "ann", "鞠躬　了")]
    [answer] = ann.does("/me")
    assert states(answer, "* ", "/me TEXT")


def test_topic(ann: Person, bob: Person) -> None:
    none = ann.does("/topic")
    assert states(none[0], "* lobby", "no topic")
    [answer] = ann.does("/topic Tea  and cake")
    assert states(answer, "* ", "lobby", "Tea  and cake")
    assert bob.does("/topic") == [answer]
    [answer] = ann.does(f"/topic {'x' * 201}")
    assert states(answer, "* ", "201", "200")
    assert ann.does("/topic -") == none
    assert bob.sees() == [Retitled("lobby", "ann", "")]


def test_help_names_every_command(ann: Person) -> None:
    shown = ann.does("/help")
    assert all(line.startswith("* ") for line in shown)
    assert {"nick", "join", "leave", "rooms", "who", "msg", "me", "topic", "history", "help", "quit"} <= set(COMMANDS)
    for name in COMMANDS:
        assert any(line.startswith(f"* /{name} ") for line in shown)


def test_quit(ann: Person, bob: Person) -> None:
    assert ann.does("/QUIT now") and ann.conversation.over
    ann.conversation.end()
    ann.conversation.end()
    assert bob.sees() == [Departed("ann")]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("/jion den", ["/jion", "/join"]),
        ("/TOPCI", ["/TOPCI", "/topic"]),
        ("/m bob hi", ["/m", "/msg", "/me"]),
        ("/", ["/"]),
        ("/ join den", ["/"]),
        ("/xyzzy", ["/xyzzy"]),
        ("/" + "x" * 30, [f"/{'x' * 20}… (10 more)"]),
    ],
)
def test_an_unknown_command_names_the_nearest(ann: Person, bob: Person, line: str, facts: list[str]) -> None:
    [answer] = ann.does(line)
    assert states(answer, "* ", *facts, "/help")
    assert answer.count("/") >= len(facts) + 1
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
        talk = tuple(wording(kind) for kind in (*said(name, ""), Acted("lobby", name, ""), Whispered(name, "")))
        for event in bob.sees():
            part = wording(event)
            assert part.startswith((f"* {before} ", *talk))
            assert "\n" not in part and "\x1b" not in part
        before = name
