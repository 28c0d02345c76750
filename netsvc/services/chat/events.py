"""What happens in the chat, as the members get to know it; and what a wire must have to get to know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = [
    "Acted",
    "Departed",
    "Displaced",
    "Event",
    "Joined",
    "Left",
    "Outlet",
    "Renamed",
    "Retitled",
    "Said",
    "Several",
    "Stopping",
    "Whispered",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. One object goes to all who are told, and says the same to all.

    `rendered` is the wires' own: the bytes of the event by wire form and encoding, made for the first receiver
    who needs them and used for the others. The core empties it when all have been told.
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
    """`name` does in `room` what `text` tells (`waves`)."""

    room: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Whispered(Event):
    """`name` said `text` to the receiver alone."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """`name` came into `room`."""

    room: str
    name: str


@dataclass(frozen=True, slots=True)
class Left(Event):
    """`name` went out of `room`, and is still in the chat."""

    room: str
    name: str


@dataclass(frozen=True, slots=True)
class Departed(Event):
    """`name` left the chat. `reason` is empty for one who wanted to. Told once to whoever shared a room."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Renamed(Event):
    """`old` is called `new` from now on. Told once to whoever shares a room."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Retitled(Event):
    """`name` changed the topic of `room`; an empty one was removed."""

    room: str
    name: str
    topic: str


@dataclass(frozen=True, slots=True)
class Displaced(Event):
    """The receiver was silent for long, and another needs its place; `Outlet.end` follows."""


@dataclass(frozen=True, slots=True)
class Several(Event):
    """All of `events` happened, in that order, and are told together. None of them is a `Several`."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """The service ends; `Outlet.end` follows."""


class Outlet(Protocol):
    """A member's end of the chat: whatever carries events to one client.

    The core calls nothing else of a wire. `deliver` runs once a receiver and message: keep it short.
    """

    def deliver(self, event: Event) -> None:
        """Take an event. Must neither raise nor wait. A client that is gone, or going, loses it in silence."""

    def end(self) -> None:
        """Close the conversation, after what was delivered is out."""
