"""One member's conversation in lines of text, over whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netsvc.services.chat.commands import listed, run_command
from netsvc.services.chat.core import LOBBY, ChatCore
from netsvc.services.chat.events import Outlet
from netsvc.services.chat.refusal import RefusedError
from netsvc.services.chat.rooms import Member, Room
from netsvc.services.chat.safety import clean_text
from netsvc.services.chat.wording import past

__all__ = ["Conversation"]


class Conversation:
    """Understands what a member types, and answers it.

    `tell` is given the lines of each answer, without ends. `over` becomes true when the member has said that
    it leaves; the wire then ends the conversation.
    """

    #: There is one from `begin` on.
    member: Member

    def __init__(self, core: ChatCore, outlet: Outlet, tell: Callable[[Iterable[str]], None]) -> None:
        self.core = core
        self.tell = tell
        self._outlet = outlet
        self._entered = False
        #: The room that plain lines go to.
        self.room: Room | None = None
        self.over = False

    def begin(self) -> None:
        """Enter the chat, greet, and go into the lobby. Raises `RefusedError` if the chat has no place."""
        self.member = self.core.enter(self._outlet)
        self._entered = True
        self.notice(f"welcome to the chat, you are {self.member.name}", "/nick NAME changes that, /help shows more")
        self.join(LOBBY)

    def end(self, reason: str = "") -> None:
        """Leave the chat; does nothing for one who has left it, or never came in."""
        if self._entered:
            self.core.depart(self.member, reason)

    def line_received(self, line: str) -> None:
        """Do what a line says. An empty one says nothing."""
        text = clean_text(line)
        if not text.strip():
            return
        try:
            if text.startswith("/") and not text.startswith("//"):
                run_command(self, text[1:])
            else:
                self.core.say(self.member, self.here(), text[1:] if text.startswith("//") else text)
        except RefusedError as error:
            self.notice(str(error))

    def notice(self, *lines: str) -> None:
        """Tell something as the server."""
        self.tell([f"* {line}" for line in lines])

    def here(self) -> Room:
        """Return the room that plain lines go to. Raises `RefusedError` if there is none."""
        if self.room is None:
            raise RefusedError("you are in no room; /join ROOM takes you into one, /rooms lists them")
        return self.room

    def join(self, name: str) -> None:
        """Go into a room, and see what is there; or just talk in one that the member is in."""
        known = set(self.member.rooms)
        self.room = room = self.core.join(self.member, name)
        if room in known:
            self.notice(f"you talk in {room.name} now")
            return
        now = self.core.context.reactor.seconds()
        others = listed([member for member in room.members if member is not self.member])
        lines = [f"* you are in {room.name} now, {f'with {others}' if others else 'alone'}"]
        if room.topic:
            lines.append(f"* the topic of {room.name}: {room.topic}")
        self.tell(lines + [past(event, now - then) for then, event in room.history])

    def left(self, room: Room) -> None:
        """Take note that the member went out of a room; the last one joined, of the others, becomes the current."""
        if self.room is room:
            self.room = next(reversed(self.member.rooms), None)
        where = f"you talk in {self.room.name}" if self.room else "you are in no room now"
        self.notice(f"you left {room.name}; {where}")
