"""Who is in the chat, for those who watch for a name; and who was in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from netsvc.services.chat.events import Audience, Event, MemberOrigin, Receiver

__all__ = ["Absent", "Former", "Presence", "Present"]

#: Members that are remembered after they have left the chat, or have had another name.
MOST_FORMER = 256


@dataclass(frozen=True, slots=True)
class Present(Event):
    """A member is called `name` now. Sent to those who watch for the name."""

    name: str


@dataclass(frozen=True, slots=True)
class Absent(Event):
    """No member is called `name` any more. Sent to those who watch for the name."""

    name: str


class Former(NamedTuple):
    """A member that was in the chat with that name until a time (seconds since 1970)."""

    key: str
    name: str
    source: MemberOrigin
    real_name: str
    until: float


class _Member(Protocol):
    name: str
    key: str
    source: MemberOrigin
    real_name: str


class Presence:
    """Tells those who watch for a name when there is such a member, and remembers the last members that were."""

    def __init__(self, send: Callable[[Audience, Event], None]) -> None:
        self._send = send
        #: By key, and whether closely.
        self._watchers: dict[str, dict[Receiver, bool]] = {}
        #: The longest gone first.
        self._former: deque[Former] = deque(maxlen=MOST_FORMER)

    def watch(self, key: str, deliver: Receiver, *, closely: bool = False) -> None:
        """Deliver an event when a member with the name of that key (`name_key`) comes, and when it is gone.

        `closely`: also when it says something of itself: that it is away, its account, its real name.
        """
        self._watchers.setdefault(key, {})[deliver] = closely

    def close_watchers(self, key: str) -> list[Receiver]:
        """Return the `deliver` of those who watch for the name of that key closely."""
        return [deliver for deliver, closely in self._watchers.get(key, {}).items() if closely]

    def unwatch(self, keys: Iterable[str], deliver: Receiver) -> None:
        """Undo `watch`. Keys that are not watched do no harm."""
        for key in keys:
            watchers = self._watchers.get(key, {})
            watchers.pop(deliver, None)
            if not watchers:
                self._watchers.pop(key, None)

    def came(self, member: _Member) -> None:
        """Note a new member, or one with a new name."""
        if watchers := self._watchers.get(member.key):
            self._send(tuple(watchers), Present(member.name, source=member.source))

    def went(self, member: _Member, now: float) -> None:
        """Note that a member leaves the chat, or gets another name."""
        self._former.append(Former(member.key, member.name, member.source, member.real_name, now))
        if watchers := self._watchers.get(member.key):
            self._send(tuple(watchers), Absent(member.name, source=member.source))

    def former(self, key: str) -> list[Former]:
        """Return who had the name of that key, the last one first."""
        return [each for each in reversed(self._former) if each.key == key]
