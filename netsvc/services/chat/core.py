"""The chat itself: who is there, who is where, and who gets to know what. Knows no wire."""

from __future__ import annotations

from collections.abc import Iterable

from netsvc.interfaces import Context
from netsvc.services.chat.events import (
    Acted,
    Departed,
    Displaced,
    Joined,
    Left,
    Outlet,
    Renamed,
    Retitled,
    Said,
    Stopping,
    Whispered,
)
from netsvc.services.chat.names import check_name, find_key, name_key
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.rate import Bucket
from netsvc.services.chat.refusal import RefusedError
from netsvc.services.chat.rooms import LOBBY, Member, Room, Rooms
from netsvc.services.chat.safety import clean_text
from netsvc.services.chat.telling import Audience, Telling
from netsvc.text import escape

__all__ = ["LOBBY", "ChatCore"]


class ChatCore:
    """The state that all wires share.

    A wire makes a member with `enter` and ends it with `depart`. What a member does is told to the others; the
    member itself is told nothing, for the call has told its wire. All who are told of two events are told of
    them in the same order. Every method that takes words of a member raises `RefusedError` for what cannot be,
    and then has changed nothing; it stores and passes on cleaned text only.
    """

    def __init__(self, options: ChatOptions, context: Context) -> None:
        self.options = options
        self.context = context
        self.rooms = Rooms(options["rooms"], options["name-length"], options["history"])
        self._members: dict[str, Member] = {}
        #: The same members, longest silent first, and when each was last heard.
        self._silent: dict[Member, float] = {}
        self._guests = 0
        self._draining = False
        #: A wire does in its `with` block what came in one piece: the others are told of all of it together.
        self.telling = Telling(context.log)
        metrics = context.metrics
        self._messages = metrics.counter("messages", "What was said in a room, or to one member")
        self._shown = {
            metrics.gauge("members", "Members who are there"): self.__len__,
            metrics.gauge("rooms", "Rooms that somebody is in"): self._count_rooms,
        }

    def start(self) -> None:
        """Let be seen how many are there."""
        for gauge, count in self._shown.items():
            gauge.add_function(count)

    def stop(self) -> None:
        """Let it be seen no more."""
        for gauge, count in self._shown.items():
            gauge.remove_function(count)

    def _count_rooms(self) -> int:
        return sum(bool(room.members) for room in self.rooms)

    def __len__(self) -> int:
        """Count the members."""
        return len(self._members)

    def reconfigure(self, options: ChatOptions) -> bool:
        """Take other options for what comes: a reload must not part those who come from those who are there."""
        self.options = options
        self.rooms.change(options["rooms"], options["name-length"], options["history"])
        return True

    def enter(self, outlet: Outlet) -> Member:
        """Make a member with a guest name, in no room. Raises `RefusedError` if there is no place."""
        if self._draining:
            raise RefusedError("the server is stopping, come back later")
        if len(self._members) >= self.options["members"] and not self._make_room():
            raise RefusedError(f"the chat is full ({len(self._members)} members), come back later")
        member = Member(self._guest_name(), outlet, Bucket(self.options["rate"], self.options["burst"]))
        self._members[member.key] = member
        self._heard(member)
        return member

    def _make_room(self) -> bool:
        """End the conversation of who has been silent longest, if any has been so for `silence` seconds.

        Connections that never say a word cannot keep everybody else out.
        """
        silent, heard = next(iter(self._silent.items()))
        if self.context.reactor.seconds() - heard < self.options["silence"]:
            return False
        silent.deliver(Displaced())
        silent.outlet.end()
        self.depart(silent, "silent, and the chat was full")
        return True

    def _heard(self, member: Member) -> None:
        # To the end of the line.
        self._silent.pop(member, None)
        self._silent[member] = self.context.reactor.seconds()

    def _guest_name(self) -> str:
        while True:
            self._guests += 1
            name = f"guest{self._guests}"
            # Somebody may have taken it for a name.
            if name not in self._members:
                return name

    def depart(self, member: Member, reason: str = "") -> None:
        """Take a member out of every room and of the chat. Does nothing for one who has gone."""
        if self._members.get(member.key) is not member:
            return
        del self._members[member.key], self._silent[member]
        rooms = list(member.rooms)
        for room in rooms:
            self.rooms.leave(room, member)
        # When all go at once, nobody needs to know of each.
        if not self._draining:
            self.telling.tell(_neighbours(rooms), Departed(member.name, reason))

    def drain(self) -> None:
        """Say goodbye to everybody, and end every conversation. Nobody can enter any more."""
        self._draining = True
        members = list(self._members.values())
        self.telling.tell([member.deliver for member in members], Stopping())
        # Even in the middle of a `with` block: what is delivered after `end` is lost.
        self.telling.deliver()
        for member in members:
            member.outlet.end()
            self.depart(member)

    def wait(self, member: Member) -> float:
        """Take one from what the member may do now, and return 0.0; or the seconds until there is one to take.

        A wire asks before each thing that it does for a member, and delays or refuses what has to wait.
        `member.bucket.refused` is 1 the first time that it must, which is when to say so.
        """
        self._heard(member)
        return member.bucket.take(self.context.reactor.seconds())

    def find(self, name: str) -> Member:
        """Return the member of that name, whatever its case. Raises `RefusedError` if there is none."""
        key = find_key(name, self.options["name-length"])
        member = None if key is None else self._members.get(key)
        if member is None:
            raise RefusedError(f'nobody is called "{escape(name, 40)}"')
        return member

    def rename(self, member: Member, text: str) -> None:
        """Give a member another name."""
        name = check_name(text, self.options["name-length"])
        key = name_key(name)
        if self._members.get(key, member) is not member:
            raise RefusedError(f"{name} is taken; choose another name")
        if name == member.name:
            raise RefusedError(f"you are {name} already")
        old = member.name
        del self._members[member.key]
        self._members[key] = member
        member.name, member.key = name, key
        self.telling.tell(_neighbours(member.rooms), Renamed(old, name), member.deliver)

    def join(self, member: Member, text: str) -> Room:
        """Let a member into a room, which is made if need be. One who is in it already stays."""
        room = self.rooms.find(text)
        if room is not None and room in member.rooms:
            return room
        if len(member.rooms) >= self.options["member-rooms"]:
            raise RefusedError(f"you are in {len(member.rooms)} rooms, and cannot be in more; leave one first")
        room = self.rooms.open(text)
        self.rooms.enter(room, member)
        self.telling.tell(room.everyone, Joined(room.name, member.name), member.deliver)
        return room

    def room_of(self, member: Member, text: str) -> Room:
        """Return a room that the member is in. Raises `RefusedError` if it is no such room."""
        room = self.rooms.find(text)
        if room is None or room not in member.rooms:
            raise RefusedError(f'you are in no room called "{escape(text, 40)}"')
        return room

    def leave(self, member: Member, room: Room) -> None:
        """Let a member out of a room that it is in."""
        self.rooms.leave(room, member)
        self.telling.tell(room.everyone, Left(room.name, member.name))

    def retitle(self, member: Member, room: Room, text: str) -> None:
        """Change the topic of a room that the member is in; an empty one removes it."""
        topic = clean_text(text).strip()
        limit = self.options["topic-length"]
        if len(topic) > limit:
            raise RefusedError(f"that topic has {len(topic)} characters; a topic has at most {limit}")
        room.topic = topic
        self.telling.tell(room.everyone, Retitled(room.name, member.name, topic), member.deliver, len(topic))

    def say(self, member: Member, room: Room, text: str) -> None:
        """Say something in a room that the member is in."""
        self._talk(member, room, Said(room.name, member.name, _worded(text)))

    def act(self, member: Member, room: Room, text: str) -> None:
        """Tell what the member does, in a room that it is in."""
        self._talk(member, room, Acted(room.name, member.name, _worded(text)))

    def _talk(self, member: Member, room: Room, event: Said | Acted) -> None:
        self._messages.inc()
        room.history.append((self.context.reactor.seconds(), event))
        self.telling.tell(room.everyone, event, member.deliver, len(event.text))

    def whisper(self, member: Member, receiver: Member, text: str) -> None:
        """Say something to one member alone."""
        if receiver is member:
            raise RefusedError("that is yourself")
        event = Whispered(member.name, _worded(text))
        self._messages.inc()
        self.telling.tell((receiver.deliver,), event)


def _neighbours(rooms: Iterable[Room]) -> Audience:
    """Collect the `deliver` of all who are in any of the rooms, each once."""
    return list({deliver: None for room in rooms for deliver in room.everyone})


def _worded(text: str) -> str:
    cleaned = clean_text(text)
    if not cleaned.strip():
        raise RefusedError("there is nothing to say in that")
    return cleaned
