"""One member's conversation in lines of text: what it types, the commands (lines that start with /), the answers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from netsvc.base.text import escape
from netsvc.services.chat.account_commands import ACCOUNT_COMMANDS
from netsvc.services.chat.core import LOBBY, ChatCore, ChatRoom, Member
from netsvc.services.chat.events import Outlet, Reason
from netsvc.services.chat.history import MOST_MISSED, missed, parse_request, tell
from netsvc.services.chat.markers import marker_key
from netsvc.services.chat.names import ChatError, EmptyTextError
from netsvc.services.chat.room_commands import ROOM_COMMANDS
from netsvc.services.chat.store.interface import StoreError
from netsvc.services.chat.view import View
from netsvc.services.chat.wording import past

__all__ = ["COMMANDS", "Conversation"]

#: Members and rooms that one answer lists; the rest is counted.
_LISTED_MEMBERS = 100
_LISTED_ROOMS = 50


class Conversation:
    """Does what a member types, and answers it.

    `show` is called with the lines of each answer, without line ends. `over` becomes true when the member has asked to
    leave; the protocol then closes the connection.
    """

    #: Set by `begin`.
    member: Member

    def __init__(self, core: ChatCore, outlet: Outlet, show: Callable[[Iterable[str]], None]) -> None:
        self.core = core
        self.show = show
        self.outlet = outlet
        self.view = View()
        self._entered = False
        #: Whether the member is in the lobby, or has left it since.
        self.arrived = False
        #: The room that plain lines go to.
        self.room: ChatRoom | None = None
        self.over = False

    def begin(self) -> None:
        """Enter the chat and greet the member; no one else is told. Raises `ChatError` if the chat is full."""
        self.member = self.core.enter(self.outlet)
        self._entered = self.member.reads = True
        self.notice(
            f"welcome to the chat; you are {self.member.name}", "type /nick NAME to change that, /help for help"
        )

    def arrive(self) -> None:
        """Join the lobby. Does nothing if the member has arrived before."""
        if not self.arrived:
            self.arrived = True
            try:
                self._join(LOBBY, at_once=True)
            except ChatError as error:
                self.notice(str(error))

    def end(self, reason: Reason = Reason.ASKED) -> None:
        """Leave the chat. Does nothing if the member has left it or never entered."""
        if self._entered:
            self.core.depart(self.member, reason)

    def line_received(self, line: str) -> Deferred[None] | None:
        """Do what a line says: a command, or a text for the room. A line with no visible text does nothing.

        The Deferred, if there is one, fires when the command has been answered; it never fails. The next line has to
        wait for it. Raises `CongestedError` or `UnsettledError`, and then has done nothing: the same line has to be
        tried again. So the answer to a command means that all earlier messages of the member are kept, or were refused.
        """
        if not line.strip():
            return None
        try:
            if line.startswith("/") and not line.startswith("//"):
                self.core.archive.check_settled(self.member)
                answer = self._run(line[1:])
                return None if answer is None else answer.addErrback(self._failed)
            else:
                self.core.say(self.member, self.here(), line[1:] if line.startswith("//") else line)
        except EmptyTextError:
            pass
        except ChatError as error:
            self.notice(str(error))
        return None

    def _failed(self, failure: Failure) -> None:
        if failure.check(StoreError):
            self.notice(f"this cannot be done now: {failure.value}")
        elif failure.check(ChatError):
            self.notice(str(failure.value))
        else:
            self.core.context.log.failure("a chat command failed", failure)
            self.notice("this failed, for a reason that is in the log of the server")

    def notice(self, *lines: str) -> None:
        """Show lines of the server."""
        self.show([f"* {line}" for line in lines])

    def here(self) -> ChatRoom:
        """Return the room that plain lines go to. Raises `ChatError` if there is none."""
        # It may have been closed. What was meant for it must not go to another one.
        if self.room is None or self.room not in self.member.rooms:
            raise ChatError("you talk in no room; /join ROOM joins one, /rooms lists them")
        return self.room

    def join(self, text: str) -> Deferred[None] | None:
        """Join a room and show its topic and last messages; or switch to one that the member is in."""
        name, key = _cut(text)
        known = set(self.member.rooms)
        self._join(name, key)
        return self.tell_missed(set(self.member.rooms) - known)

    def tell_missed(self, rooms: Collection[ChatRoom], until: float = math.inf) -> Deferred[None] | None:
        """Say how much was sent in rooms since the member's account was last in them, and before `until`."""
        account = self.member.account
        if account is None:
            return None
        answers = []
        for room in rooms:
            if read := self.core.markers.get(account.key, marker_key(room)):
                answer = self.core.archive.store.read(room.key, MOST_MISSED + 1, since=(read + 1) / 1000)
                answers.append(answer.addCallback(missed, room.name, account.key, read / 1000, until))
        lines = gatherResults(answers, consumeErrors=True)
        # If the store cannot tell, `failed` has been reported.
        return lines.addCallbacks(lambda each: self.notice(*filter(None, each)), lambda _: None)

    def _join(self, name: str, key: str = "", *, at_once: bool = False) -> None:
        known = set(self.member.rooms)
        self.room = room = self.core.join(self.member, name, key, at_once=at_once)
        if room in known:
            self.notice(f"you now talk in {room.name}")
            return
        now = self.core.now()
        others = _listed([member for member in room.members if member is not self.member])
        lines = [f"* you joined {room.name}; {f'with you: {others}' if others else 'no one else is here yet'}"]
        if room.topic:
            lines.append(f"* the topic of {room.name}: {room.topic}")
        self.show(lines + [past(event, now - then) for then, event in room.history])

    def _run(self, line: str) -> Deferred[None] | None:
        word, rest = _cut(line)
        command = COMMANDS.get(word.lower())
        if command is None:
            raise ChatError(f"no such command: /{escape(word, 20)}; {_nearest(word.lower())}/help lists all commands")
        if command.arguments[:1].isupper() and not rest:
            raise ChatError(f"usage: /{word.lower()} {command.arguments}")
        return command.run(self, rest)

    def _nick(self, name: str) -> None:
        self.core.rename(self.member, name)
        self.notice(f"you are now {self.member.name}")

    def _leave(self, name: str) -> None:
        room = self.core.room_of(self.member, name) if name else self.here()
        self.core.leave(self.member, room)
        if self.room is room:
            # The one joined last, of the others.
            self.room = next(reversed(self.member.rooms), None)
        where = f"you now talk in {self.room.name}" if self.room else "you are in no room now"
        self.notice(f"you left {room.name}; {where}")

    def _rooms(self, _text: str) -> None:
        rooms = list(filter(self._may_see, self.core.rooms))
        lines = []
        for room in nlargest(_LISTED_ROOMS, rooms, key=lambda room: len(room.members)):
            members = f"{len(room.members)} member{'s' * (len(room.members) != 1)}"
            mine = " (you are in it)" if room in self.member.rooms else ""
            lines.append(f"{room.name}, {members}{mine}" + (f": {room.topic}" if room.topic else ""))
        if len(rooms) > _LISTED_ROOMS:
            lines.append(f"and {len(rooms) - _LISTED_ROOMS} smaller rooms")
        self.notice(*lines)

    def _who(self, name: str) -> None:
        room = self.core.rooms.find(name) if name else self.here()
        # An empty room is remembered, but not shown.
        is_shown = room is not None and (room.members or room.key == LOBBY) and self._may_see(room)
        if room is None or not is_shown:
            raise ChatError(f'no such room: "{escape(name, 40)}"; /rooms lists them')
        self.notice(f"in {room.name}: {_listed(room.members) or 'no one'}")

    def _may_see(self, room: ChatRoom) -> bool:
        return room in self.member.rooms or "secret" not in room.rules.modes

    def _msg(self, text: str) -> None:
        name, words = _cut(text)
        receiver = self.core.find(name)
        if not words:
            raise ChatError("usage: /msg NAME TEXT")
        if receiver is self.member:
            raise ChatError("you cannot send a message to yourself")
        sent = self.core.whisper(self.member, receiver, words)
        self.show([f"you -> {receiver.name}: {sent}"])

    def _me(self, text: str) -> None:
        self.core.act(self.member, self.here(), text)

    def _topic(self, text: str) -> None:
        room = self.here()
        if text:
            self.core.retitle(self.member, room, "" if text == "-" else text)
        self.notice(f"the topic of {room.name}: {room.topic}" if room.topic else f"{room.name} has no topic")

    def _history(self, text: str) -> Deferred[None]:
        room, asked = self.here(), parse_request(text, self.core.now())
        answer = self.core.archive.store.read(room.key, asked.limit, since=asked.since)
        return answer.addCallback(lambda messages: self.show(tell(room.name, messages, asked)))

    def _help(self, _text: str) -> None:
        self.notice(
            "type a line to send it to your current room; lines that start with / are commands:",
            *(f"/{name} {command.arguments}".rstrip() + f" - {command.purpose}" for name, command in COMMANDS.items()),
            "//TEXT - say /TEXT",
        )

    def _quit(self, _text: str) -> None:
        self.notice("goodbye")
        self.over = True


