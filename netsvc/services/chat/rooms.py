"""Rooms and members, and the bounded table of rooms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from netsvc.services.chat.events import Acted, Event, Outlet, Said
from netsvc.services.chat.names import check_name, find_key, name_key
from netsvc.services.chat.rate import Bucket
from netsvc.services.chat.refusal import RefusedError

__all__ = ["LOBBY", "Member", "Room", "Rooms"]

#: The room that is always there.
LOBBY = "lobby"


#: The signs that are # in NFKC.
_SIGNS = ("#", "\uff03", "\ufe5f")


def _bare(text: str) -> str:
    return text[1:] if text[:1] in _SIGNS else text


class Member:
    """Somebody in the chat. Wires read it, and change it through the core only."""

    __slots__ = ("bucket", "deliver", "key", "name", "outlet", "rooms")

    def __init__(self, name: str, outlet: Outlet, bucket: Bucket) -> None:
        self.name = name
        self.key = name_key(name)
        self.outlet = outlet
        #: Kept, because a method taken from its object twice is two objects, and this one is compared by identity.
        self.deliver: Callable[[Event], None] = outlet.deliver
        self.bucket = bucket
        #: In the order of joining.
        self.rooms: dict[Room, None] = {}


class Room:
    """A room: who is in it, its topic and what was said last. Wires read it, and change it through the core only."""

    __slots__ = ("_everyone", "history", "key", "members", "name", "topic")

    def __init__(self, name: str, key: str, history: int) -> None:
        self.name = name
        self.key = key
        self.topic = ""
        self.history: deque[tuple[float, Said | Acted]] = deque(maxlen=history)
        #: In the order of joining.
        self.members: dict[Member, None] = {}
        self._everyone: tuple[Callable[[Event], None], ...] | None = ()

    @property
    def everyone(self) -> tuple[Callable[[Event], None], ...]:
        """The `deliver` of each member, in a tuple that no later change of the room touches."""
        if self._everyone is None:
            self._everyone = tuple(member.deliver for member in self.members)
        return self._everyone

    def add(self, member: Member) -> None:
        """Let a member in."""
        self.members[member] = member.rooms[self] = None
        self._everyone = None

    def remove(self, member: Member) -> None:
        """Let a member out."""
        del self.members[member], member.rooms[self]
        self._everyone = None


class Rooms:
    """All rooms, at most `limit`. An empty one is kept until its place is needed; the lobby always."""

    def __init__(self, limit: int, name_length: int, history: int) -> None:
        self._limit = limit
        self._name_length = name_length
        self._history = history
        self._rooms = {LOBBY: Room(LOBBY, LOBBY, history)}
        # In the order in which they became empty. The lobby is never among them.
        self._empty: dict[str, Room] = {}

    def change(self, limit: int, name_length: int, history: int) -> None:
        """Have other limits from now on. No room is closed for that; of what was said, the last is kept."""
        self._limit, self._name_length = limit, name_length
        if history != self._history:
            self._history = history
            for room in self._rooms.values():
                room.history = deque(room.history, maxlen=history)

    def __len__(self) -> int:
        return len(self._rooms)

    def __iter__(self) -> Iterator[Room]:
        """Iterate over the rooms that somebody is in, and the lobby."""
        return (room for room in self._rooms.values() if room.members or room.key == LOBBY)

    def find(self, text: str) -> Room | None:
        """Return the room that `text` names, if there is one. A leading # is not part of a name."""
        key = find_key(_bare(text), self._name_length)
        return None if key is None else self._rooms.get(key)

    def open(self, text: str) -> Room:
        """Return the room that `text` names, a new one if need be. Raises `RefusedError`."""
        room = self.find(text)
        return room if room is not None else self._create(text)

    def _create(self, text: str) -> Room:
        name = check_name(_bare(text), self._name_length)
        if len(self._rooms) >= self._limit:
            if not self._empty:
                raise RefusedError(f"there are {self._limit} rooms, and no place for another; join one of them")
            longest_empty = next(iter(self._empty))
            del self._rooms[longest_empty], self._empty[longest_empty]
        room = Room(name, name_key(name), self._history)
        self._rooms[room.key] = self._empty[room.key] = room
        return room

    def enter(self, room: Room, member: Member) -> None:
        """Let a member into a room."""
        self._empty.pop(room.key, None)
        room.add(member)

    def leave(self, room: Room, member: Member) -> None:
        """Let a member out of a room."""
        room.remove(member)
        if not room.members and room.key != LOBBY:
            self._empty[room.key] = room
