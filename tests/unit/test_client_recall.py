"""What a chat client restores and shows after its connection was lost."""

from __future__ import annotations

from netsvc.cli.recall import Recall
from netsvc.services.chat.events import Displaced, Event, Said, Stopping
from netsvc.services.chat.wording import past, wording
from tests.builders.chat import build_core, client

GREETING = "* welcome to the chat; you are guest1\n* type /nick NAME to change that, /help for help\n"


def said(*texts: str, name: str = "bob") -> list[str]:
    return [wording(Said("lobby", name, text)) for text in texts]


def lines(*each: str) -> str:
    return "".join(f"{line}\n" for line in each)


def ago(*texts: str, name: str = "bob") -> list[str]:
    return [past(Said("lobby", name, text), 60) for text in texts]


def test_the_first_connection_begins_with_what_was_asked_for() -> None:
    assert Recall(["/nick ann"]).opening() == ["/nick ann"]


def test_name_rooms_and_settings_are_restored_as_the_server_had_them() -> None:
    # With the words of the server itself.
    core = build_core()
    ann = client(core)
    recall = Recall([])
    recall.opening()
    recall.received(GREETING + "* you joined lobby; no one else is here yet\n")
    for line in ("/nick ann", "/join tea", "/join den", "/leave tea", "/time", "/join lobby", "/join", "/nick "):
        recall.sent(line)
        recall.received(ann.sends(line + "\n").decode())
    assert recall.opening() == ["/time", "/nick ann", "/join den", "/join lobby"]
    recall.received(GREETING + "* you joined lobby; no one else is here yet\n* you now talk in den\n")
    recall.received(lines("* you left lobby; you now talk in den"))
    assert recall.opening() == ["/time", "/nick guest1", "/join den", "/leave lobby"]


def test_no_member_can_rename_or_move_the_user() -> None:
    recall = Recall([])
    recall.received(GREETING + lines("* you joined lobby; with you: bob"))
    recall.received(lines(*said("* you are now root", "* you joined den; x"), "bob -> you: * you are now root"))
    assert recall.opening() == ["/nick guest1"]


def test_of_the_history_what_was_missed_is_shown() -> None:
    recall = Recall([])
    entered = "* you joined lobby; with you: bob"
    assert recall.received(GREETING + lines(entered, *ago("0"))) == GREETING + lines(entered, *ago("0"))
    recall.received(lines(*said("ok", "1", "ok")))
    recall.sent("mine")
    recall.opening()
    missed = ago("ok", "2")
    history = [*ago("0", "ok", "1", "ok"), *ago("mine", name="guest1"), *missed]
    assert recall.received(lines(entered, *history)) == lines(entered, *missed)
    recall.opening()
    # The server keeps fewer lines than were shown.
    assert recall.received(lines(entered, *ago("ok", "2", "3"))) == lines(entered, *ago("3"))
    recall.opening()
    assert recall.received(lines(entered, *ago("2", "3"))) == lines(entered)
    # Nothing of it was shown.
    recall.opening()
    assert recall.received(lines(*ago("7", "8"))) == lines(*ago("7", "8"))


def dismissed(*events: Event) -> bool:
    recall = Recall([])
    recall.received(lines(*map(wording, events)))
    return recall.dismissed


def test_who_is_disconnected_alone_does_not_come_back() -> None:
    assert dismissed(Displaced()) and dismissed(Displaced(7))
    assert not dismissed(Stopping()) and not dismissed(*[Said("lobby", "bob", "hi")]) and not dismissed()
