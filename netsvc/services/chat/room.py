"""A member of the chat, a room with its members, and all rooms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from netsvc.base.bucket import Bucket
from netsvc.services.chat.events import Acted, Event, MemberOrigin, Outlet, Receiver, Said
from netsvc.services.chat.names import ChatError, NameIndex, check_name, find_key, name_key
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.rules import Rules
from netsvc.services.chat.store.interface import AccountRecord, RoomRecord

__all__ = ["LOBBY", "ChatRoom", "Happening", "Member", "Rooms", "tenth"]

#: The room that always exists.
LOBBY = "lobby"
#: Things that happened in a room which are remembered.
MOST_HAPPENINGS = 200

#: The characters that are # in NFKC.
_SIGNS = ("#", "\uff03", "\ufe5f")


class Member:
    """A member of the chat. Protocols read it, and change it through the core only."""

    __slots__ = (
        "account",
        "away",
        "bucket",
        "deliver",
        "echoes",
        "entered",
        "is_invisible",
        "is_operator",
        "key",
        "name",
        "outlet",
        "own",
        "peer",
        "reads",
        "real_name",
        "rooms",
        "settled",
        "slowed",
        "source",
        "spoke",
        "unsettled",
    )

    def __init__(self, name: str, outlet: Outlet, bucket: Bucket) -> None:
        self.name = name
        self.key = name_key(name)
        self.outlet = outlet
        self.peer = outlet.peer
        #: The account that it is logged in to.
        self.account: AccountRecord | None = None
        self.deliver = outlet.receiver
        self.bucket = bucket
        #: How often it had to wait since its bucket was last full. 1: report it; more: it was reported.
        self.slowed = 0
        #: Its messages that wait to be kept, and what to call when there are none.
        self.unsettled = 0
        self.settled: Callable[[], None] | None = None
        #: In the order of joining.
        self.rooms: dict[ChatRoom, None] = {}
        #: What its protocol does with an event that the member caused itself, at once: the line protocol nothing, as it
        #: answers in words of its own. `echoes`: its own messages to a room are delivered to it, too.
        self.own: Callable[[Event], None] = _ignore
        self.echoes = False
        #: Whether what was delivered to it was read: the protocol does not say it of each message.
        self.reads = False
        self.source = MemberOrigin("chat", "")
        self.real_name = self.away = ""
        #: Whether it operates the whole chat, and is not listed to those in none of its rooms.
        self.is_operator = self.is_invisible = False
        #: When it entered the chat, and when it last said something.
        self.entered = self.spoke = 0.0

    @property
    def mask(self) -> str:
        """What bans of the kind `mask` are compared with, in small letters."""
        return f"{self.key}!{self.source.user}@{self.source.host}".casefold()


class Happening(NamedTuple):
    """Something that happened in a room after the message with the id `after`. Its number is that of no other one."""

    after: int
    number: int
    time: float
    event: Event


class ChatRoom:
    """A room: its members, topic and last messages. Protocols read it, and change it through the core only."""

    __slots__ = (
        "_everyone",
        "founder",
        "happened",
        "history",
        "is_kept",
        "key",
        "last_id",
        "made",
        "members",
        "name",
        "rules",
        "topic",
        "topic_by",
        "topic_time",
    )

    def __init__(self, name: str, key: str, history: int) -> None:
        self.name = name
        self.key = key
        self.topic = ""
        #: Who set it, and when.
        self.topic_by = ""
        self.topic_time = 0.0
        #: When it was created, and whether the store has it.
        self.made = 0.0
        self.is_kept = False
        #: The peer of the member that was the first one in it.
        self.founder = ""
        #: Who may do what in it.
        self.rules = Rules()
        #: The last messages, each with the time when it was sent.
        self.history: deque[tuple[float, Said | Acted]] = deque(maxlen=history)
        #: The id of its last message.
        self.last_id = 0
        #: The last things that happened in it besides messages. The store does not keep them.
        self.happened: deque[Happening] = deque(maxlen=MOST_HAPPENINGS)
        #: In the order of joining.
        self.members: dict[Member, None] = {}
        self._everyone: tuple[Receiver, ...] | None = ()

    @property
    def record(self) -> RoomRecord:
        """What the store keeps of it. The rules of a room that is not permanent end with its last member."""
        rules = self.rules if self.is_permanent else Rules()
        operators = frozenset(rules.operators)
        record = RoomRecord(self.key, self.name, self.made, rules.founder, operators, self.topic)
        record = replace(record, topic_by=self.topic_by, topic_time=self.topic_time)
        return replace(record, modes=rules.all_modes, bans=tuple(rules.bans))

    @property
    def is_permanent(self) -> bool:
        """Whether its place is never given to another room: it is the lobby, or registered."""
        return self.key == LOBBY or bool(self.rules.founder)

    @property
    def everyone(self) -> tuple[Receiver, ...]:
        """The receiver of each member, in a tuple that no later change of the room touches."""
        if self._everyone is None:
            self._everyone = tuple(member.deliver for member in self.members)
        return self._everyone

    def note(self, event: Event, time: float) -> None:
        """Note what happened in it, and when (seconds since 1970)."""
        # After a restart greater than before it.
        number = self.happened[-1].number + 1 if self.happened else int(time * 1000)
        self.happened.append(Happening(self.last_id, number, time, event))

    def add(self, member: Member) -> None:
        """Add a member."""
        self.members[member] = member.rooms[self] = None
        self._everyone = None

    def remove(self, member: Member) -> None:
        """Remove a member."""
        del self.members[member], member.rooms[self]
        self.rules.present.discard(member)
        self.rules.voiced.discard(member)
        self._everyone = None


class Rooms:
    """All rooms, at most `limit`. An empty room is kept until its place is needed; the lobby always.

    When all rooms are in use, a peer still gets a new one if another peer founded more of them, and more than `kept`.
    `close` is called with the one of these that has the fewest members, and must remove the members from it;
    `forget` with each room that is dropped.
    """

    def __init__(
        self, options: ChatOptions, close: Callable[[ChatRoom], None], forget: Callable[[ChatRoom], None]
    ) -> None:
        self._close = close
        self._forget = forget
        self._history = 0
        lobby = ChatRoom(LOBBY, LOBBY, 0)
        self._rooms: NameIndex[ChatRoom] = NameIndex()
        self._rooms.add(LOBBY, lobby)
        # In the order in which they became empty. The lobby is never among them.
        self._empty: dict[str, ChatRoom] = {}
        # The rooms in use, without the lobby, by the peer that founded them.
        self._founded: dict[str, dict[ChatRoom, None]] = {}
        self.reconfigure(options)

    def reconfigure(self, options: ChatOptions) -> None:
        """Change the limits. Existing rooms stay, and keep their last messages."""
        self._limit: int = options["rooms"]
        self._kept: int = options["peer-rooms"] or tenth(self._limit, 20)
        self._name_length: int = options["name-length"]
        history = options["history"]
        if history != self._history:
            self._history = history
            for room in self._rooms:
                room.history = deque(room.history, maxlen=history)

    def __len__(self) -> int:
        return len(self._rooms)

    def all(self) -> Iterator[ChatRoom]:
        """Iterate over all rooms, the remembered empty ones included."""
        return iter(self._rooms)

    def __iter__(self) -> Iterator[ChatRoom]:
        """Iterate over the lobby and the rooms that have members."""
        return (room for room in self._rooms if room.members or room.key == LOBBY)

    def find(self, text: str) -> ChatRoom | None:
        """Return the room that `text` names, if it exists. A leading # is not part of a name."""
        return self._rooms.get(find_key(_bare(text), self._name_length))

    def open(self, text: str, peer: str) -> ChatRoom:
        """Return the room that `text` names, after creating it for `peer` if necessary. Raises `ChatError`."""
        room = self.find(text)
        if room is not None:
            return room
        name = check_name(_bare(text), self._name_length)
        if similar := self._rooms.similar(name):
            raise ChatError(f"{name} looks like {similar.name}, which exists; choose another name")
        if len(self._rooms) >= self._limit:
            if not self._empty and (crowded := self._find_crowded(peer)):
                self._close(crowded)
            if not self._empty:
                raise ChatError(f"all {self._limit} rooms are in use; join one of them")
            self._drop_longest_empty()
        return self._add(ChatRoom(name, name_key(name), self._history))

    def restore(self, record: RoomRecord) -> ChatRoom:
        """Return the room of a record, after adding it, empty, if necessary."""
        room = self._rooms.get(record.key) or self._add(ChatRoom(record.name, record.key, self._history))
        room.topic, room.made, room.is_kept = record.topic, record.made, True
        room.topic_by, room.topic_time = record.topic_by, record.topic_time
        room.rules.restore(record)
        if room.is_permanent:
            self._empty.pop(room.key, None)
        return room

    def set_founder(self, room: ChatRoom, account: str) -> None:
        """Register a room to an account, so that its place stays; or release it, if `account` is empty."""
        if room.members and not account:
            self._found(room, next(iter(room.members)).peer)
        elif room.members:
            self._unfound(room)
        elif account:
            self._empty.pop(room.key, None)
        else:
            self._empty[room.key] = room
        room.rules.founder = account

    def shrink(self) -> None:
        """Drop the longest empty rooms beyond the limit."""
        while self._empty and len(self._rooms) > self._limit:
            self._drop_longest_empty()

    def _add(self, room: ChatRoom) -> ChatRoom:
        self._rooms.add(room.name, room)
        self._empty[room.key] = room
        return room

    def _drop_longest_empty(self) -> None:
        longest_empty = self._empty.pop(next(iter(self._empty)))
        self._rooms.remove(longest_empty.name)
        self._forget(longest_empty)

    def _find_crowded(self, peer: str) -> ChatRoom | None:
        """Return the room that is closed to give one to `peer`."""
        most: Collection[ChatRoom] = max(self._founded.values(), key=len, default={})
        if len(most) <= max(self._kept, len(self._founded.get(peer, ())) + 1):
            return None
        return min(most, key=lambda room: len(room.members))

    def enter(self, room: ChatRoom, member: Member) -> None:
        """Add a member to a room."""
        if self._empty.pop(room.key, None):
            self._found(room, member.peer)
            room.rules.present.add(member)
        room.rules.entered(member)
        room.add(member)

    def leave(self, room: ChatRoom, member: Member) -> None:
        """Remove a member from a room."""
        room.remove(member)
        if not room.members and not room.is_permanent:
            self._empty[room.key] = room
            self._unfound(room)
            room.rules = Rules()

    def _found(self, room: ChatRoom, peer: str) -> None:
        room.founder = peer
        self._founded.setdefault(peer, {})[room] = None

    def _unfound(self, room: ChatRoom) -> None:
        founded = self._founded[room.founder]
        del founded[room]
        if not founded:
            del self._founded[room.founder]


def _ignore(_event: Event) -> None:
    """Take an event that needs nothing."""


def tenth(limit: int, most: int) -> int:
    """Return how much of a limit one address keeps, if the operator has not said it: ten of them take all."""
    return max(1, min(limit // 10, most))


def _bare(text: str) -> str:
    return text[1:] if text[:1] in _SIGNS else text
