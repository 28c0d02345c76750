"""What happens in the chat: the events that members are sent, and their delivery in one order for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol

from twisted.logger import Logger

__all__ = [
    "Acted",
    "Audience",
    "Closed",
    "Delivery",
    "Departed",
    "Displaced",
    "Event",
    "Joined",
    "Left",
    "Outlet",
    "Reason",
    "Renamed",
    "Retitled",
    "Said",
    "Several",
    "Stopping",
    "Whispered",
]

#: Events, and characters of members' own text in them, that are collected for one delivery. More would hardly be
#: cheaper, and a client gets all of it at once: more than its transport takes at a time.
_MOST_EVENTS = 64
_MOST_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. One object goes to all receivers.

    `rendered` belongs to the protocols: the bytes of the event by wire form and encoding, made for the first receiver
    that needs them and reused for the others. It is emptied when the event has been delivered.
    """

    rendered: dict[object, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Said(Event):
    """`name` said `text` in `room`."""

    room: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Acted(Event):
    """`name` did what `text` says (`waves`) in `room`."""

    room: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Whispered(Event):
    """`name` sent `text` to the receiver alone."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """`name` joined `room`."""

    room: str
    name: str


@dataclass(frozen=True, slots=True)
class Left(Event):
    """`name` left `room`, and is still in the chat."""

    room: str
    name: str


class Reason(StrEnum):
    """Why a member left the chat."""

    ASKED = ""
    LOST = "connection lost"
    FLOODING = "flooding"
    TOO_SLOW = "too slow to read"
    SILENT = "silent, and the chat was full"
    CROWDED = "the chat was full, and most members were of its address"


@dataclass(frozen=True, slots=True)
class Departed(Event):
    """`name` left the chat. Sent once to every member that shared a room with it."""

    name: str
    reason: Reason = Reason.ASKED


@dataclass(frozen=True, slots=True)
class Renamed(Event):
    """`old` changed its name to `new`. Sent once to every member that shares a room with it."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Retitled(Event):
    """`name` changed the topic of `room`, or removed it if `topic` is empty."""

    room: str
    name: str
    topic: str


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """`room` was closed to make room for another one; the receiver is not in it any more."""

    room: str


@dataclass(frozen=True, slots=True)
class Displaced(Event):
    """The receiver was silent the longest and loses its place to a new member; `Outlet.end` follows.

    `crowd`: the number of members of its peer, if there were too many of these; otherwise 0.
    """

    crowd: int = 0


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """The service is stopping; `Outlet.end` follows."""


@dataclass(frozen=True, slots=True)
class Several(Event):
    """All of `events`, in that order, in one delivery. None of them is a `Several`."""

    events: tuple[Event, ...]


class Outlet(Protocol):
    """A member's connection, as the core sees it: all that a wire protocol has to provide.

    `deliver` runs for every receiver of every message: keep it short.
    """

    #: The key of the address of its peer (`netsvc.base.hosts.peer_key`).
    peer: str

    def deliver(self, event: Event) -> None:
        """Send an event. Must neither raise nor block. Events for a connection that is closing are dropped."""

    def end(self) -> None:
        """Close the connection, after everything that was delivered has been sent."""


#: The `deliver` of every receiver.
Audience = Iterable[Callable[[Event], None]]


class Delivery:
    """Delivers events, each to its audience. Any two receivers of the same two events get them in the same order.

    An event is delivered at once; within a `with` block, at its end or as soon as enough are collected. Consecutive
    events with the same audience are then delivered as one `Several`: a thousand receivers are called once, not once
    for every line.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._waiting: deque[tuple[Audience, Event, object]] = deque()
        self._characters = 0
        self._delivering = False
        self._blocks = 0

    def __enter__(self) -> None:
        """Collect events."""
        self._blocks += 1

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Deliver what was collected, unless this block is within another."""
        self._blocks -= 1
        if not self._blocks:
            self.flush()

    def send(self, audience: Audience, event: Event, but: object = None, characters: int = 0) -> None:
        """Deliver an event to all of `audience` except `but`.

        The audience must not change afterwards. `characters` is the length of the member's own text in the event.
        """
        self._waiting.append((audience, event, but))
        self._characters += characters
        if not self._blocks or len(self._waiting) >= _MOST_EVENTS or self._characters >= _MOST_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Deliver everything that waits.

        A delivery may end its connection, which is another event. That one waits, or the receivers later in the line
        would get the two in the wrong order.
        """
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._waiting:
                self._deliver_next()
        finally:
            self._delivering = False

    def _deliver_next(self) -> None:
        waiting = self._waiting
        audience, event, but = waiting.popleft()
        if waiting and waiting[0][0] is audience and waiting[0][2] is but:
            events = [event]
            while waiting and waiting[0][0] is audience and waiting[0][2] is but:
                events.append(waiting.popleft()[1])
            event = Several(tuple(events))
        if not waiting:
            self._characters = 0
        for deliver in audience:
            if deliver is not but:
                try:
                    deliver(event)
                except Exception:  # noqa: BLE001  (an error in one connection must not cost the others the event)
                    self._log.failure("a chat connection could not take an event")
        event.rendered.clear()
