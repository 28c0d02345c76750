"""A member of the chat, and a room with its members."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from netsvc.base.bucket import Bucket
from netsvc.services.chat.events import Acted, Event, Outlet, Said
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
        "bucket",
        "deliver",
        "key",
        "name",
        "outlet",
        "peer",
        "rooms",
        "settled",
        "slowed",
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


class ChatRoom:
    """A room: its members, topic and last messages. Protocols read it, and change it through the core only."""

    __slots__ = ("_everyone", "founder", "history", "is_kept", "key", "made", "members", "name", "rules", "topic")

    def __init__(self, name: str, key: str, history: int) -> None:
        self.name = name
        self.key = key
        self.topic = ""
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
        return replace(record, modes=rules.modes, bans=tuple(rules.bans))

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
        self._everyone = None
