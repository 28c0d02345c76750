"""The store in Redis or Valkey. One process at a time serves it; the next one takes over when its lease has ended."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.base.text import escape
from netsvc.services.chat.store.interface import (
    AccountRecord,
    Ban,
    Kept,
    Message,
    NewMessage,
    Record,
    RoomRecord,
    StoreError,
    StoreLimits,
    StoreListener,
)
from netsvc.services.chat.store.redis_link import Link, LinkError, RedisAddress, RefusedError
from netsvc.services.chat.store.redis_scripts import ACQUIRE, BATCH, RELEASE, RENEW

__all__ = ["LEASE", "RedisStore"]

T = TypeVar("T")

#: Seconds that a process that does not answer still has the chat.
LEASE = 10.0
#: Seconds between attempts to get the chat from the process that has it; and until the first attempt to reach a Redis
#: that failed, and the most between two.
_TURN = 0.1
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 10.0
#: Seconds that senders wait to hear whether their messages were kept when Redis is gone, and everything that happens
#: in the chat after these messages waits to be delivered: the first attempt after them is the last for the messages.
_LONGEST_DOUBT = 5.0
#: Operations and characters of messages that wait before senders are slowed; eight times as many are refused.
_MANY = 1000
_MANY_CHARACTERS = 1 << 20
_REFUSED_BEYOND = 8
#: Operations of one script, and characters in them: Redis does nothing else meanwhile.
_BATCH = 200
_BATCH_CHARACTERS = 1 << 18
#: Messages looked at by one operation of `trim` and `forget`, or one page of `read`.
_PIECE = 500
#: A clock may be wrong by so many seconds for `read` to find the messages since a time.
_CLOCK_ERROR = 86400.0
#: The bits of an id that number the messages of one millisecond.
_SEQUENCE_BITS = 20

#: What members are told of an error, by its first word.
_REASONS = {
    "OOM": "the memory of Redis is full",
    "MISCONF": "the disk of Redis is full or broken",
    "READONLY": "Redis is a replica, which cannot be written",
    "LOADING": "Redis is starting",
    "BUSY": "Redis is busy",
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refuses the password",
    "NOPERM": "Redis does not permit it",
    "NOREPLICAS": "Redis has too few replicas",
}


class _TakenError(Exception):
    """Another process has the chat. The text says which."""


@dataclass(slots=True)
class _Waiting:
    """What waits for Redis: the operation of a script, or, without one, a function that reads.

    Its result goes to a Deferred, or to the listener if it is a message.
    """

    answer: Deferred[Any] | None = None
    operation: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    read: Callable[[], Deferred[Any]] | None = None
    draft: NewMessage | None = None
    time: float = 0.0
    characters: int = 0


class RedisStore:
    """The store in a Redis, behind a `Link`.

    What is asked for while Redis works is one script, so that there is never more than one whose result can be unknown.
    That one has a number: it is sent again after a reconnection, and Redis does it once.

    A lease, which each script checks, names the one process that serves the chat. A process that was paused, or cut
    off, cannot change anything once another one has the lease.
    """

    is_lasting = True

    def __init__(
        self,
        address: RedisAddress,
        limits: StoreLimits,
        reactor: Any,
        log: Logger,
        *,
        now: Callable[[], float],
        link: Link,
        sync: bool = False,
    ) -> None:
        self._shown = str(address)
        self._prefix = address.prefix
        self._limits = limits
        self._reactor = reactor
        self._log = log
        self._now = now
        self._link = link
        self._sync = sync
        #: Who has the lease, as others see it.
        self._owner = f"{socket.gethostname()}, process {os.getpid()} ({secrets.token_hex(4)})"
        #: Of the lease, 0 before there is one; the number of the last script, and of the last that was answered.
        self._epoch = self._number = self._answered = 0
        self._worth = ""
        self._failure: StoreError | None = None
        self._is_lost = self._is_waiting = False
        self._waiting: list[_Waiting] = []
        self._characters = 0
        #: The script whose result is unknown, since when, and the messages after it that are refused when it is known.
        self._unknown: list[_Waiting] = []
        self._doubt = 0.0
        self._behind: list[NewMessage] = []
        self._busy = False
        #: The calls that are due: of the next script, of the next attempt to connect, of the renewal of the lease.
        self._turn: Any = None
        self._retry: Any = None
        self._renewal: Any = None
        self._pause = _FIRST_RETRY
        self._is_open = False
        self._closed: Deferred[None] | None = None

    @property
    def worth(self) -> str:
        """What an acknowledged message survives."""
        return f"messages are kept in {self._shown}" + (f"; {self._worth}" if self._worth else "")

    @property
    def is_behind(self) -> bool:
        """Whether many operations wait."""
        return len(self._waiting) >= _MANY or self._characters >= _MANY_CHARACTERS

    def check(self) -> None:
        """Refuse what has no effect with Redis."""
        if self._sync:
            raise UserError(["chat sync: has no effect with Redis; set appendfsync always in its configuration"])

    def open(self, listener: StoreListener, last: int) -> None:
        """Connect until it succeeds, and wait until the process that has the chat ends."""
        self.check()
        self._listener = listener
        self._last = last
        self._attempt()

    def close(self) -> Deferred[None]:
        """Keep what waits, and give the lease back."""
        closed = self._closed = Deferred()
        for call in (self._turn, self._retry):
            if call is not None:
                call.cancel()
        self._turn = self._retry = None
        if not self._busy:
            self._close()
        return closed

    def _close(self) -> None:
        if self._waiting and self._is_open and self._failure is None:
            self._begin()
            return
        self._busy = True
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        self._give_up_doubt()
        if self._link.is_connected and self._epoch:
            self._script(RELEASE, self._owner).addBoth(self._has_closed)
        else:
            self._has_closed()

    def _has_closed(self, _result: object = None) -> None:
        assert self._closed is not None
        self._link.close()
        self._closed.callback(None)

    def limit(self, limits: StoreLimits) -> None:
        """Change the limits."""
        self._limits = limits

    def append(self, draft: NewMessage) -> None:
        """Append a message."""
        if error := self._refusal():
            if self._unknown:
                self._behind.append(draft)
            else:
                self._listener.refused([draft], error)
            return
        now = self._now()
        text = _encode([now, draft.name, draft.text, draft.account, draft.acted])
        operation = ("append", draft.room, text, draft.account, draft.token, repr(now), str(self._limits.messages))
        self._add(_Waiting(operation=operation, draft=draft, time=now))

    def put(self, *records: Record) -> Deferred[None]:
        """Keep records."""
        limits = self._limits
        fields = [each for record in records for each in (*_key(record), _encode_record(record))]
        return self._ask("put", str(limits.rooms), str(limits.accounts), *fields)

    def remove(self, *records: Record) -> Deferred[None]:
        """Remove records."""
        return self._ask("remove", *(each for record in records for each in _key(record)))

    def mark(self, account: str, room: str, id: int) -> Deferred[None]:
        """Keep a read marker."""
        return self._ask("mark", account, room, str(id), str(self._limits.markers))

    def read(
        self, room: str, limit: int, *, before: int | None = None, after: int | None = None, since: float | None = None
    ) -> Deferred[list[Message]]:
        """Return messages of a room."""
        return self._ask_to_read(
            lambda: Deferred.fromCoroutine(
                self._first(room, limit, before, after, since)
                if after is not None or since is not None
                else self._range(room, limit, before)
            )
        )

    async def _range(self, room: str, limit: int, before: int | None = None) -> list[Message]:
        """Return the last messages."""
        if limit <= 0:
            return []
        end = "+" if before is None else f"({_stream_id(before)}"
        entries = await self._link.command("XREVRANGE", f"{self._prefix}log:{room}", end, "-", "COUNT", limit)
        return [_message(room, *entry) for entry in reversed(entries)]

    async def _first(
        self, room: str, limit: int, before: int | None, after: int | None, since: float | None
    ) -> list[Message]:
        """Return the first messages after another one, and since a time."""
        start, end = (
            "-" if after is None else f"({_stream_id(after)}",
            "+" if before is None else f"({_stream_id(before)}",
        )
        if after is None and since is not None:
            # The ids have the times of another clock.
            start = _stream_id(max(0, int((since - _CLOCK_ERROR) * 1000)) << _SEQUENCE_BITS)
        found: list[Message] = []
        while len(found) < limit:
            key = f"{self._prefix}log:{room}"
            entries = await self._link.command("XRANGE", key, start, end, "COUNT", _PIECE)
            page = [_message(room, *entry) for entry in entries]
            found += [each for each in page if since is None or each.time >= since]
            if len(entries) < _PIECE:
                break
            start = f"({entries[-1][0].decode()}"
        return found[:limit]

    def marks(self, account: str) -> Deferred[dict[str, int]]:
        """Return the read markers of an account."""

        def parse(fields: list[bytes]) -> dict[str, int]:
            return {target: int(value) for target, value in _pairs(fields)}

        return self._ask_to_read(lambda: self._link.command("HGETALL", f"{self._prefix}marks:{account}")).addCallback(
            parse
        )

    def forget(self, account: str) -> Deferred[int]:
        """Delete all messages of an account, a piece after the other."""
        return Deferred.fromCoroutine(
            self._in_pieces(lambda room, place: ("forget", room, account, f"({place}" if place else "-", str(_PIECE)))
        )

    def trim(self) -> Deferred[int]:
        """Remove the messages that are too old or too many, a piece after the other."""
        days = self._limits.days
        oldest = "" if days is None else repr(self._now() - days * 86400)
        most = str(self._limits.messages)
        return Deferred.fromCoroutine(self._in_pieces(lambda room, _: ("trim", room, most, oldest, str(_PIECE))))

    async def _in_pieces(self, operation: Callable[[str, str], tuple[str, ...]]) -> int:
        rooms = await self._ask_to_read(lambda: self._link.command("SMEMBERS", f"{self._prefix}logs"))
        removed = 0
        for room in sorted(each.decode() for each in rooms):
            place = ""
            while self._closed is None:
                answer = await self._ask(*operation(room, place), parse=str)
                _, count, place = answer.split(" ")
                removed += int(count)
                if not place:
                    break
        return removed

    def _ask(self, *operation: str, parse: Callable[[str], T] | None = None) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if error := self._refusal():
            answer.errback(StoreError(str(error)))
        else:
            self._add(_Waiting(answer, operation, parse or _parse))
        return answer

    def _ask_to_read(self, read: Callable[[], Deferred[T]]) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if error := self._refusal():
            answer.errback(StoreError(str(error)))
        else:
            self._add(_Waiting(answer, read=read))
        return answer

    def _refusal(self) -> StoreError | None:
        if self._failure is None and (
            len(self._waiting) >= _MANY * _REFUSED_BEYOND or self._characters >= _MANY_CHARACTERS * _REFUSED_BEYOND
        ):
            return StoreError("Redis is too slow")
        return self._failure

    def _add(self, waiting: _Waiting) -> None:
        waiting.characters = sum(map(len, waiting.operation))
        self._characters += waiting.characters
        self._waiting.append(waiting)
        if not self._busy and self._turn is None and self._is_open:
            self._turn = self._reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        """Ask Redis for the first of what waits: a reading, or all operations up to the next one."""
        self._turn = None
        self._busy = True
        first = self._waiting[0]
        if first.read is not None:
            self._take(1)
            first.read().addBoth(self._has_read, first)
            return
        count = characters = 0
        for each in self._waiting:
            characters += each.characters
            if each.read is not None or count == _BATCH or (count and characters > _BATCH_CHARACTERS):
                break
            count += 1
        self._number += 1
        batch = self._take(count)
        self._send(batch).addBoth(self._has_written, batch)

    def _take(self, count: int) -> list[_Waiting]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._characters -= sum(each.characters for each in taken)
        return taken

    def _send(self, batch: Sequence[_Waiting]) -> Deferred[bytes]:
        arguments: list[str] = []
        for each in batch:
            name, *rest = each.operation
            arguments += (name, str(len(rest)), *rest)
        return self._script(BATCH, self._owner, str(self._number), *arguments)

    def _script(self, script: str, *arguments: str) -> Deferred[Any]:
        return self._link.command("EVAL", script, 0, self._prefix, *arguments)

    def _has_read(self, result: Any, waiting: _Waiting) -> None:
        assert waiting.answer is not None
        if isinstance(result, Failure):
            self._fail(result.value)
            waiting.answer.errback(StoreError(str(self._failure)))
            self._refuse_waiting()
        else:
            waiting.answer.callback(result)
        self._go_on()

    def _has_written(self, result: bytes | Failure, batch: list[_Waiting]) -> None:
        if isinstance(result, Failure):
            # Without an answer, it may have been done.
            is_unknown = not result.check(RefusedError)
            self._fail(result.value)
            if is_unknown:
                self._unknown, self._doubt = batch, self._reactor.seconds()
            else:
                self._refuse(batch)
            self._refuse_waiting()
        else:
            self._answered = self._number
            self._report(batch, result)
        self._go_on()

    def _go_on(self) -> None:
        self._busy = False
        if self._closed is not None:
            self._close()
        elif self._failure is None and self._waiting and self._turn is None:
            self._begin()

    def _report(self, batch: list[_Waiting], answer: bytes) -> None:
        """Report the results in the order of the operations; consecutive messages together."""
        appended: list[tuple[Message, NewMessage | None]] = []
        for waiting, line in zip(batch, answer.decode().split("\n"), strict=True):
            draft = waiting.draft
            if draft is not None and line.startswith("A "):
                id = _number(line[2:])
                message = Message(id, waiting.time, draft.room, draft.name, draft.text, draft.account, draft.acted)
                appended.append((message, draft))
                continue
            if appended:
                self._listener.appended(appended)
                appended = []
            if draft is not None:
                _, place, text = line.split(" ", 2)
                self._listener.repeated(_decode(draft.room, place, text), draft)
                continue
            assert waiting.answer is not None
            result = waiting.parse(line)
            if isinstance(result, StoreError):
                waiting.answer.errback(result)
            else:
                waiting.answer.callback(result)
        if appended:
            self._listener.appended(appended)

    def _refuse(self, batch: Sequence[_Waiting], error: StoreError | None = None) -> None:
        error = error or self._failure
        assert error is not None
        for waiting in batch:
            if waiting.draft is not None:
                self._listener.refused([waiting.draft], error)
            elif waiting.answer is not None:
                waiting.answer.errback(StoreError(str(error)))

    def _refuse_waiting(self) -> None:
        """Refuse what was not sent; messages only when those before them are not in doubt."""
        waiting = self._take(len(self._waiting))
        if self._unknown:
            self._behind += [each.draft for each in waiting if each.draft is not None]
            waiting = [each for each in waiting if each.draft is None]
        self._refuse(waiting)

    def _settle(self, error: StoreError | None) -> None:
        """Refuse the messages that came after those that were in doubt."""
        behind, self._behind = self._behind, []
        if behind:
            self._listener.refused(behind, error or StoreError("Redis was away"))

    def _give_up_doubt(self) -> None:
        unknown, self._unknown = self._unknown, []
        if unknown:
            self._refuse(unknown, StoreError("Redis is away, so that it is not known whether this was kept"))
        self._settle(self._failure)

    def _attempt(self) -> None:
        """Connect, and take the lease."""
        self._retry = None
        self._busy = True
        Deferred.fromCoroutine(self._connect()).addBoth(self._attempted)

    async def _connect(self) -> tuple[bytes | None, Kept | None]:
        """Return the answer that was unknown, and what is kept, if that is not known yet."""
        if not self._link.is_connected:
            await self._link.connect()
        epoch, number, text = await self._script(ACQUIRE, self._owner, str(int(LEASE * 1000)), str(self._epoch))
        if epoch < 0:
            raise _TakenError(text.decode())
        if self._epoch and epoch != self._epoch:
            self._log.error("{redis} has lost all that was kept in it", redis=self._shown)
            self._number, self._answered = number + bool(self._unknown), number
        elif self._epoch and number < self._answered:
            self._log.error(
                "{redis} has lost what it had acknowledged last; appendfsync always prevents that", redis=self._shown
            )
        self._epoch = epoch
        await self._find_worth()
        # Asked again even if it was not done: then it is done now.
        answer = await self._send(self._unknown) if self._unknown else None
        return answer, None if self._is_open else await self._load()

    def _attempted(self, result: tuple[bytes | None, Kept | None] | Failure) -> None:
        if isinstance(result, Failure):
            self._fail(result.value)
            if self._unknown and (self._is_lost or self._reactor.seconds() - self._doubt >= _LONGEST_DOUBT):
                self._give_up_doubt()
        else:
            self._recover(*result)
        self._go_on()

    def _recover(self, answer: bytes | None, kept: Kept | None) -> None:
        """Go on: Redis can be used, for the first time or again."""
        self._pause = _FIRST_RETRY
        if self._renewal is None:
            self._renewal = self._reactor.callLater(LEASE / 3, self._renew)
        # First: who gets an answer now may ask for more.
        failure, self._failure = self._failure, None
        if answer is not None:
            batch, self._unknown = self._unknown, []
            self._answered = self._number
            self._report(batch, answer)
        self._settle(failure)
        if failure is not None:
            self._log.info("{redis} can be used again", redis=self._shown)
        if kept is not None:
            self._is_open = True
            self._listener.opened(kept)
        elif failure is not None:
            self._listener.resumed()

    def _renew(self) -> None:
        """Keep the lease. It also finds a connection that is dead."""
        self._renewal = None
        if self._failure is None:
            self._script(RENEW, self._owner, str(int(LEASE * 1000))).addBoth(self._renewed)

    def _renewed(self, result: int | Failure) -> None:
        if self._closed is not None:
            return
        if result == 1:
            self._renewal = self._reactor.callLater(LEASE / 3, self._renew)
        elif not self._busy:
            self._fail(result.value if isinstance(result, Failure) else RefusedError("LOST the lease of the chat"))
            self._refuse_waiting()
        else:
            # What is under way will find out.
            self._renewal = self._reactor.callLater(LEASE / 3, self._renew)

    def _fail(self, error: BaseException | None) -> None:
        """Refuse everything until Redis can be used."""
        if isinstance(error, _TakenError):
            if self._fail_as_taken(error):
                return
        elif not isinstance(error, (LinkError, RefusedError)):
            self._log.failure("the chat store failed", Failure(error))
        if self._failure is None:
            self._log.error(
                "{redis}: {reason}: the chat refuses messages until it can keep them",
                redis=self._shown,
                reason=str(error),
            )
            self._failure = StoreError(_reason_of(error))
            if self._is_open:
                self._listener.failed(self._failure)
        if self._closed is None and self._retry is None:
            self._retry = self._reactor.callLater(self._pause, self._attempt)
            self._pause = min(self._pause * 2, _LONGEST_RETRY)

    def _fail_as_taken(self, error: _TakenError) -> bool:
        """Return whether no attempt is to follow: what this process knows of the chat is out of date."""
        if not self._is_open:
            if not self._is_waiting:
                self._log.info(
                    "{redis}: {owner} serves this chat; waiting", redis=self._shown, owner=escape(str(error), 200)
                )
            self._is_waiting = True
            self._failure = None
            self._pause = _TURN
            if self._closed is None:
                self._retry = self._reactor.callLater(_TURN, self._attempt)
            return True
        self._is_lost = True
        self._log.error(
            "{redis}: another process has taken the chat over ({owner}); restart netsvc to serve it here",
            redis=self._shown,
            owner=_shown(error),
        )
        self._failure = StoreError("another server has taken the chat over; connect again")
        self._listener.failed(self._failure)
        return True

    async def _find_worth(self) -> None:
        """Find out what Redis does with what it acknowledges, and log it if it is something else than before."""
        config: dict[str, str] = {}
        for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy"):
            try:
                found = await self._link.command("CONFIG", "GET", name)
            except RefusedError:
                # Services that run Redis for others do not let them.
                found = []
            config |= dict(_pairs(found))
        worth = _worth(config)
        if worth != self._worth:
            self._worth = worth
            is_safe = config.get("appendonly") == "yes" and not _evicts(config)
            (self._log.info if is_safe else self._log.warn)("{worth}", worth=self.worth)

    async def _load(self) -> Kept:
        prefix, command = self._prefix, self._link.command
        rooms = [_decode_room(text) for _, text in _pairs(await command("HGETALL", f"{prefix}rooms"))]
        accounts = [
            AccountRecord(**json.loads(text)) for _, text in _pairs(await command("HGETALL", f"{prefix}accounts"))
        ]
        logs = sorted(each.decode() for each in await command("SMEMBERS", f"{prefix}logs"))
        messages: dict[str, Sequence[Message]] = {}
        for first in range(0, len(logs), 100):
            some = logs[first : first + 100]
            found = await gatherResults([Deferred.fromCoroutine(self._range(room, self._last)) for room in some])
            messages |= {room: tuple(each) for room, each in zip(some, found, strict=True)}
        rooms.sort(key=lambda record: record.key)
        accounts.sort(key=lambda record: record.key)
        return Kept(tuple(rooms), tuple(accounts), messages)


def _reason_of(error: BaseException | None) -> str:
    """Return what members are told of an error."""
    if isinstance(error, RefusedError):
        return _REASONS.get(str(error).partition(" ")[0], "Redis refuses it")
    return "Redis cannot be reached" if isinstance(error, LinkError) else "Redis failed"


def _shown(error: BaseException) -> str:
    return escape(str(error), 200)


def _evicts(config: dict[str, str]) -> bool:
    return config.get("maxmemory", "0") != "0" and config.get("maxmemory-policy") not in (None, "noeviction")


def _worth(config: dict[str, str]) -> str:
    """Return what an acknowledgement is worth, with this configuration of Redis."""
    if "appendonly" not in config:
        worth = "what survives a crash of Redis is not known, as it does not tell its configuration"
    elif config["appendonly"] != "yes":
        worth = "a crash of Redis loses what came after its last snapshot (appendonly yes prevents that)"
    elif config.get("appendfsync") == "always":
        worth = "one that was delivered survives a crash of Redis and of its machine"
    else:
        worth = "a crash of the machine of Redis may lose the last seconds (appendfsync always prevents that)"
    if _evicts(config):
        worth += "; it drops messages when its memory is full (maxmemory-policy noeviction prevents that)"
    return worth


def _parse(line: str) -> StoreError | None:
    """Return the result of an operation without one."""
    if line == "E none":
        return StoreError("there is no such account")
    return StoreError(f"there is no room for another {line[2:]}") if line.startswith("E ") else None


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _key(record: Record) -> tuple[str, str]:
    return "rooms" if isinstance(record, RoomRecord) else "accounts", record.key


def _encode_record(record: Record) -> str:
    fields = asdict(record)
    if isinstance(record, RoomRecord):
        fields |= {"operators": sorted(record.operators), "modes": sorted(record.modes)}
    return _encode(fields)


def _decode_room(text: str) -> RoomRecord:
    fields = json.loads(text)
    sets = {name: frozenset(fields[name]) for name in ("operators", "modes")}
    return RoomRecord(**{**fields, **sets, "bans": tuple(Ban(**each) for each in fields["bans"])})


def _stream_id(id: int) -> str:
    return f"{id >> _SEQUENCE_BITS}-{id & (1 << _SEQUENCE_BITS) - 1}"


def _number(stream_id: str) -> int:
    ms, seq = stream_id.split("-")
    return int(ms) << _SEQUENCE_BITS | int(seq)


def _message(room: str, id: bytes, fields: list[bytes]) -> Message:
    """Return the message of an entry of a stream, whose first field it is."""
    return _decode(room, id.decode(), fields[1].decode())


def _decode(room: str, id: str, text: str) -> Message:
    time, name, said, account, acted = json.loads(text)
    return Message(_number(id), time, room, name, said, account, acted)


def _pairs(fields: Sequence[bytes]) -> list[tuple[str, str]]:
    texts = [each.decode() for each in fields]
    return list(zip(texts[::2], texts[1::2], strict=True))
