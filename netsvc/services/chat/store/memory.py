"""The store in memory: it forgets everything when the process ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from twisted.internet.defer import Deferred, fail, succeed

from netsvc.services.chat.store.interface import (
    AccountRecord,
    Kept,
    Message,
    NewMessage,
    Record,
    RoomRecord,
    StoreError,
    StoreLimits,
    StoreListener,
)

__all__ = ["MemoryStore"]


class _Log:
    """The messages of a room, oldest first, and those that have a token by it."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.tokens: dict[str, Message] = {}

    def keep(self, is_kept: Callable[[Message], bool]) -> int:
        """Drop messages; return their number."""
        before = len(self.messages)
        self.messages = deque(filter(is_kept, self.messages))
        self.tokens = {token: message for token, message in self.tokens.items() if is_kept(message)}
        return before - len(self.messages)

    def cut(self, most: int) -> int:
        """Drop the oldest messages beyond `most`; return their number."""
        excess = len(self.messages) - most
        if excess <= 0:
            return 0
        first = self.messages[excess].id if most else self.messages[-1].id + 1
        return self.keep(lambda message: message.id >= first)

    def cut_before(self, oldest: float) -> int:
        """Drop the messages before the first one that is not older than that; return their number."""
        first = next((each.id for each in self.messages if each.time >= oldest), None)
        return self.keep(lambda message: first is not None and message.id >= first)


class MemoryStore:
    """Keeps everything in memory. Every answer is immediate."""

    worth = "messages are in memory only: a restart forgets them"
    is_lasting = False
    is_behind = False

    def __init__(self, limits: StoreLimits | None = None, now: Callable[[], float] = time.time) -> None:
        self._limits = limits or StoreLimits()
        self._now = now
        self._last = 0
        self._logs: dict[str, _Log] = {}
        self._rooms: dict[str, RoomRecord] = {}
        self._accounts: dict[str, AccountRecord] = {}
        #: By account, the marker set last at the end.
        self._markers: dict[str, dict[str, int]] = {}

    def check(self) -> None:
        """Do nothing: memory can be used."""

    def open(self, listener: StoreListener, last: int) -> None:
        """Pass what is in memory."""
        self._listener = listener
        messages = {room: tuple(log.messages)[-last:] if last else () for room, log in self._logs.items()}
        listener.opened(Kept(tuple(self._rooms.values()), tuple(self._accounts.values()), messages))

    def close(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def limit(self, limits: StoreLimits) -> None:
        """Change the limits."""
        self._limits = limits

    def append(self, draft: NewMessage) -> None:
        """Append a message."""
        log = self._logs.setdefault(draft.room, _Log())
        if draft.token and (known := log.tokens.get(draft.token)):
            self._listener.repeated(known, draft)
            return
        self._last += 1
        message = Message(self._last, self._now(), draft.room, draft.name, draft.text, draft.account, draft.acted)
        log.messages.append(message)
        if draft.token:
            log.tokens[draft.token] = message
        most = self._limits.messages
        if len(log.messages) > most + most // 8:
            log.cut(most)
        self._listener.appended([(message, draft)])

    def put(self, *records: Record) -> Deferred[None]:
        """Keep records."""
        rooms = self._rooms | {each.key: each for each in records if isinstance(each, RoomRecord)}
        accounts = self._accounts | {each.key: each for each in records if isinstance(each, AccountRecord)}
        if len(rooms) > max(self._limits.rooms, len(self._rooms)):
            return fail(StoreError("there is no room for another room"))
        if len(accounts) > max(self._limits.accounts, len(self._accounts)):
            return fail(StoreError("there is no room for another account"))
        self._rooms, self._accounts = rooms, accounts
        return succeed(None)

    def remove(self, *records: Record) -> Deferred[None]:
        """Remove records."""
        for record in records:
            if isinstance(record, RoomRecord):
                self._rooms.pop(record.key, None)
                self._logs.pop(record.key, None)
                for markers in self._markers.values():
                    markers.pop(f"#{record.key}", None)
            else:
                self._accounts.pop(record.key, None)
                self._markers.pop(record.key, None)
        return succeed(None)

    def read(
        self, room: str, limit: int, *, before: int | None = None, after: int | None = None, since: float | None = None
    ) -> Deferred[list[Message]]:
        """Return messages of a room."""
        log = self._logs.get(room)
        if log is None:
            return succeed([])

        def chosen(messages: Iterator[Message]) -> Iterator[Message]:
            return (
                each
                for each in messages
                if (before is None or each.id < before)
                and (after is None or each.id > after)
                and (since is None or each.time >= since)
            )

        if after is not None or since is not None:
            return succeed(list(islice(chosen(iter(log.messages)), limit)))
        return succeed(list(islice(chosen(reversed(log.messages)), limit))[::-1])

    def forget(self, account: str) -> Deferred[int]:
        """Delete all messages of an account."""
        return succeed(sum(log.keep(lambda each: each.account != account) for log in self._logs.values()))

    def mark(self, account: str, room: str, id: int) -> Deferred[None]:
        """Keep a read marker."""
        if account not in self._accounts:
            return fail(StoreError("there is no such account"))
        markers = self._markers.setdefault(account, {})
        # Reinserted, to be the last one.
        markers[room] = max(id, markers.pop(room, 0))
        while len(markers) > self._limits.markers:
            del markers[next(iter(markers))]
        return succeed(None)

    def marks(self, account: str) -> Deferred[dict[str, int]]:
        """Return the read markers of an account."""
        return succeed(dict(self._markers.get(account, {})))

    def trim(self) -> Deferred[int]:
        """Remove the messages that are too old or too many."""
        limits = self._limits
        removed = sum(log.cut(limits.messages) for log in self._logs.values())
        if limits.days is not None:
            oldest = self._now() - limits.days * 86400
            removed += sum(log.cut_before(oldest) for log in self._logs.values())
        return succeed(removed)
