"""What happens in the chat: the events that members are sent, and their delivery in one order for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Protocol

from twisted.logger import Logger

__all__ = [
    "Acted",
    "Audience",
    "Away",
    "Changed",
    "Closed",
    "Delivery",
    "Departed",
    "Described",
    "Displaced",
    "Event",
    "Expelled",
    "Forgetting",
    "Identified",
    "Joined",
    "Kicked",
    "Left",
    "Marked",
    "MemberOrigin",
    "Noticed",
    "Outlet",
    "Proclaimed",
    "Reason",
    "Receiver",
    "Remembering",
    "Renamed",
    "Retitled",
    "Said",
    "Several",
    "Stopping",
    "Tagged",
    "Turn",
    "Unsent",
    "Whispered",
]

#: Events, and characters of members' own text in them, that are collected for one delivery. More would hardly be
#: cheaper, and a client gets all of it at once: more than its transport takes at a time.
_MOST_EVENTS = 64
_MOST_CHARACTERS = 8192


class MemberOrigin(NamedTuple):
    """What is said of a member besides its name: user and host name, its account, and whether it is a program."""

    user: str
    host: str
    account: str = ""
    is_bot: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. One object goes to all receivers.

    `rendered` belongs to the protocols: the bytes of the event by wire form and encoding, made for the first receiver
    that needs them and reused for the others. It is emptied when the event has been delivered.
    """

    rendered: dict[object, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    #: Of the member that caused it; None if that is not known any more.
    source: MemberOrigin | None = field(default=None, kw_only=True, repr=False, compare=False)
    #: The message tags that its sender's client has attached for other clients, as they are written in IRC.
    tags: str = field(default="", kw_only=True, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Said(Event):
    """`name` said `text` in `room`."""

    room: str
    name: str
    text: str
    #: Its id and time (seconds since 1970) in the store, and the key of the account of who sent it.
    id: int = field(default=0, compare=False)
    time: float = field(default=0.0, compare=False)
    account: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Acted(Event):
    """`name` did what `text` says (`waves`) in `room`. The rest is as in `Said`."""

    room: str
    name: str
    text: str
    id: int = field(default=0, compare=False)
    time: float = field(default=0.0, compare=False)
    account: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unsent(Event):
    """The receiver's message `text` to `room` could not be kept, and was sent to no one."""

    room: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forgetting(Event):
    """The chat cannot keep messages now, and refuses them."""

    reason: str


@dataclass(frozen=True, slots=True)
class Remembering(Event):
    """The chat can keep messages again."""


@dataclass(frozen=True, slots=True)
class Whispered(Event):
    """`name` sent `text` to the receiver `to` alone. `id` is a text that no other event has."""

    name: str
    text: str
    to: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    acted: bool = False


@dataclass(frozen=True, slots=True)
class Noticed(Event):
    """`name` sent a notice, which no program may answer, to `room`, or to the receiver `to` alone. It is not kept."""

    room: str
    name: str
    text: str
    to: str = field(default="", compare=False)
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Proclaimed(Event):
    """`name`, who operates the chat, sent `text` to all that do."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Tagged(Event):
    """`name` sent nothing but `tags` (that it is typing, say) to `room`, or to the receiver `to` alone."""

    room: str
    name: str
    to: str = field(default="", compare=False)
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Away(Event):
    """`name` is away, or is back if `text` is empty. Sent to those that share a room with it, as are the next two."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Identified(Event):
    """`name` logged in to `account`, or logged out if that is empty."""

    name: str
    account: str


@dataclass(frozen=True, slots=True)
class Described(Event):
    """`name` has `text` as its real name now."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Marked(Event):
    """Another client of the receiver's account has read `target` up to a time, in milliseconds since 1970."""

    target: str
    time: int


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """`name` joined `room`. `real_name` and `away` are texts of the member's own."""

    room: str
    name: str
    real_name: str = field(default="", compare=False)
    away: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Left(Event):
    """`name` left `room`, and is still in the chat."""

    room: str
    name: str
    why: str = ""


class Reason(StrEnum):
    """Why a member left the chat."""

    ASKED = ""
    LOST = "connection lost"
    FLOODING = "flooding"
    TOO_SLOW = "too slow to read"
    SILENT = "silent, and the chat was full"
    FOREIGN = "not a chat client"
    CROWDED = "the chat was full, and most members were of its address"
    EXPELLED = "disconnected by an operator"
    REPLACED = "logged in elsewhere"


@dataclass(frozen=True, slots=True)
class Departed(Event):
    """`name` left the chat. Sent once to every member that shared a room with it."""

    name: str
    reason: Reason = Reason.ASKED
    why: str = ""


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
class Kicked(Event):
    """`by` removed `name` from `room`; the receiver may be that member."""

    room: str
    name: str
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Changed(Event):
    """`name` changed who may do what in `room`.

    `change`: banned, unbanned, muted, unmuted, excepted, unexcepted, admitted, unadmitted (a standing invitation),
    opped, deopped, voiced, devoiced, modes, invited, asked, registered or released; `whom` is whom it is about, or the
    modes. The invited member gets `invited`, the operators of the room `asked`.
    """

    room: str
    name: str
    change: str
    whom: str
    why: str = ""
    #: What a ban, or the like, is for: its kind and pattern.
    subject: tuple[str, str] = field(default=("", ""), compare=False)


@dataclass(frozen=True, slots=True)
class Expelled(Event):
    """`by` disconnects the receiver, or it logged in elsewhere if `by` is empty; `Outlet.end` follows."""

    by: str = ""
    why: str = ""


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


class Receiver:
    """Takes the events for one member: `take` each, or what the protocol has rendered already.

    An event that has bytes of the wire form `form` (`Event.rendered`) is passed to `send_event` as these, and not to
    `take`. With thousands of members in a room that is nearly all that netsvc does, so that it touches no more objects
    than these. `take` and `send_event` must neither raise nor block, and drop what is for a connection that is closing.
    """

    __slots__ = ("form", "send_event", "take")

    def __init__(self, take: Callable[[Event], None]) -> None:
        self.take = take
        self.send_event: Callable[[bytes], object] = _drop
        #: None: pass each event to `take`.
        self.form: object = None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self.take(event)


class Outlet(Protocol):
    """A member's connection, as the core sees it: all that a wire protocol has to provide."""

    #: The key of the address of its peer (`netsvc.base.hosts.peer_key`).
    peer: str
    #: Sends the events that are for its member.
    receiver: Receiver

    @property
    def is_confidential(self) -> bool:
        """Whether no one else can read what its client sends: `netsvc.stream.is_confidential`."""

    @property
    def is_encrypted(self) -> bool:
        """Whether its client uses TLS."""

    def end(self) -> None:
        """Close the connection, after everything that was delivered has been sent."""


Audience = Iterable[Receiver]


class Turn:
    """The place of one event in the order of deliveries. It waits while it has no event."""

    __slots__ = ("audience", "but", "characters", "event", "is_held")

    def __init__(self, audience: Audience, event: Event | None, but: object, characters: int) -> None:
        self.audience = audience
        self.event = event
        self.but = but
        self.characters = characters
        self.is_held = event is None


def _drop(_data: bytes) -> None:
    """Drop what is for a receiver that has no form."""


class Delivery:
    """Delivers events, each to its audience. Any two receivers of the same two events get them in the same order.

    An event is delivered at once; within a `with` block, at its end or as soon as enough are collected. Consecutive
    events with the same audience are then delivered as one `Several`: a thousand receivers are called once, not once
    for every line. An event that is not certain yet has its place kept (`hold`), and later ones wait behind it.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._waiting: deque[Turn] = deque()
        #: How many of them have their event, and the characters of these.
        self._ready = self._characters = 0
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
        self._waiting.append(Turn(audience, event, but, characters))
        self._collected(characters)

    def hold(self) -> Turn:
        """Keep the place of an event: what is sent from now on is delivered after `fill` or `drop`."""
        slot = Turn((), None, None, 0)
        self._waiting.append(slot)
        return slot

    def fill(self, slot: Turn, audience: Audience, event: Event, but: object = None, characters: int = 0) -> None:
        """Deliver an event in its place; see `send`."""
        slot.audience, slot.event, slot.but, slot.characters = audience, event, but, characters
        slot.is_held = False
        self._collected(characters)

    def drop(self, slot: Turn) -> None:
        """Give up a place."""
        slot.is_held = False
        if not self._blocks:
            self.flush()

    def _collected(self, characters: int) -> None:
        self._ready += 1
        self._characters += characters
        if not self._blocks or self._ready >= _MOST_EVENTS or self._characters >= _MOST_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Deliver everything that waits, up to the first place that is held.

        A delivery may end its connection, which is another event. That one waits, or the receivers later in the line
        would get the two in the wrong order.
        """
        if self._delivering:
            return
        self._delivering = True
        waiting = self._waiting
        try:
            while waiting and not waiting[0].is_held:
                self._deliver_next()
        finally:
            self._delivering = False

    def _deliver_next(self) -> None:
        waiting = self._waiting
        slot = waiting.popleft()
        audience, event, but, characters = slot.audience, slot.event, slot.but, slot.characters
        if event is None:
            return
        events = [event]
        while (
            waiting
            and (following := waiting[0]).event is not None
            and following.audience is audience
            and following.but is but
            and len(events) < _MOST_EVENTS
            and characters < _MOST_CHARACTERS
        ):
            events.append(following.event)
            characters += following.characters
            waiting.popleft()
        self._ready -= len(events)
        self._characters -= characters
        if len(events) > 1:
            event = Several(tuple(events))
        rendered = event.rendered.get
        for receiver in audience:
            if receiver is not but:
                try:
                    if data := rendered(receiver.form):
                        receiver.send_event(data)
                    else:
                        receiver.take(event)
                except Exception:  # noqa: BLE001  (an error in one connection must not cost the others the event)
                    self._log.failure("a chat connection could not take an event")
        for each in events:
            each.rendered.clear()
        event.rendered.clear()
