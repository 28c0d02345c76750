"""The core's side of its store: what waits to be kept, and what happens when it is kept, or cannot be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.services.chat.events import (
    Acted,
    Audience,
    Delivery,
    Forgetting,
    MemberOrigin,
    Receiver,
    Remembering,
    Said,
    Turn,
    Unsent,
)
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.store.interface import (
    Kept,
    Message,
    NewMessage,
    RoomRecord,
    Store,
    StoreError,
    StoreLimits,
)

__all__ = ["Archive", "UnsettledError", "event_of"]

#: Seconds between two removals of messages that are too old.
_TRIM_INTERVAL = 600.0


class UnsettledError(Exception):
    """A member's last messages are not kept yet. Nothing was done; `Archive.wait` says when to try again."""


class _Sender(Protocol):
    deliver: Receiver
    echoes: bool
    source: MemberOrigin
    unsettled: int
    settled: Callable[[], None] | None


class _Room(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def history(self) -> deque[tuple[float, Said | Acted]]: ...

    last_id: int

    @property
    def everyone(self) -> Audience: ...


class _Pending(NamedTuple):
    """A message that waits to be kept: its turn in the delivery, and who sent it where."""

    turn: Turn
    room: _Room
    sender: _Sender
    tags: str


def event_of(room: str, message: Message, source: MemberOrigin | None = None, tags: str = "") -> Said | Acted:
    """Return the event of a kept message, in a room of this name."""
    kind = Acted if message.acted else Said
    account, time = message.account, message.time
    return kind(room, message.name, message.text, message.id, time, account, source=source, tags=tags)


class Archive:
    """Passes messages through the store: each is delivered when it is kept, and its sender told if it cannot be.

    It is the `StoreListener`. An event that follows a message waits behind it (`Delivery.hold`), so that all receivers
    get all events in one order, whatever the store takes.
    """

    def __init__(
        self,
        store: Store,
        limits: StoreLimits,
        delivery: Delivery,
        clock: Any,
        log: Logger,
        *,
        opened: Callable[[Kept], None],
        find: Callable[[str], _Room | None],
        everyone: Callable[[], Audience],
    ) -> None:
        self.store = store
        self.failure: StoreError | None = None
        #: The messages that could not be kept.
        self.unsent: Callable[[int], object] = lambda _count: None
        #: The messages that were delivered.
        self.sent: Callable[[int], object] = lambda _count: None
        self._limits = limits
        self._delivery = delivery
        self._clock = clock
        self._log = log
        self._opened = opened
        self._find = find
        self._everyone = everyone
        #: In the order of the appends.
        self._pending: deque[_Pending] = deque()
        #: By key, the records of rooms that could not be kept.
        self._unkept: dict[str, RoomRecord] = {}
        #: What to call when the store is open; None when it is.
        self._waiting: list[Callable[[], None]] | None = []
        self._trimming: Any = None
        self._is_closed = False

    def open(self, last: int) -> None:
        """Open the store. Raises `UserError`."""
        self.store.open(self, last)

    def close(self) -> Deferred[None]:
        """Keep what waits, and close the store, once. The Deferred fires when all that was sent is delivered."""
        if self._is_closed:
            return succeed(None)
        self._is_closed = True
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        return self.store.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: nothing more can be kept."""
        return self._is_closed

    @property
    def is_open(self) -> bool:
        """Whether the store has told what it has."""
        return self._waiting is None

    def when_open(self, callback: Callable[[], None]) -> None:
        """Call back when the store is open, which may be now."""
        if self._waiting is None:
            callback()
        else:
            self._waiting.append(callback)

    def check(self, refused: str) -> None:
        """Raise `ChatError` if the store cannot keep anything now; `refused` says what is not done."""
        if self.failure is not None:
            raise ChatError(f"{refused}: {self.failure}; try again later")

    def append(self, sender: _Sender, room: _Room, new: NewMessage, tags: str = "") -> None:
        """Deliver a message to a room when it is kept, with these tags, which are not kept."""
        sender.unsettled += 1
        self._pending.append(_Pending(self._delivery.hold(), room, sender, tags))
        self.store.append(new)

    def check_settled(self, member: _Sender) -> None:
        """Raise `UnsettledError` while messages of a member wait to be kept."""
        if member.unsettled:
            raise UnsettledError

    def wait(self, member: _Sender, resume: Callable[[], None]) -> None:
        """Call `resume` once when no message of a member waits."""
        member.settled = resume

    def keep(self, record: RoomRecord) -> None:
        """Keep the record of a room, now or as soon as the store can."""
        if self._is_closed:
            return
        self._unkept.pop(record.key, None)

        def failed(failure: Failure) -> None:
            failure.trap(StoreError)
            # Unless it was kept, or has failed, again.
            self._unkept.setdefault(record.key, record)

        self.store.put(record).addErrback(failed)

    def forget(self, record: RoomRecord) -> None:
        """Remove a room with its messages, if it can be."""
        self._unkept.pop(record.key, None)
        if not self._is_closed:
            self.store.remove(record).addErrback(_ignore)

    def opened(self, kept: Kept) -> None:
        """Begin: the store is open."""
        self._opened(kept)
        waiting, self._waiting = self._waiting or [], None
        for callback in waiting:
            callback()
        self.limit(self._limits)

    def limit(self, limits: StoreLimits) -> None:
        """Change the limits of the store. Messages that are too old are removed from time to time."""
        self._limits = limits
        if not self.is_open or self._is_closed:
            return
        self.store.limit(limits)
        if limits.days is not None and self._trimming is None:
            self._trimming = self._clock.callLater(0, self._trim)

    def appended(self, messages: Sequence[tuple[Message, NewMessage | None]]) -> None:
        """Deliver messages."""
        settled: list[_Sender] = []
        with self._delivery:
            for message, new in messages:
                if new is not None:
                    turn, room, sender, tags = self._pending.popleft()
                    event = event_of(room.name, message, sender.source, tags)
                    but = None if sender.echoes else sender.deliver
                    self._delivery.fill(turn, room.everyone, event, but, len(event.text))
                    settled.append(sender)
                elif (found := self._find(message.room)) is not None:
                    room, event = found, event_of(found.name, message)
                    self._delivery.send(room.everyone, event, None, len(event.text))
                else:
                    continue
                room.history.append((message.time, event))
                room.last_id = message.id
            self.sent(len(messages))
        self._settle(settled)

    def repeated(self, message: Message, new: NewMessage) -> None:
        """Drop a message that was delivered before."""
        turn, _, sender, _ = self._pending.popleft()
        self._delivery.drop(turn)
        self._settle([sender])

    def refused(self, messages: Sequence[NewMessage], error: StoreError) -> None:
        """Tell the senders."""
        settled: list[_Sender] = []
        with self._delivery:
            for new in messages:
                turn, room, sender, _ = self._pending.popleft()
                self._delivery.fill(turn, (sender.deliver,), Unsent(room.name, new.text, str(error)))
                settled.append(sender)
            self.unsent(len(messages))
        self._settle(settled)

    def failed(self, error: StoreError) -> None:
        """Tell everyone."""
        self.failure = error
        self._delivery.send(self._everyone(), Forgetting(str(error)))

    def resumed(self) -> None:
        """Tell everyone, and keep what could not be."""
        self.failure = None
        self._delivery.send(self._everyone(), Remembering())
        unkept, self._unkept = self._unkept, {}
        for record in unkept.values():
            self.keep(record)

    @staticmethod
    def _settle(senders: Sequence[_Sender]) -> None:
        """Resume senders whose last message was delivered, or refused."""
        for sender in senders:
            sender.unsettled -= 1
        for sender in senders:
            if not sender.unsettled and sender.settled is not None:
                settled, sender.settled = sender.settled, None
                settled()

    def _trim(self) -> None:
        self._trimming = self._clock.callLater(_TRIM_INTERVAL, self._trim) if self._limits.days is not None else None
        # A store that cannot is reported by `failed`.
        self.store.trim().addErrback(_ignore)


def _ignore(failure: Failure) -> None:
    failure.trap(StoreError)
