"""The commands: what a line that starts with / does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from netsvc.services.chat.refusal import RefusedError
from netsvc.services.chat.rooms import LOBBY, Member
from netsvc.text import escape

if TYPE_CHECKING:
    from netsvc.services.chat.conversation import Conversation

__all__ = ["COMMANDS", "listed", "run_command"]

#: Names and rooms that one answer lists; how many more there are is said.
_LISTED_MEMBERS = 100
_LISTED_ROOMS = 50


class Command(NamedTuple):
    """A command: what may follow it, what it is for, and what it does with the text after it."""

    arguments: str
    purpose: str
    run: Callable[[Conversation, str], None]


def run_command(conversation: Conversation, line: str) -> None:
    """Do what a line without its / asks for. Raises `RefusedError`."""
    word, rest = _cut(line)
    command = COMMANDS.get(word.lower())
    if command is None:
        raise RefusedError(f"there is no command /{escape(word, 20)}; {_nearest(word.lower())}/help lists them")
    command.run(conversation, rest)


def _cut(text: str) -> tuple[str, str]:
    """Return the first word, and what comes after it. The spaces of other scripts part words as well."""
    word = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
    return word, text[len(word) :].strip()


def _nearest(word: str) -> str:
    longer = [name for name in COMMANDS if word and name.startswith(word)]
    close = longer or difflib.get_close_matches(word[:20], COMMANDS)
    return f"did you mean {' or '.join(f'/{name}' for name in close)}? " if close else ""


def _needed(text: str, usage: str) -> str:
    if not text:
        raise RefusedError(f"usage: {usage}")
    return text


def _nick(conversation: Conversation, text: str) -> None:
    core, member = conversation.core, conversation.member
    core.rename(member, _needed(text, "/nick NAME"))
    conversation.notice(f"you are now {member.name}")


def _join(conversation: Conversation, text: str) -> None:
    conversation.join(_needed(text, "/join ROOM"))


def _leave(conversation: Conversation, text: str) -> None:
    core, member = conversation.core, conversation.member
    room = core.room_of(member, text) if text else conversation.here()
    core.leave(member, room)
    conversation.left(room)


def _rooms(conversation: Conversation, _text: str) -> None:
    rooms = list(conversation.core.rooms)
    lines = []
    for room in nlargest(_LISTED_ROOMS, rooms, key=lambda room: len(room.members)):
        mine = " (you are in it)" if room in conversation.member.rooms else ""
        topic = f": {room.topic}" if room.topic else ""
        lines.append(f"{room.name}, {_members(len(room.members))}{mine}{topic}")
    if len(rooms) > _LISTED_ROOMS:
        lines.append(f"and {len(rooms) - _LISTED_ROOMS} smaller ones")
    conversation.notice(*lines)


def _members(count: int) -> str:
    return f"{count} member" if count == 1 else f"{count} members"


def _who(conversation: Conversation, text: str) -> None:
    room = conversation.core.rooms.find(text) if text else conversation.here()
    # An empty room that is remembered is nobody's business.
    if room is None or not (room.members or room.key == LOBBY):
        raise RefusedError(f'there is no room called "{escape(text, 40)}"; /rooms lists them')
    names = listed(room.members)
    conversation.notice(f"in {room.name}: {names}" if names else f"nobody is in {room.name}")


def listed(members: Collection[Member]) -> str:
    """Name members, up to a number of them that one answer can hold, and count the others."""
    names = ", ".join(member.name for member in islice(members, _LISTED_MEMBERS))
    more = len(members) - _LISTED_MEMBERS
    return f"{names} and {more} more" if more > 0 else names


def _msg(conversation: Conversation, text: str) -> None:
    usage = "/msg NAME TEXT"
    name, words = _cut(_needed(text, usage))
    core = conversation.core
    receiver = core.find(name)
    core.whisper(conversation.member, receiver, _needed(words, usage))
    conversation.tell([f"you -> {receiver.name}: {words}"])


def _me(conversation: Conversation, text: str) -> None:
    core, member = conversation.core, conversation.member
    core.act(member, conversation.here(), _needed(text, "/me TEXT"))


def _topic(conversation: Conversation, text: str) -> None:
    room = conversation.here()
    if text:
        conversation.core.retitle(conversation.member, room, "" if text == "-" else text)
    conversation.notice(f"the topic of {room.name}: {room.topic}" if room.topic else f"{room.name} has no topic")


def _help(conversation: Conversation, _text: str) -> None:
    conversation.notice(
        "what you type goes to the room that you talk in, unless it starts with /",
        *(f"/{name} {command.arguments}".rstrip() + f" - {command.purpose}" for name, command in COMMANDS.items()),
        "//TEXT - say /TEXT",
    )


def _quit(conversation: Conversation, _text: str) -> None:
    conversation.notice("goodbye")
    conversation.over = True


COMMANDS = {
    "nick": Command("NAME", "take another name", _nick),
    "join": Command("ROOM", "go into a room, or talk in one that you are in", _join),
    "leave": Command("[ROOM]", "go out of a room", _leave),
    "rooms": Command("", "list the rooms", _rooms),
    "who": Command("[ROOM]", "list who is in a room", _who),
    "msg": Command("NAME TEXT", "say something to one member alone", _msg),
    "me": Command("TEXT", "tell what you do", _me),
    "topic": Command("[TEXT]", "show or set the topic of the room; - removes it", _topic),
    "help": Command("", "show this", _help),
    "quit": Command("", "leave the chat", _quit),
}