class Command(NamedTuple):
    """A command: its arguments (in brackets if optional), its line of help, and the method that runs it.

    The method may return a Deferred, which fires when it has answered; failures are reported to the member.
    """

    arguments: str
    purpose: str
    run: Callable[[Conversation, str], Deferred[None] | None]


COMMANDS = {
    "nick": Command("NAME", "change your name", Conversation._nick),
    "join": Command("ROOM [KEY]", "join a room, or switch to one that you are in", Conversation.join),
    "leave": Command("[ROOM]", "leave a room", Conversation._leave),
    "rooms": Command("", "list the rooms", Conversation._rooms),
    "who": Command("[ROOM]", "list the members of a room", Conversation._who),
    "msg": Command("NAME TEXT", "send a private message", Conversation._msg),
    "me": Command("TEXT", "say what you do", Conversation._me),
    "topic": Command("[TEXT]", "show or set the topic of the room; - removes it", Conversation._topic),
    "history": Command("[NUMBER or TIME]", "show earlier messages of the room", Conversation._history),
    **{name: Command(*entry) for name, entry in {**ACCOUNT_COMMANDS, **ROOM_COMMANDS}.items()},
    "help": Command("", "show this help", Conversation._help),
    "quit": Command("", "leave the chat", Conversation._quit),
}


def _cut(text: str) -> tuple[str, str]:
    """Return the first word, and the text after it. The spaces of other scripts separate words as well."""
    word = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
    return word, text[len(word) :].strip()


def _nearest(word: str) -> str:
    longer = [name for name in COMMANDS if word and name.startswith(word)]
    close = longer or difflib.get_close_matches(word[:20], COMMANDS)
    return f"did you mean {' or '.join(f'/{name}' for name in close)}? " if close else ""


def _listed(members: Collection[Member]) -> str:
    names = ", ".join(member.name for member in islice(members, _LISTED_MEMBERS))
    more = len(members) - _LISTED_MEMBERS
    return f"{names} and {more} more" if more > 0 else names
