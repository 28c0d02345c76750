"""A member of the chat, and a room with its members."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from netsvc.base.bucket import Bucket
from netsvc.services.chat.events import Acted, Event, MemberOrigin, Outlet, Said
from netsvc.services.chat.names import name_key
from netsvc.services.chat.rules import Rules
from netsvc.services.chat.store.interface import AccountRecord, RoomRecord

__all__ = ["LOBBY", "ChatRoom", "Member"]

#: The room that always exists.
LOBBY = "lobby"


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
        #: Kept, because it is compared by identity, and a bound method is a new object each time it is looked up.
        self.deliver: Callable[[Event], None] = outlet.deliver
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


class ChatRoom:
    """A room: its members, topic and last messages. Protocols read it, and change it through the core only."""

    __slots__ = (
        "_everyone",
        "founder",
        "history",
        "is_kept",
        "key",
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
        #: In the order of joining.
        self.members: dict[Member, None] = {}
        self._everyone: tuple[Callable[[Event], None], ...] | None = ()

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
    def everyone(self) -> tuple[Callable[[Event], None], ...]:
        """The `deliver` of each member, in a tuple that no later change of the room touches."""
        if self._everyone is None:
            self._everyone = tuple(member.deliver for member in self.members)
        return self._everyone

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


def _ignore(_event: Event) -> None:
    """Take an event that needs nothing."""
