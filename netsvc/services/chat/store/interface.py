"""What a store of the chat keeps, and what it promises.

A store keeps one log of messages for each room, and records: rooms, accounts and read markers. A core opens it once,
asks from then on, and hears of everything in calls to its `StoreListener`, in the thread of the reactor.

- Order: each room has one order of messages, the order of their ids. Every listener gets the messages of a room in it.
- Durability: what is passed to `StoreListener.appended`, and what a Deferred has fired for, is kept as
  `Store.worth` says.
- All or nothing: an append, a `put` or a `remove` happens entirely, or not at all.
- Times are seconds since 1970 (`time.time`). A clock can be set back, so that only the ids are in order.
- Texts are what members may see; a store stores them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred

__all__ = [
    "AccountRecord",
    "Ban",
    "Kept",
    "Message",
    "NewMessage",
    "Record",
    "RoomRecord",
    "Store",
    "StoreError",
    "StoreLimits",
    "StoreListener",
]


class StoreError(Exception):
    """The store could not do it, and nothing was changed. The text is the reason, for members: "the disk is full".

    It has no path, as members have no use for it; the log has.
    """


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be appended. `room` and `account` are keys (`name_key`); a guest has no account.

    An append with a `token` that the room has among its kept messages appends nothing, and returns that message: so
    an append whose result is unknown can be repeated.
    """

    room: str
    name: str
    text: str
    account: str = ""
    #: Whether `text` is what the member does (`waves`), not says.
    acted: bool = False
    token: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A kept message. Its `id` is greater than those of all earlier messages of its room, and is never used again."""

    id: int
    time: float
    room: str
    name: str
    text: str
    account: str = ""
    acted: bool = False


@dataclass(frozen=True, slots=True)
class Ban:
    """Who may not enter a room, or not speak in it; the core says what `kind` and `pattern` mean."""

    kind: str
    pattern: str
    by: str
    made: float
    #: When it ends; None for never.
    until: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RoomRecord:
    """A room. `key` identifies it; `founder` and `operators` are the keys of accounts.

    A room without a founder is not registered: it is kept until its place is needed.
    """

    key: str
    name: str
    made: float = 0.0
    founder: str = ""
    operators: frozenset[str] = frozenset()
    topic: str = ""
    topic_by: str = ""
    topic_time: float = 0.0
    modes: frozenset[str] = frozenset()
    bans: tuple[Ban, ...] = ()


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account. `key` identifies it; `password` is a hash with its parameters."""

    key: str
    name: str
    password: str = field(repr=False)
    made: float = 0.0
    #: When it was last used.
    seen: float = 0.0


Record = RoomRecord | AccountRecord


@dataclass(frozen=True)
class Kept:
    """What a store has when it is opened. `messages` are the last ones of each room, by its key, oldest first."""

    rooms: Sequence[RoomRecord] = ()
    accounts: Sequence[AccountRecord] = ()
    messages: Mapping[str, Sequence[Message]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreLimits:
    """How much a store keeps.

    A `put` of a new record beyond `rooms` or `accounts` fails with `StoreError`. Of the messages of a room at least
    the last `messages` are kept, and at most an eighth more; those older than `days` are removed by `trim`, up to the
    first that is not. An account has at most `markers` read markers; those not set for longest are dropped.
    """

    messages: int = 10_000
    #: None: for ever.
    days: float | None = None
    rooms: int = 1000
    accounts: int = 10_000
    markers: int = 200


class StoreListener(Protocol):
    """The core, as a store sees it. No method may raise."""

    def opened(self, kept: Kept) -> None:
        """Take what the store has. Called once, before all others; may be called within `Store.open`."""

    def appended(self, messages: Sequence[tuple[Message, NewMessage | None]]) -> None:
        """Deliver messages: they are kept, and follow those of earlier calls.

        With each comes what `append` got; None if another process appended it. What repeats a token is passed to
        `repeated` instead.
        """

    def repeated(self, message: Message, draft: NewMessage) -> None:
        """Drop a new message whose token is that of a kept message."""

    def refused(self, drafts: Sequence[NewMessage], error: StoreError) -> None:
        """Report to their senders that these are not kept, and never will be."""

    def failed(self, error: StoreError) -> None:
        """Note that the store can keep nothing from now on. Everything is refused until `resumed`."""

    def resumed(self) -> None:
        """Note that the store works again."""


class Store(Protocol):
    """Keeps the chat's messages and records. Its methods are called in the thread of the reactor."""

    @property
    def worth(self) -> str:
        """What survives what, in one line for the log: the worth of an acknowledgement."""

    @property
    def is_lasting(self) -> bool:
        """Whether anything survives the process."""

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be kept that senders must be slowed. The store refuses what is far beyond."""

    def check(self) -> None:
        """Raise `UserError` if `open` would fail. No side effects."""

    def open(self, listener: StoreListener, last: int) -> None:
        """Open the store, and pass what it has, with the `last` messages of each room, to `listener.opened`.

        Raises `UserError` with the reason and the cure. Nothing else may be called before `opened` was.
        """

    def close(self) -> Deferred[None]:
        """Keep what waits, and release everything. The Deferred fires when that is done, and never fails.

        Nothing may be called afterwards.
        """

    def limit(self, limits: StoreLimits) -> None:
        """Change the limits. The next append or `trim` applies them to what is kept."""

    def append(self, draft: NewMessage) -> None:
        """Append a message to the log of its room. The answer is a call of `appended`, `repeated` or `refused`.

        All are answered in the order of the calls, refused ones too. The room need not be `put`.
        """

    def put(self, *records: Record) -> Deferred[None]:
        """Keep records, each in the place of the one with its key. Fails with `StoreError`."""

    def remove(self, *records: Record) -> Deferred[None]:
        """Remove records that may not exist: a room with its messages and markers, an account with its markers.

        An account's messages stay; `forget` deletes these. Fails with `StoreError`.
        """

    def read(
        self, room: str, limit: int, *, before: int | None = None, after: int | None = None, since: float | None = None
    ) -> Deferred[list[Message]]:
        """Return messages of a room, oldest first: at most `limit` of those with ids less than `before` and greater
        than `after`, and not sent before the time `since`.

        With `after` or `since` these are the first, otherwise the last ones: `after` catches up, `before` pages back.
        Fails with `StoreError`.
        """

    def forget(self, account: str) -> Deferred[int]:
        """Delete all messages of an account; return their number. Fails with `StoreError`."""

    def mark(self, account: str, room: str, id: int) -> Deferred[None]:
        """Keep the number, such as a time, up to which an account has read a room (`#`, then its key) or a member.

        A lower one than before changes nothing.

        Fails with `StoreError`, also if there is no such account.
        """

    def marks(self, account: str) -> Deferred[dict[str, int]]:
        """Return the read markers of an account, by room or member. Fails with `StoreError`."""

    def trim(self) -> Deferred[int]:
        """Remove the messages that are too old or too many; return their number. Fails with `StoreError`."""
